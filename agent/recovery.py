"""Tasks whose end only the store can tell: a crash cut them off, or it fell silent on them.

They stay here until the store has answered, and then get their one final report. A delete
that was cut off is done again instead, which continues it; and so are a create and a restore
that ask for it, once nothing is left of them.

What was reported already and could not be cleaned up is kept in memory only: after a restart it
is left to `backup-agent gc`.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from agent.crash import Point, reached
from agent.engine.checkpoints import read_checkpoints
from agent.engine.os_user import owner_of
from agent.errors import (
    AgentError,
    Cancelled,
    Interrupted,
    JournalError,
    StoreBusy,
    StoreFull,
    StoreUnreachable,
    TokenLost,
)
from agent.host import nearest
from agent.journal import CutOff, Journal, cancellation
from agent.model import (
    BackupStatus,
    CreateTask,
    DeleteTask,
    ErrorInfo,
    Record,
    RestoreTask,
    Task,
    TaskStatus,
)
from agent.operations.abandon import abandon_record, remove_attempt
from agent.operations.commit import as_kept, resume_commit
from agent.operations.parts import BackupParts
from agent.operations.target import Work, resolved
from agent.reporter import Reporter
from agent.task_stores import TaskStores

log = logging.getLogger(__name__)

# How often a task is begun at most: one that ends the agent each time must not do so for ever.
MOST_RUNS: Final = 3


class _Waiting(NamedTuple):
    """A task, its attempt if it made one, and what it failed with as far as is known."""

    task: Task
    attempt: str
    info: ErrorInfo


def silent(problem: BaseException) -> bool:
    """Whether it only says that the store doesn't answer for now."""
    return isinstance(problem, StoreUnreachable | StoreBusy)


class Recovery:
    """The tasks that wait for the store, at first those that were RUNNING at the start.

    `restore_roots` are the folders that restores may write below.
    """

    def __init__(
        self,
        journal: Journal,
        stores: TaskStores,
        reporter: Reporter,
        restore_roots: Sequence[Path],
    ) -> None:
        self._journal = journal
        self._stores = stores
        self._reporter = reporter
        self._restore_roots = restore_roots
        self._waiting = [
            _Waiting(one.task, one.attempt, self._cause(one)) for one in journal.running()
        ]

    def _cause(self, one: CutOff) -> ErrorInfo:
        lost = self._stores.lost(one.task)
        return _interrupted(one) if lost is None else ErrorInfo.of(lost)

    def add(self, task: Task, info: ErrorInfo, attempt: str = "") -> None:
        """Keep a task that failed with `info` as far as is known."""
        self._waiting.append(_Waiting(task, attempt, info))

    def run(self) -> None:
        """Report how the tasks ended; keep those of which the store still says nothing.

        JournalError where the journal can't be used; what it wasn't told is kept.
        """
        for one in list(self._waiting):
            if self._told(one):
                self._waiting.remove(one)

    def take_deletes(self) -> Iterator[DeleteTask]:
        """The deletes to be done again now; one that the store is silent about is added back."""
        for one in list(self._waiting):
            if isinstance(one.task, DeleteTask):
                self._waiting.remove(one)
                yield one.task

    def again(self, task: Task, record: Record | None) -> bool:
        """Put a task that the agent's end cut off back, if it asks for that; whether it did.

        Not while `record`, which is what it has left, may still become a good backup.
        """
        if not isinstance(task, CreateTask | RestoreTask) or not task.retry:
            return False
        if record is not None and not _cut_off(record):
            return False
        if self._journal.kept_record(task.task_id) is not None:
            # the write of its COMPLETED record may be under way to the store
            return False
        if not self._journal.put_back(task.task_id, MOST_RUNS):
            return False
        log.warning("task %s was cut off, and is begun again", task.task_id)
        return True

    def _told(self, one: _Waiting) -> bool:
        if isinstance(one.task, DeleteTask):
            return False
        for cancel in self._journal.cancels(one.task.task_id):
            one = one._replace(info=ErrorInfo.of(cancellation(cancel)))
        record, clean, full = None, False, False
        try:
            record = self._settled(one)
            clean = True
        except TokenLost as problem:
            one = one._replace(info=ErrorInfo.of(problem))
        except JournalError:
            raise
        except AgentError as problem:
            log.warning("task %s is not cleaned up: %s", one.task.task_id, problem)
            if silent(problem):
                return False
            # told now, and cleaned up when there is room: for that its bytes went already
            journalled = self._journal.kept_record(one.task.task_id) is not None
            full = isinstance(problem, StoreFull) and not journalled
        reached(Point.RECOVERED)
        cut_off = clean and one.info.code == Interrupted.code
        if not (cut_off and self.again(one.task, record)):
            self._end(one, record)
        return not full

    def _end(self, one: _Waiting, record: Record | None) -> None:
        if record is not None and record.status is BackupStatus.COMPLETED:
            self._reporter.tell(one.task, TaskStatus.DONE, record=record)
            return
        info = record.error if record and record.error else one.info
        cancelled = info.code == Cancelled.code
        status = TaskStatus.CANCELLED if cancelled else TaskStatus.FAILED
        self._reporter.tell(one.task, status, record=record, error=info)

    def _settled(self, one: _Waiting) -> Record | None:
        """What is left of the task: a COMPLETED record where it was done."""
        if isinstance(one.task, RestoreTask):
            return self._settled_restore(one.task)
        if not isinstance(one.task, CreateTask) or not one.attempt:
            return None
        with self._stores.parts(one.task) as parts:
            parts.store.open(create=False)
            return self._settled_create(one.task, parts, one.attempt, one.info)

    def _settled_create(
        self, task: CreateTask, parts: BackupParts, attempt: str, info: ErrorInfo
    ) -> Record | None:
        """The record as it is to stay: a commit that had begun is brought to its end."""
        record = parts.catalogue.read(task.backup.id)
        journalled = self._journal.kept_record(task.task_id)
        if record is None or record.attempt != attempt:
            if not journalled:
                # it never was this attempt's, or isn't any more: it can't be committed
                remove_attempt(parts, task.backup.id, attempt, info)
            return None
        if record.status is BackupStatus.DELETING:
            return record
        if record.status is BackupStatus.COMPLETED and parts.catalogue.keeps(record):
            return record
        if journalled and record.status is BackupStatus.BUILDING:
            try:
                return resume_commit(parts, journalled)
            except AgentError as problem:
                if silent(problem):
                    raise
                log.warning("backup %s can't be completed: %s", record.id, problem)
        return abandon_record(parts, record, record.error or info, remove=not journalled)

    def _settled_restore(self, task: RestoreTask) -> Record | None:
        """The record of the backup whose datadir is there as a whole; else nothing is left there.

        What is removed has the task's own id in its name, whatever else is in the target now.
        """
        target = resolved(self._restore_roots, Path(task.target))
        work = Work(target, task.task_id, owner_of(nearest(target)))
        kept = self._journal.kept_record(task.task_id)
        if kept is None:
            work.remove()
            return None
        work.move_up()
        work.as_user(lambda: read_checkpoints(target))
        return as_kept(kept)


def _cut_off(record: Record) -> bool:
    """Whether the backup failed for no other reason than the agent's end."""
    if record.status is not BackupStatus.FAILED or record.error is None:
        return False
    return record.error.code == Interrupted.code


def _interrupted(one: CutOff) -> ErrorInfo:
    how_often = f" in each of its {one.runs} runs" if one.runs > 1 else " while the task ran"
    return ErrorInfo.of(Interrupted(f"the agent ended{how_often}"))
