"""Tasks whose end only the store can tell: a crash cut them off, or it fell silent on them.

They stay here until the store has answered, and then get their one final report. A delete
that was cut off is done again instead, which continues it; and so are a create and a restore
that ask for it, once nothing is left of them.

What was reported already and could not be cleaned up is kept in memory only: after a restart it
is left to `backup-agent gc`.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

from agent.crash_points import Point, reached
from agent.engine.checkpoints import read_checkpoints
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
from agent.journal import InterruptedTask, Journal, cancellation
from agent.machine.host import nearest
from agent.machine.os_user import owner_of
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
from agent.operations.backup.abandon import abandon_record, remove_attempt
from agent.operations.backup.commit import as_kept, resume_commit
from agent.operations.resources import BackupResources
from agent.operations.restore.target import RestoreWorkdir, resolved
from agent.tasks.reports import Reporter
from agent.tasks.stores import TaskStores

log = logging.getLogger(__name__)

# How often a task is begun at most: one that ends the agent each time must not do so for ever.
MOST_RUNS: Final = 3
# Seconds between two tries to clean up in a store that is full.
_FIRST_PAUSE: Final = 5.0
_LONGEST_PAUSE: Final = 300.0


@dataclass(eq=False)
class _Waiting:
    """A task, its attempt if it made one, and what it failed with as far as is known.

    `told` says that it has had its final report: only what is left of it waits, for room in the
    store. That was lacking `tries` times; not before `due` (monotonic seconds) it is tried again.
    `logged` is why it waits, as the log has it.
    """

    task: Task
    attempt: str
    info: ErrorInfo
    told: bool = False
    tries: int = 0
    due: float = 0.0
    logged: str = ""

    def postpone(self) -> None:
        """Have it wait, twice as long each time."""
        self.due = monotonic() + min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self.tries, 16))
        self.tries += 1

    def log(self, problem: AgentError) -> None:
        """Log why it waits, once while that is the same."""
        if str(problem) != self.logged:
            log.warning("task %s is not cleaned up: %s", self.task.task_id, problem)
        self.logged = str(problem)


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

    def _cause(self, one: InterruptedTask) -> ErrorInfo:
        lost = self._stores.lost(one.task)
        return _interrupted(one) if lost is None else ErrorInfo.of(lost)

    def add(self, task: Task, info: ErrorInfo, attempt: str = "", *, told: bool = False) -> None:
        """Keep a task that failed with `info` as far as is known.

        `told`: its final report says so, and there is only something left to be removed.
        """
        self._waiting.append(_Waiting(task, attempt, info, told))

    def run(self) -> None:
        """Report how the tasks ended; keep those of which the store still says nothing.

        JournalError where the journal can't be used; what it wasn't told is kept.
        """
        for one in list(self._waiting):
            if monotonic() >= one.due and self._settle_and_report(one):
                self._waiting.remove(one)

    def take_deletes(self) -> Iterator[DeleteTask]:
        """The deletes to be done again now; one that the store is silent about is added back."""
        for one in list(self._waiting):
            if isinstance(one.task, DeleteTask):
                self._waiting.remove(one)
                yield one.task

    def requeue(self, task: Task, record: Record | None) -> bool:
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

    def _settle_and_report(self, one: _Waiting) -> bool:
        """Clean up and report a task; return whether there is nothing more to be done for it."""
        if isinstance(one.task, DeleteTask):
            return False
        task_id, info = one.task.task_id, one.info
        for cancel in self._journal.cancels(task_id):
            info = ErrorInfo.of(cancellation(cancel))
        record, clean, full = None, False, False
        try:
            record = self._settled(one, info)
            clean = True
        except TokenLost as problem:
            info = ErrorInfo.of(problem)
        except JournalError:
            raise
        except AgentError as problem:
            one.log(problem)
            if silent(problem):
                return False
            # told now, and cleaned up when there is room: for that its bytes went already
            full = isinstance(problem, StoreFull) and self._journal.kept_record(task_id) is None
        reached(Point.RECOVERED)
        cut_off = clean and info.code == Interrupted.code
        # of a task that has ended the journal may know nothing any more
        if not (one.told or (cut_off and self.requeue(one.task, record))):
            self._end(one.task, info, record)
        if full:
            one.told = True
            one.postpone()
        return not full

    def _end(self, task: Task, info: ErrorInfo, record: Record | None) -> None:
        if record is not None and record.status is BackupStatus.COMPLETED:
            self._reporter.tell(task, TaskStatus.DONE, record=record)
            return
        info = record.error if record and record.error else info
        cancelled = info.code == Cancelled.code
        status = TaskStatus.CANCELLED if cancelled else TaskStatus.FAILED
        self._reporter.tell(task, status, record=record, error=info)

    def _settled(self, one: _Waiting, info: ErrorInfo) -> Record | None:
        """What is left of the task: a COMPLETED record where it was done."""
        if isinstance(one.task, RestoreTask):
            return self._settled_restore(one.task)
        if not isinstance(one.task, CreateTask) or not one.attempt:
            return None
        with self._stores.resources(one.task) as resources:
            resources.store.open(create=False)
            return self._settled_create(one.task, resources, one.attempt, info)

    def _settled_create(
        self, task: CreateTask, resources: BackupResources, attempt: str, info: ErrorInfo
    ) -> Record | None:
        """The record as it is to stay: a commit that had begun is brought to its end."""
        record = resources.catalogue.read(task.backup.id)
        journalled = self._journal.kept_record(task.task_id)
        if record is None or record.attempt != attempt:
            if not journalled:
                # it never was this attempt's, or isn't any more: it can't be committed
                remove_attempt(resources, task.backup.id, attempt, info)
            return None
        if record.status is BackupStatus.DELETING:
            return record
        if record.status is BackupStatus.COMPLETED and resources.catalogue.verify_or_condemn(
            record
        ):
            return record
        if journalled and record.status is BackupStatus.BUILDING:
            try:
                return resume_commit(resources, journalled)
            except AgentError as problem:
                if silent(problem):
                    raise
                log.warning("backup %s can't be completed: %s", record.id, problem)
        return abandon_record(resources, record, record.error or info, remove=not journalled)

    def _settled_restore(self, task: RestoreTask) -> Record | None:
        """The record of the backup whose datadir is there as a whole; else nothing is left there.

        What is removed has the task's own id in its name, whatever else is in the target now.
        """
        target = resolved(self._restore_roots, Path(task.target))
        work = RestoreWorkdir(target, task.task_id, owner_of(nearest(target)))
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


def _interrupted(one: InterruptedTask) -> ErrorInfo:
    how_often = f" in each of its {one.runs} runs" if one.runs > 1 else " while the task ran"
    return ErrorInfo.of(Interrupted(f"the agent ended{how_often}"))
