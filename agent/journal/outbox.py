"""Reports that the broker has not confirmed yet, in the journal's file.

Everything here happens inside a transaction of the journal, whose connection is handed in.
"""

import logging
import sqlite3
from collections.abc import Callable
from enum import Enum

from agent.errors import JournalFull, Unroutable
from agent.journal.form import read_report, report_bytes
from agent.model import Report, ReportDraft, utc

log = logging.getLogger(__name__)


class _Weight(Enum):
    """What an unsent report is worth, when there are too many of them."""

    PROGRESS = 0
    STEP = 1
    FINAL = 2


class Outbox:
    """At most `most` reports, before steps and progress are given up for the sake of final ones.

    That is said in the log once, until the outbox was empty again. `clock` gives Unix seconds.
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
        """JournalFull where it holds as much as it may."""
        if self.size(db) >= self._most:
            raise JournalFull(
                f"the journal is full: {self._most} reports wait for the broker",
                hint=f"check that the broker runs; {Unroutable.default_hint}",
            )

    def size(self, db: sqlite3.Connection) -> int:
        (count,) = db.execute("SELECT count(*) FROM outbox").fetchone()
        return int(count)

    def put(self, db: sqlite3.Connection, draft: ReportDraft) -> Report:
        """Give a report its number and keep it; it replaces what its task said of progress."""
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
        """Send a task's latest report once more, unless it is unsent; the number it has now."""
        if db.execute("SELECT 1 FROM outbox WHERE seq = ?", (seq,)).fetchone():
            return seq  # it goes out anyway
        number, at = self._number(db)
        told = read_report(body)
        again = told.model_copy(update={"agent_run_id": self._run_id, "seq": number, "at": at})
        self._keep(db, again)
        return number

    def make_room(self, db: sqlite3.Connection) -> None:
        """Give up steps and progress beyond the limit; final reports never."""
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
                "%d reports wait for the broker, which is all that is kept: steps and progress "
                "are given up for the sake of final reports",
                self._most,
            )
        self._overflowed = True

    def first(self, db: sqlite3.Connection) -> Report | None:
        """Return the unsent report with the lowest number, None if all were sent."""
        row = db.execute("SELECT body FROM outbox ORDER BY seq LIMIT 1").fetchone()
        if row is None:
            self._overflowed = False
        return read_report(row[0]) if row else None

    def forget(self, db: sqlite3.Connection, seq: int) -> None:
        db.execute("DELETE FROM outbox WHERE seq = ?", (seq,))

    def take(self, db: sqlite3.Connection, task_id: str | None) -> list[Report]:
        """Remove a task's reports, or those of all tasks, and return them in order."""
        rows = db.execute(
            "DELETE FROM outbox WHERE ? IS NULL OR task_id = ? RETURNING seq, body",
            (task_id, task_id),
        ).fetchall()
        return [read_report(body) for _, body in sorted(rows)]

    def _number(self, db: sqlite3.Connection) -> tuple[int, str]:
        """The next report's number, and the time it carries."""
        now = self._clock()
        (last,) = db.execute("SELECT last FROM sequence").fetchone()
        # Unix time keeps it growing even where the journal was lost.
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
