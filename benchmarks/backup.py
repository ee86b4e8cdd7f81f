"""Back up and restore a database of a given size, and run the naive pipeline for comparison.

    python -m benchmarks.backup --rows-mb 1000 --runs 3

This prints the seconds and the MB/s of the raw stream for each run, and the peak resident memory of
the agent's process. All processes, servers included, share the cores of this machine. Only the
ratio of two figures of the same run is meaningful on another machine.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.naive import naive_backup
from tests.stack.agent import Agent
from tests.stack.stack import Stack

_MB = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows-mb", type=int, default=1000, help="MiB of rows to load")
    parser.add_argument("--runs", type=int, default=3, help="counted runs of each")
    parser.add_argument("--no-naive", action="store_true", help="leave the naive pipeline out")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="backup-agent-bench-") as folder,
        Stack(Path(folder)) as stack,
    ):
        print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}", flush=True)
        stack.mariadb.load_rows(arguments.rows_mb)
        stack.mariadb.checkpoint()
        stack.agent.start()
        try:
            _measure(stack, arguments.runs, naive=not arguments.no_naive)
        finally:
            stack.agent.stop()


def _measure(stack: Stack, runs: int, *, naive: bool) -> None:
    agent_seconds, naive_seconds = [], []
    for number in range(runs + 1):
        seconds = _backup(stack.agent, "warm-up" if number == 0 else f"run {number}")
        if number == 0:
            continue
        agent_seconds.append(seconds)
        if naive:
            made = naive_backup(stack)
            naive_seconds.append(made.seconds)
            print(f"  naive     {made.seconds:6.2f} s, {made.stored_bytes / _MB:.0f} MB stored")
    print(f"agent: median {statistics.median(agent_seconds):.2f} s of {runs}")
    if naive_seconds:
        ratios = [slow / fast for slow, fast in zip(naive_seconds, agent_seconds, strict=True)]
        print(f"naive: median {statistics.median(naive_seconds):.2f} s of {runs}")
        print("times as fast as naive:", ", ".join(f"{ratio:.1f}" for ratio in ratios))
    print(f"agent's peak resident memory after all runs: {_peak_mib(stack.agent):.0f} MiB")


def _backup(agent: Agent, name: str) -> float:
    """Make one full backup by task and restore it locally. Return the seconds of the backup.

    They are the seconds of the backup's attempt.
    """
    view = agent.create(name)
    record = _record(agent, view["id"])
    seconds, raw = record["measured"]["seconds"], record["stored"]["raw_bytes"]
    target = agent.folder / "restore" / "bench"
    started = time.monotonic()
    done = agent.cli("restore", "--local", view["id"], target, seconds=600)
    restored = time.monotonic() - started
    if done.returncode:
        raise RuntimeError(done.stderr)
    shutil.rmtree(target)
    print(
        f"{name}: backup {seconds:.2f} s, {raw / seconds / _MB:.0f} MB/s raw, waits for "
        f"{record['measured']['bottleneck']}; ratio "
        f"{raw / record['stored']['compressed_bytes']:.2f}; restore {restored:.2f} s with prepare",
        flush=True,
    )
    return float(seconds)


def _record(agent: Agent, backup_id: str) -> dict[str, dict[str, float]]:
    shown: dict[str, dict[str, float]] = json.loads(
        agent.cli("backup-show", backup_id, "--json").stdout
    )
    return shown


def _peak_mib(agent: Agent) -> float:
    status = Path(f"/proc/{agent.daemon.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else float("nan")


if __name__ == "__main__":
    main()
