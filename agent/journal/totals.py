"""Totals that outlive tasks and processes: the ends of tasks, and the work of the data path.

The journal forgets old tasks. These totals stay, because monitoring compares them over months. All
functions but `figures` work inside a transaction of the journal.
"""

import sqlite3
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import ValidationError

from agent.journal.file import read_only
from agent.journal.form import read_report
from agent.journal.labels import code_label, type_label
from agent.model import BackupView, Report, StageTotal, TaskStatus

_BACKUP: Final = "backup.create"


class Ended(NamedTuple):
    """The tasks of one type that ended with one status and error code.

    `code` is "" if there was no error. `number` is how many they are, and `last` is the time of the
    last end in Unix seconds.
    """

    type: str
    status: str
    code: str
    number: int
    last: int


class LastBackup(NamedTuple):
    """The size and the duration of the last COMPLETED backup."""

    raw_bytes: int
    stored_bytes: int
    seconds: float


class Figures(NamedTuple):
    """What a journal says about its agent.

    `unfinished` is the number of unfinished tasks, and `unsent` that of unsent reports.
    `oldest_unsent` is the time of the oldest of these in Unix seconds, None if there is none.
    `last_backup` is None if the journal has no report of it (any more). `stages` has the totals of
    the data path's stages that ever worked.
    """

    ends: list[Ended]
    unfinished: int
    unsent: int
    oldest_unsent: int | None
    last_backup: LastBackup | None
    stages: dict[str, StageTotal]


def count_end(db: sqlite3.Connection, report: Report, *, task_type: str | None = None) -> None:
    """Count a final report. `task_type` replaces the report's own type."""
    db.execute(
        "INSERT INTO ends VALUES (?, ?, ?, 1, ?, ?) ON CONFLICT DO UPDATE SET"
        " count = count + 1, last = excluded.last, seq = excluded.seq",
        (
            type_label(task_type or report.type),
            report.status,
            code_label(report.error.code if report.error else ""),
            _unix(report.at),
            report.seq,
        ),
    )


def add_stages(db: sqlite3.Connection, stages: Mapping[str, StageTotal]) -> None:
    """Add the work of the data path's stages to their totals."""
    db.executemany(
        "INSERT INTO stages VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET"
        " seconds = seconds + excluded.seconds, bytes = bytes + excluded.bytes",
        [(stage, *total) for stage, total in stages.items()],
    )


def figures(path: Path) -> Figures:
    """Return the figures of the journal `path`, while an agent may write to it.

    It uses a connection of its own. So a reader never waits for the agent, nor the agent for it.

    Raises:
        JournalError: the journal can't be read.
    """
    with read_only(path) as db:
        db.execute("BEGIN")
        rows = db.execute("SELECT type, status, code, count, last FROM ends")
        ends = [Ended(*row) for row in rows]
        # by the index of the status, because a scan would read all ended tasks
        (unfinished,) = db.execute(
            "SELECT count(*) FROM tasks WHERE status IN (?, ?)",
            (TaskStatus.ACCEPTED, TaskStatus.RUNNING),
        ).fetchone()
        (unsent,) = db.execute("SELECT count(*) FROM outbox").fetchone()
        totals = db.execute("SELECT stage, seconds, bytes FROM stages")
        return Figures(
            ends,
            int(unfinished),
            int(unsent),
            _oldest_unsent(db),
            _last_backup(db),
            {stage: StageTotal(*rest) for stage, *rest in totals},
        )


def _oldest_unsent(db: sqlite3.Connection) -> int | None:
    # not the number of the report, which stays in the future if the clock was there once
    row = db.execute("SELECT body FROM outbox ORDER BY seq LIMIT 1").fetchone()
    report = _report(row)
    return _unix(report.at) if report else None


def _last_backup(db: sqlite3.Connection) -> LastBackup | None:
    report = _report(
        db.execute(
            "SELECT last_report FROM tasks WHERE ended ="
            " (SELECT seq FROM ends WHERE type = ? AND status = ? AND code = '')",
            (_BACKUP, TaskStatus.DONE),
        ).fetchone()
    )
    if report is None or report.backup is None or report.sizes is None:
        return None
    sizes = report.sizes
    return LastBackup(
        sizes.get("raw_bytes", 0), sizes.get("stored_bytes", 0), _duration(report.backup)
    )


def _duration(view: BackupView) -> float:
    return float(max(0, _unix(view.updated) - _unix(view.created)))


def _report(row: tuple[bytes] | None) -> Report | None:
    """Return the report in a row, or None if there is none, or it is damaged."""
    try:
        return read_report(row[0]) if row else None
    except ValidationError:
        return None


def _unix(time: str) -> int:
    """Return an RFC 3339 time in Unix seconds, or 0 for a text that is no time."""
    try:
        return int(datetime.fromisoformat(time).timestamp())
    except (ValueError, OverflowError):
        return 0
