"""Tasks accepted, their state, and the outbox of reports that the broker hasn't confirmed.

A task is stored here before the broker may forget it, and a report is stored together with
the status it tells, so that a crash at any moment loses neither. Every public method is one
transaction, which is on the disk when the method returns. Methods may be called from any
thread. What a task does to backups is not known here. The last LSN of each lineage is kept
here too, because a volume that was rolled back can only be told from outside of it.
"""

import sqlite3
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

from agent.errors import Internal, JournalFull
from agent.journal.cancels import answered, ended_by, open_cancels, target_of
from agent.journal.children import children
from agent.journal.file import JournalFile
from agent.journal.form import read_task, report_bytes, task_bytes
from agent.journal.lineages import observe
from agent.journal.outbox import Outbox
from agent.model import CancelTask, Report, ReportDraft, Task, TaskStatus

# more than a task of 64 KiB takes with its first report
_ROOM_BYTES: Final = 256 * 1024


class Acceptance(Enum):
    """What became of a task that was offered to the journal."""

    NEW = "new"
    KNOWN = "known"


class InterruptedTask(NamedTuple):
    """A RUNNING task, its attempt at a backup ("" before there is one), how often it began."""

    task: Task
    attempt: str
    runs: int


class Journal:
    """The journal in the file `path`, which is made (mode 0600) where there is none.

    At most `max_tasks` unfinished tasks are held, and the last `keep_ended` ended ones, so
    that a repeated task id is answered; `max_outbox` unsent reports are held before steps
    and progress are given up for the sake of final ones. `clock` gives Unix seconds.
    `store` names the store that this run works with, `store_override` says that it was named for
    this run alone: the tasks of such a run are those of that store.
    Every method raises JournalError where the file can't be used.
    """

    def __init__(
        self,
        path: Path,
        instance_id: str,
        run_id: str,
        *,
        store: str = "",
        store_override: bool = False,
        clock: Callable[[], float] = time.time,
        max_tasks: int = 1000,
        max_outbox: int = 10_000,
        keep_ended: int = 10_000,
    ):
        self._outbox = Outbox(instance_id, run_id, clock=clock, most=max_outbox)
        self._store = store
        self._store_override = store_override
        self._max_tasks = max_tasks
        self._keep_ended = keep_ended
        self._file = JournalFile(path)

    def close(self) -> None:
        """Close the file; every change is on the disk already."""
        self._file.close()

    # --- tasks ---------------------------------------------------------------------------

    def accept(self, task: Task, *reports: ReportDraft, answer: bool = True) -> Acceptance:
        """Store a task with its first reports, in the status that the last of them tells.

        A task id that is known already is not stored again: its latest report goes out
        once more, if it is to be answered. JournalFull where `max_tasks` are unfinished or the
        outbox is full.
        """
        with self._file.transaction() as db:
            self._outbox.check(db)
            if self._repeated(db, task.task_id, answer=answer):
                return Acceptance.KNOWN
            if not reports[-1].status.final:
                self._check_tasks(db)
            db.execute(
                "INSERT INTO tasks (task_id, status, body, last_seq, last_report, store, cancels)"
                " VALUES (?, ?, ?, 0, '', ?, ?)",
                (
                    task.task_id,
                    reports[0].status,
                    task_bytes(task),
                    self._store if self._store_override else "",
                    target_of(task),
                ),
            )
            for report in reports:
                self._tell(db, report)
            return Acceptance.NEW

    def check_room(self) -> None:
        """Check that another task could be kept; JournalFull or JournalError if not.

        Room on the disk is tried out: what is written is as long as any task with its reports.
        """
        with self._file.transaction() as db:
            self._outbox.check(db)
            self._check_tasks(db)
        self._file.check_room(_ROOM_BYTES)

    def check_disk(self) -> None:
        """Check that the disk is not full; JournalError if it is."""
        self._file.check_disk(_ROOM_BYTES)

    def claim(self) -> Task | None:
        """The oldest ACCEPTED task, which is RUNNING from now on; None if there is none.

        Cancels aren't for the worker.
        """
        with self._file.transaction() as db:
            row = db.execute(
                "SELECT position, body FROM tasks WHERE status = ? AND cancels IS NULL"
                " ORDER BY position LIMIT 1",
                (TaskStatus.ACCEPTED,),
            ).fetchone()
            if row is None:
                return None
            db.execute(
                "UPDATE tasks SET status = ?, runs = runs + 1 WHERE position = ?",
                (TaskStatus.RUNNING, row[0]),
            )
            return read_task(row[1])

    def put_back(self, task_id: str, most_runs: int) -> bool:
        """Have a RUNNING task, of which nothing is left, claimed again: it keeps its place.

        False where it was claimed `most_runs` times already, or is to be cancelled.
        """
        with self._file.transaction() as db:
            changed = db.execute(
                "UPDATE tasks SET status = ?, attempt = '', record = NULL"
                " WHERE task_id = ? AND status = ? AND runs < ? AND NOT EXISTS"
                " (SELECT 1 FROM tasks AS other WHERE other.cancels = tasks.task_id"
                " AND other.ended IS NULL)",
                (TaskStatus.ACCEPTED, task_id, TaskStatus.RUNNING, most_runs),
            )
            return changed.rowcount == 1

    def running(self) -> list[InterruptedTask]:
        """The tasks that are RUNNING: at the start of an agent, those a crash cut off.

        Only those of this run's store: no other one can tell how they ended. Cancels aren't
        among them: they end with the task that they name.
        """
        with self._file.transaction() as db:
            rows = db.execute(
                "SELECT body, attempt, runs FROM tasks WHERE status = ? AND store IN (?, ?)"
                " AND cancels IS NULL ORDER BY position",
                (TaskStatus.RUNNING, self._store, self._store if self._store_override else ""),
            )
            return [InterruptedTask(read_task(body), *rest) for body, *rest in rows]

    def unfinished(self) -> int:
        """How many tasks have not ended."""
        with self._file.transaction() as db:
            return self._unfinished(db)

    def status(self, task_id: str) -> TaskStatus | None:
        """The status of a task; None for one that was never here or is forgotten."""
        with self._file.transaction() as db:
            return self._status(db, task_id)

    def has_ended(self, task_id: str) -> bool:
        """Return True if a task has had its final report, or is not known."""
        status = self.status(task_id)
        return status is None or status.final

    # --- cancels -------------------------------------------------------------------------

    def cancels(self, task_id: str | None = None) -> list[CancelTask]:
        """The cancels that have no answer yet: those of one task, or all."""
        with self._file.transaction() as db:
            return open_cancels(db, task_id)

    def cancel(self, cancel: CancelTask) -> bool:
        """Answer a cancel that was accepted, as far as is known here; whether its task runs.

        A task that nobody has claimed is CANCELLED by this, and its final report stored. One
        that runs is for the caller to stop: whatever ends it answers the cancel.
        """
        with self._file.transaction() as db:
            status = self._status(db, cancel.task_id)
            if status is None or status.final:
                return False
            said = ended_by(db, cancel)
            if said is None:
                return True
            self._tell(db, said)
            self._outbox.make_room(db)
            return False

    # --- reports -------------------------------------------------------------------------

    def report(self, draft: ReportDraft) -> None:
        """Set a task's status and put its report into the outbox.

        A progress report that was not sent yet is replaced by any later report of its task.
        What is said about a task after its end is dropped. Internal for an unknown task.
        """
        with self._file.transaction() as db:
            status = self._status(db, draft.task_id)
            if status is None:
                raise Internal(f"a report about the task {draft.task_id}, which isn't stored")
            if status.final:
                return
            self._tell(db, draft)
            self._outbox.make_room(db)

    def refuse(self, draft: ReportDraft) -> None:
        """Put a report into the outbox about a task that is not stored, and won't be.

        Where its id is that of a known task, what is true of that one is said once more instead.
        JournalFull where the outbox is full.
        """
        with self._file.transaction() as db:
            self._outbox.check(db)
            if not self._repeated(db, draft.task_id):
                self._outbox.put(db, draft)

    def keep_attempt(self, task_id: str, attempt: str) -> None:
        """Note the attempt of a create before anything of it is in the store."""
        with self._file.transaction() as db:
            db.execute("UPDATE tasks SET attempt = ? WHERE task_id = ?", (attempt, task_id))

    def keep_record(self, task_id: str, record_json: str) -> None:
        """Keep a record for a running task until that has ended.

        Of a create the finished one, which is about to be committed; of a delete the root's;
        of a restore that of the backup, of which a whole datadir is there.
        """
        with self._file.transaction() as db:
            db.execute("UPDATE tasks SET record = ? WHERE task_id = ?", (record_json, task_id))

    def forget_record(self, task_id: str) -> None:
        """Drop what `keep_record` kept; needs no room on the disk where that is nothing."""
        with self._file.transaction() as db:
            db.execute(
                "UPDATE tasks SET record = NULL WHERE task_id = ? AND record IS NOT NULL",
                (task_id,),
            )

    def kept_record(self, task_id: str) -> str | None:
        """The record kept by `keep_record`, exactly as it was given."""
        with self._file.transaction() as db:
            row = db.execute("SELECT record FROM tasks WHERE task_id = ?", (task_id,)).fetchone()
            return row[0] if row else None

    def children(self) -> dict[str, str]:
        """Return the parent of each incremental that a task made or is to make."""
        with self._file.transaction() as db:
            return children(db)

    def next_report(self) -> Report | None:
        """Return the unsent report with the lowest number, None if all were sent."""
        with self._file.transaction() as db:
            return self._outbox.first(db)

    def sent(self, seq: int) -> None:
        """Take a report that the broker confirmed out of the outbox."""
        with self._file.transaction() as db:
            self._outbox.forget(db, seq)

    def take_reports(self, task_id: str | None = None) -> list[Report]:
        """Take a task's unsent reports out of the outbox, or those of all tasks; in order.

        For whoever does a task without a broker, and shows what would have been sent.
        """
        with self._file.transaction() as db:
            return self._outbox.take(db, task_id)

    # --- lineage -------------------------------------------------------------------------

    def observe_lsn(self, lineage_key: str, lsn: int) -> str:
        """Note a datadir's LSN; return its generation, "" until the LSN is seen to go back.

        An LSN lower than the last one noted means that the volume was rolled back: what is
        written from then on is another history, and gets a generation of its own.
        """
        with self._file.transaction() as db:
            return observe(db, lineage_key, lsn)

    # --- inside a transaction ------------------------------------------------------------

    def _tell(self, db: sqlite3.Connection, draft: ReportDraft) -> None:
        report = self._outbox.put(db, draft)
        ended = report.seq if report.status.final else None
        db.execute(
            "UPDATE tasks SET status = ?, last_seq = ?, last_report = ?, ended = ?,"
            " record = CASE WHEN ? THEN NULL ELSE record END,"
            " body = CASE WHEN ? THEN '' ELSE body END WHERE task_id = ?",
            (
                report.status,
                report.seq,
                report_bytes(report),
                ended,
                ended is not None,
                ended is not None,
                report.task_id,
            ),
        )
        if ended is not None:
            for cancel in open_cancels(db, report.task_id):
                self._tell(db, answered(cancel, report.status))
            self._forget(db)

    def _repeated(self, db: sqlite3.Connection, task_id: str, *, answer: bool = True) -> bool:
        """Whether a task is known; its latest report goes out once more, if to be answered."""
        row = db.execute(
            "SELECT last_seq, last_report FROM tasks WHERE task_id = ?", (task_id,)
        ).fetchone()
        if row is None or not answer:
            return row is not None
        seq = self._outbox.repeat(db, *row)
        db.execute("UPDATE tasks SET last_seq = ? WHERE task_id = ?", (seq, task_id))
        return True

    def _forget(self, db: sqlite3.Connection) -> None:
        db.execute(
            "DELETE FROM tasks WHERE ended <= (SELECT ended FROM tasks WHERE ended IS NOT NULL"
            " ORDER BY ended DESC LIMIT 1 OFFSET ?)",
            (self._keep_ended,),
        )

    def _check_tasks(self, db: sqlite3.Connection) -> None:
        if self._unfinished(db) >= self._max_tasks:
            raise JournalFull(f"the journal is full: {self._max_tasks} tasks are unfinished")

    def _status(self, db: sqlite3.Connection, task_id: str) -> TaskStatus | None:
        row = db.execute("SELECT status FROM tasks WHERE task_id = ?", (task_id,)).fetchone()
        return TaskStatus(row[0]) if row else None

    def _unfinished(self, db: sqlite3.Connection) -> int:
        (count,) = db.execute("SELECT count(*) FROM tasks WHERE ended IS NULL").fetchone()
        return int(count)
