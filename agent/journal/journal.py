"""The journal: accepted tasks, their status, and the outbox of unconfirmed reports.

A task is stored here before the broker may forget it. A report is stored together with the status
that it reports. So a crash at any moment loses neither. Every method that changes tasks or reports
is one transaction, which is on the disk when the method returns. Methods may be called from any
thread. The journal also keeps the last LSN of each lineage, because the rollback of a volume can be
seen only from outside of it.
"""

import sqlite3
import time
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from agent.errors import Internal, JournalFull
from agent.journal.cancels import answer_report, ended_by, open_cancels
from agent.journal.file import JournalFile
from agent.journal.form import read_task, report_bytes, task_bytes
from agent.journal.labels import NO_TASK
from agent.journal.lineages import observe
from agent.journal.outbox import Outbox
from agent.journal.parents import parents
from agent.journal.totals import add_stages, count_end
from agent.model import CancelTask, Report, ReportDraft, StageTotal, Task, TaskStatus

# In bytes. A task of 64 KiB with its first report takes less.
_ROOM_BYTES: Final = 256 * 1024


class Acceptance(Enum):
    """The result of offering a task to the journal, which may know it already."""

    NEW = "new"
    KNOWN = "known"


class InterruptedTask(NamedTuple):
    """A task that was RUNNING when its agent ended.

    `attempt` is the id of its backup attempt, or "" if it made none. `runs` is how often it began.
    """

    task: Task
    attempt: str
    runs: int


class Journal:
    """The journal in the file `path`, which is created (mode 0600) if it does not exist.

    Every method raises JournalError if the file can't be used.
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
        """Open the file for one run of an agent.

        Args:
            store: the store that this run works with.
            store_override: the store was named for this run only. The tasks of such a run belong
                to that store.
            clock: the time in Unix seconds.
            max_tasks: how many unfinished tasks are held at most.
            max_outbox: how many unsent reports are held before steps and progress are dropped in
                favour of final reports.
            keep_ended: how many ended tasks are kept, to answer a repeated task id.
        """
        self._outbox = Outbox(instance_id, run_id, clock=clock, most=max_outbox)
        self._store = store
        self._store_override = store_override
        self._max_tasks = max_tasks
        self._keep_ended = keep_ended
        self._file = JournalFile(path)

    def close(self) -> None:
        """Close the file.

        Every change is on the disk already.
        """
        self._file.close()

    # --- tasks ---------------------------------------------------------------------------

    def accept(self, task: Task, *reports: ReportDraft, answer: bool = True) -> Acceptance:
        """Store a task with its first reports, and with the status of the last of them.

        A known task id is not stored again. If `answer` is set, its latest report is sent once
        more.

        Raises:
            JournalFull: `max_tasks` tasks are unfinished, or the outbox is full.
        """
        with self._file.transaction() as db:
            self._outbox.check(db)
            if self._repeat_if_known(db, task.task_id, answer=answer):
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
                    task.cancelled_id,
                ),
            )
            for report in reports:
                self._tell(db, report)
            return Acceptance.NEW

    def try_room(self) -> None:
        """Raise JournalFull or JournalError if the journal could not take another task.

        The room on the disk is tested by a write of more bytes than a task and its first report
        take.
        """
        with self._file.transaction() as db:
            self._outbox.check(db)
            self._check_tasks(db)
        self._file.try_room(_ROOM_BYTES)

    def check_disk(self) -> None:
        """Raise JournalError if the disk is full."""
        self._file.check_disk(_ROOM_BYTES)

    def claim(self) -> Task | None:
        """Mark the oldest ACCEPTED task as RUNNING and return it, or None if there is none.

        Cancels are left out, because the worker does not perform them.
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

    def requeue(self, task_id: str, most_runs: int) -> bool:
        """Mark a RUNNING task as ACCEPTED again, in its old place, and return True on success.

        The caller makes sure that nothing is left of the interrupted run. The task stays RUNNING if
        it was claimed `most_runs` times already, or has an open cancel.
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
        """Return the RUNNING tasks, which a crash interrupted if the agent has just started.

        Only tasks of this run's store are returned, because no other store can tell how they ended.
        Cancels are left out, because they end with the task that they name.
        """
        with self._file.transaction() as db:
            rows = db.execute(
                "SELECT body, attempt, runs FROM tasks WHERE status = ? AND store IN (?, ?)"
                " AND cancels IS NULL ORDER BY position",
                (TaskStatus.RUNNING, self._store, self._store if self._store_override else ""),
            )
            return [InterruptedTask(read_task(body), *rest) for body, *rest in rows]

    def unfinished(self) -> int:
        """Return the number of unfinished tasks."""
        with self._file.transaction() as db:
            return self._unfinished(db)

    def status(self, task_id: str) -> TaskStatus | None:
        """Return the status of a task, or None if it was never stored or is forgotten."""
        with self._file.transaction() as db:
            return self._status(db, task_id)

    def has_ended(self, task_id: str) -> bool:
        """Return True if a task has had its final report, or is not known."""
        status = self.status(task_id)
        return status is None or status.final

    # --- cancels -------------------------------------------------------------------------

    def cancels(self, task_id: str | None = None) -> list[CancelTask]:
        """Return the unanswered cancels of one task, or of all tasks."""
        with self._file.transaction() as db:
            return open_cancels(db, task_id)

    def cancel(self, cancel: CancelTask) -> bool:
        """Answer an accepted cancel if the journal can, and return True if its task runs.

        A task that was not claimed becomes CANCELLED, with its final report. The caller has to stop
        a running task, and the end of that task answers the cancel.
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

    def report(
        self, draft: ReportDraft, stages: Mapping[str, StageTotal] = MappingProxyType({})
    ) -> None:
        """Set a task's status and put its report into the outbox.

        Each report replaces an unsent progress report of its task. A report after the task's end
        is dropped. `stages` is added to the totals of the data path's stages in any case.

        Raises:
            Internal: the task is unknown.
        """
        with self._file.transaction() as db:
            status = self._status(db, draft.task_id)
            if status is None:
                raise Internal(f"a report about the task {draft.task_id}, which isn't stored")
            add_stages(db, stages)
            if status.final:
                return
            self._tell(db, draft)
            self._outbox.make_room(db)

    def refuse(self, draft: ReportDraft) -> None:
        """Put a report into the outbox about a task that is not stored.

        If a known task has the same id, the latest report of that task is sent again instead.

        Raises:
            JournalFull: the outbox is full.
        """
        with self._file.transaction() as db:
            self._outbox.check(db)
            if not self._repeat_if_known(db, draft.task_id):
                count_end(db, self._outbox.put(db, draft), task_type=NO_TASK)

    def keep_attempt(self, task_id: str, attempt: str) -> None:
        """Note the attempt of a create, before the store has any object of it."""
        with self._file.transaction() as db:
            db.execute("UPDATE tasks SET attempt = ? WHERE task_id = ?", (attempt, task_id))

    def keep_note(self, task_id: str, text: str) -> None:
        """Keep a text for a running task until its end.

        A create keeps the finished record that it commits next. A delete keeps its root's record
        and the ids of the backups that it deletes. A restore keeps the record of its backup when
        the whole datadir is on the disk.
        """
        with self._file.transaction() as db:
            db.execute("UPDATE tasks SET record = ? WHERE task_id = ?", (text, task_id))

    def forget_note(self, task_id: str) -> None:
        """Drop the kept text, if there is one.

        If there is none, no room on the disk is needed.
        """
        with self._file.transaction() as db:
            db.execute(
                "UPDATE tasks SET record = NULL WHERE task_id = ? AND record IS NOT NULL",
                (task_id,),
            )

    def kept_note(self, task_id: str) -> str | None:
        """Return exactly the text that `keep_note` was given, or None if there is none."""
        with self._file.transaction() as db:
            row = db.execute("SELECT record FROM tasks WHERE task_id = ?", (task_id,)).fetchone()
            return row[0] if row else None

    def parents(self) -> dict[str, str]:
        """Return the parent of each incremental that a task made or will make."""
        with self._file.transaction() as db:
            return parents(db)

    def next_report(self) -> Report | None:
        """Return the unsent report with the lowest number, or None if all were sent.

        Damaged reports before it are dropped.
        """
        with self._file.transaction() as db:
            return self._outbox.first(db)

    def sent(self, seq: int) -> None:
        """Remove a report that the broker confirmed from the outbox."""
        with self._file.transaction() as db:
            self._outbox.forget(db, seq)

    def take_reports(self, task_id: str | None = None) -> list[Report]:
        """Remove the unsent reports of one task, or of all, from the outbox, and return them.

        They are in order. A command that does a task without a broker shows them instead of sending
        them.
        """
        with self._file.transaction() as db:
            return self._outbox.take(db, task_id)

    # --- lineage -------------------------------------------------------------------------

    def observe_lsn(self, lineage_key: str, lsn: int) -> str:
        """Note a datadir's LSN, and return its generation, "" as long as the LSN never went back.

        An LSN lower than the last one means that the volume was rolled back. From then on the
        datadir has another history, which gets its own generation.
        """
        with self._file.transaction() as db:
            return observe(db, lineage_key, lsn)

    # --- totals --------------------------------------------------------------------------

    def add_stages(self, more: Mapping[str, StageTotal]) -> None:
        """Add the work of a run of the data path to the totals of its stages."""
        with self._file.transaction() as db:
            add_stages(db, more)

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
            count_end(db, report)
            for cancel in open_cancels(db, report.task_id):
                self._tell(db, answer_report(cancel, report.status))
            self._forget(db)

    def _repeat_if_known(
        self, db: sqlite3.Connection, task_id: str, *, answer: bool = True
    ) -> bool:
        """Return True if a task is known.

        If `answer` is set, send the latest report of a known task once more.
        """
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
