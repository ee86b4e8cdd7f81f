"""The fuzzer alone, for the given time: python -m tests.faults.names [--minutes M] [--seed N].

`--first N` begins with that trial, so `--seed S --first N --minutes 0` repeats a single trial.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.names.judge import Outcome
from tests.faults.names.rig import Templates
from tests.faults.names.trials import attempt
from tests.faults.trial import Bench
from tests.stack.process import StackError
from tests.stack.stack import Stack


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.faults.names", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--shrink", type=float, default=90, metavar="SECONDS")
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="backup-agent-names-") as folder:
        stack = Stack(Path(folder))
        stack.swift.launch()
        try:
            stack.swift.wait_ready()
            bench = Bench(stack.folder, stack.rabbitmq, stack.swift, stack.mariadb)
            with Templates(bench) as templates:
                _run(templates, arguments, counts)
        finally:
            stack.swift.stop()
    for text, count in sorted(counts.items()):
        print(f"{count:6} {text}")
    return 1 if any(text.startswith("FAULT") for text in counts) else 0


def _run(templates: Templates, arguments: argparse.Namespace, counts: Counter[str]) -> None:
    began, number = time.monotonic(), arguments.first
    while number == arguments.first or time.monotonic() - began < 60 * arguments.minutes:
        started = time.monotonic()
        seed = f"{arguments.seed} {number}"
        try:
            outcome, told = attempt(templates, seed, number, arguments.shrink)
        except StackError as error:
            outcome, told = Outcome("no verdict: a server did not start"), str(error)
        verdict = f"FAULT {outcome.fault}" if outcome.fault else outcome.verdict
        counts[verdict] += 1
        print(f"{number}: {verdict} ({time.monotonic() - started:.1f} s)", flush=True)
        if outcome.detail or told:
            print(f"{outcome.detail}\n{told}\n", flush=True)
        number += 1


if __name__ == "__main__":
    sys.exit(main())
