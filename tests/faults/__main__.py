"""The fault suite on private servers: script/test faults [--full] [--seed N] [--only WORD].

Each trial prints one line with its verdict, kind, name, fault, observations and seconds. The number
of cases of each kind follows. The exit status is 1 if a trial failed, if no trial was run, or if a
full run had fewer cases than required.
"""

import argparse
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from tests.faults.catalogue import all_trials, least
from tests.faults.trial import Bench, Plan, Trial
from tests.stack.stack import Stack


def main() -> int:
    arguments = _arguments()
    plan = Plan(arguments.seed, arguments.full)
    print(f"seed {plan.seed}, {'full' if plan.full else 'short'} form", flush=True)
    chosen = [one for one in all_trials(plan) if arguments.only in f"{one.kind} {one.name}"]
    if not chosen:
        print(f"no trial has {arguments.only!r} in its kind or name")
        return 1
    cases: Counter[str] = Counter()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="backup-agent-faults-") as folder:
        stack = Stack(Path(folder))
        with stack:
            bench = Bench(stack.folder, stack.rabbitmq, stack.swift, stack.mariadb)
            with bench.kept:
                for trial in chosen:
                    done = _do(trial, bench)
                    cases[trial.kind] += done
                    failed += not done
    for kind, count in sorted(cases.items()):
        print(f"{count:6} {kind}")
    lacking = _lacking(cases) if plan.full and not arguments.only else []
    for line in lacking:
        print(line)
    print(f"{failed} failed" + (f", {len(lacking)} kinds fell short" if plan.full else ""))
    return 1 if failed or lacking else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="script/test faults", description=__doc__)
    parser.add_argument("--full", action="store_true", help="run all cases (over half an hour)")
    parser.add_argument(
        "--seed", type=int, default=random.randrange(1 << 32), metavar="N", help="repeat that run"
    )
    parser.add_argument(
        "--only", default="", metavar="WORD", help="run trials with WORD in 'KIND NAME', as engine"
    )
    return parser.parse_args()


def _do(trial: Trial, bench: Bench) -> int:
    """Run one trial and print its line. Return its number of cases, or 0 if it failed."""
    started = time.monotonic()
    try:
        text, count = trial.do(bench)
        verdict = "ok"
    except Exception as error:  # noqa: BLE001 - any error of a trial is its verdict
        text, count, verdict = f"{type(error).__name__}: {error}", 0, "FAILED"
        traceback.print_exc()
    seconds = time.monotonic() - started
    said = f"{trial.kind}: {trial.name}: {trial.done}: {' '.join(text.split())[:300]}"
    print(f"{verdict:6} {said} ({seconds:.1f} s)", flush=True)
    return count


def _lacking(cases: Counter[str]) -> list[str]:
    return [
        f"too few of {kind}: {cases[kind]} of {count}"
        for kind, count in least().items()
        if cases[kind] < count
    ]


if __name__ == "__main__":
    sys.exit(main())
