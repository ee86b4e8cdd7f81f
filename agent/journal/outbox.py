"""Reports that the broker has not confirmed yet, in the journal's file.

All methods work inside a transaction of the journal, on the connection that they are given.
"""

import logging
import sqlite3
from collections.abc import Callable
from enum import Enum

from pydantic import ValidationError

from agent.errors import JournalFull, Unroutable
from agent.journal.form import read_report, report_bytes
from agent.model import Report, ReportDraft, utc
from agent.threads import about_task

log = logging.getLogger(__name__)


class _Weight(Enum):
    """The value of an unsent report.

    If there are too many reports, those of the lowest value are dropped first.
    """

    PROGRESS = 0
    STEP = 1
    FINAL = 2


def _parsed(body: bytes) -> Report | None:
    """Return the report of these bytes, or None if they are damaged."""
    try:
        return read_report(body)
    except ValidationError:
        return None


def _readable(db: sqlite3.Connection, seq: int, task_id: str, body: bytes) -> Report | None:
    """Return an unsent report, or None if it is damaged, which is logged.

    The row of the task has a copy of its latest report.
    """
    if report := _parsed(body):
        return report
    kept = db.execute("SELECT last_report FROM tasks WHERE last_seq = ?", (seq,)).fetchone()
    if kept and (report := _parsed(kept[0])):
        return report
    with about_task(task_id):
        log.error("report %d of task %s in the journal is damaged, and is not sent", seq, task_id)
    return None


class Outbox:
    """Unsent reports, lowest number first.

    Beyond `most` reports, steps and progress are dropped in favour of final reports. This is logged
    once, until the outbox has been empty again. `clock` returns Unix seconds.
    """

    def __init__(
        self, instance_id: str, run_id: str, *, clock: Callable[[], float], most: int
    ) -> None:
        self._instance_id = instance_id
        self._run_id = run_id
        self._clock = clock
        self._most = most
        self._overflowed = False

    def check(self, db: sqlite3.Connection) -> None:
        """Raise JournalFull if the outbox holds as many reports as it may."""
        if self.size(db) >= self._most:
            raise JournalFull(
                f"the journal is full: {self._most} reports wait for the broker",
                hint=f"check that the broker runs; {Unroutable.default_hint}",
            )

    def size(self, db: sqlite3.Connection) -> int:
        (count,) = db.execute("SELECT count(*) FROM outbox").fetchone()
        return int(count)

    def put(self, db: sqlite3.Connection, draft: ReportDraft) -> Report:
        """Give a report its number and keep it in place of unsent progress of its task."""
        seq, at = self._number(db)
        report = Report(
            agent_run_id=self._run_id, seq=seq, at=at, instance_id=self._instance_id, **dict(draft)
        )
        db.execute(
            "DELETE FROM outbox WHERE task_id = ? AND weight = ?",
            (report.task_id, _Weight.PROGRESS.value),
        )
        self._keep(db, report)
        return report

    def repeat(self, db: sqlite3.Connection, seq: int, body: bytes) -> int:
        """Send a task's latest report again, unless it is still unsent, and return its number.

        A damaged report is not sent, which is logged.
        """
        if db.execute("SELECT 1 FROM outbox WHERE seq = ?", (seq,)).fetchone():
            return seq  # the report is sent anyway
        told = _parsed(body)
        if told is None:
            log.error("report %d in the journal is damaged, and is not sent again", seq)
            return seq
        number, at = self._number(db)
        again = told.model_copy(update={"agent_run_id": self._run_id, "seq": number, "at": at})
        self._keep(db, again)
        return number

    def make_room(self, db: sqlite3.Connection) -> None:
        """Drop steps and progress beyond the limit, but never final reports."""
        excess = self.size(db) - self._most
        if excess > 0:
            self._say_so()
            db.execute(
                "DELETE FROM outbox WHERE seq IN (SELECT seq FROM outbox WHERE weight < ?"
                " ORDER BY weight, seq LIMIT ?)",
                (_Weight.FINAL.value, excess),
            )

    def _say_so(self) -> None:
        if not self._overflowed:
            log.warning(
                "%d reports wait for the broker: until it takes some, only final reports are kept",
                self._most,
            )
        self._overflowed = True

    def first(self, db: sqlite3.Connection) -> Report | None:
        """Return the unsent report with the lowest number, or None if all were sent.

        Drop the reports before it that can't be read, because they would keep it back.
        """
        query = "SELECT seq, task_id, body FROM outbox ORDER BY seq LIMIT 1"
        while row := db.execute(query).fetchone():
            if report := _readable(db, *row):
                return report
            self.forget(db, row[0])
        self._overflowed = False
        return None

    def forget(self, db: sqlite3.Connection, seq: int) -> None:
        db.execute("DELETE FROM outbox WHERE seq = ?", (seq,))

    def take(self, db: sqlite3.Connection, task_id: str | None) -> list[Report]:
        """Remove the reports of one task, or of all tasks, and return them in order."""
        rows = db.execute(
            "DELETE FROM outbox WHERE ? IS NULL OR task_id = ? RETURNING seq, task_id, body",
            (task_id, task_id),
        ).fetchall()
        return [report for row in sorted(rows) if (report := _readable(db, *row))]

    def _number(self, db: sqlite3.Connection) -> tuple[int, str]:
        """Return the number and the time (RFC 3339) of the next report."""
        now = self._clock()
        (last,) = db.execute("SELECT last FROM sequence").fetchone()
        # With Unix time, the number grows even if the journal was lost.
        seq = max(last + 1, int(now * 1000))
        db.execute("UPDATE sequence SET last = ?", (seq,))
        return seq, utc(now)

    def _keep(self, db: sqlite3.Connection, report: Report) -> None:
        weight = _Weight.STEP if report.progress is None else _Weight.PROGRESS
        weight = _Weight.FINAL if report.status.final else weight
        db.execute(
            "INSERT INTO outbox VALUES (?, ?, ?, ?)",
            (report.seq, report.task_id, weight.value, report_bytes(report)),
        )
