"""The verb `self-test`.

It prints one line for each check, a fix for each check that does not pass, and the counts.
"""

import argparse
import logging
import os
import sys
import time
from pathlib import Path

from agent.cli import streams, tables
from agent.cli.verb import Verbs, add_json, add_verb
from agent.selftest.check import Result, Verdict
from agent.selftest.context import Context
from agent.selftest.plan import PLAN, TRIAL, chosen
from agent.selftest.run import Run, summary

_COLOURS = {
    Verdict.PASS: "\x1b[32m",
    Verdict.WARN: "\x1b[33m",
    Verdict.FAIL: "\x1b[31m",
    Verdict.SKIP: "\x1b[2m",
}
# the priority of a line in the systemd journal, as a level of logging
_LEVELS = {Verdict.WARN: logging.WARNING, Verdict.FAIL: logging.ERROR}
_PLAIN = "\x1b[0m"


def add(verbs: Verbs) -> None:
    # The verb must work without a configuration: the checks report that it is missing.
    verb = add_verb(
        verbs,
        "self-test",
        self_test,
        "check whether this installation can be trusted with backups",
        configuration=Path,
        examples=("", "--only store", "--full"),
    )
    groups = [*PLAN, *TRIAL]
    verb.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="GROUP",
        type=lambda text: text.replace("-", " "),
        choices=groups,
        help=f"run this group of checks only; may be repeated: {', '.join(groups)}",
    )
    verb.add_argument(
        "--full", action="store_true", help="also make a real backup and a trial restore"
    )
    add_json(verb)


def self_test(path: Path, arguments: argparse.Namespace) -> int:
    """Run the checks and return 0 if none failed, else 1."""
    only = tuple(arguments.only)
    if only and arguments.full:
        only += tuple(TRIAL)
    started = time.monotonic()
    run = Run(Context(path), _no_line if arguments.json else _line)
    run.all(chosen(only, full=arguments.full))
    counts = summary(run.results)
    seconds = round(time.monotonic() - started, 1)
    if arguments.json:
        rows = [found.plain() for found in run.results]
        print(tables.as_json({"results": rows, **counts, "seconds": seconds}))
    else:
        print(
            f"{counts['checks']} checks: {counts['passed']} passed, {counts['warnings']} "
            f"warnings, {counts['failed']} failed, {counts['skipped']} skipped; {seconds} s"
        )
    return 1 if counts["failed"] else 0


def _line(found: Result) -> None:
    mark = streams.priority(_LEVELS.get(found.verdict, logging.INFO), 1)
    print(f"{mark}{_coloured(found.verdict)}  {_ascii(found.label)}  - {_ascii(found.found)}")
    if found.cure:
        print(f"{mark}      what to do: {_ascii(found.cure)}")
    sys.stdout.flush()


def _no_line(_found: Result) -> None:
    """Print nothing, because --json prints all results at the end."""


def _coloured(verdict: Verdict) -> str:
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return verdict.value
    return f"{_COLOURS[verdict]}{verdict.value}{_PLAIN}"


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()
