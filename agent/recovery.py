"""Tasks whose end only the store can tell: a crash cut them off, or it fell silent on them.

They stay here until the store has answered, and then get their one final report. A delete
that was cut off is done again instead, which continues it.
"""

import logging
from typing import Protocol

from agent.crash import Point, reached
from agent.errors import AgentError, Cancelled, Interrupted, StoreBusy, StoreUnreachable
from agent.journal import Journal
from agent.model import BackupStatus, CreateTask, DeleteTask, ErrorInfo, Record, Task, TaskStatus
from agent.operations.abandon import abandon_record
from agent.operations.commit import resume_commit
from agent.operations.parts import BackupParts

log = logging.getLogger(__name__)


class Tell(Protocol):
    """Puts a report about a task into the journal."""

    def __call__(
        self,
        task: Task,
        status: TaskStatus,
        *,
        record: Record | None = None,
        error: ErrorInfo | None = None,
    ) -> None: ...


def silent(problem: AgentError) -> bool:
    """Whether it only says that the store doesn't answer for now."""
    return isinstance(problem, StoreUnreachable | StoreBusy)


class Recovery:
    """The tasks that wait for the store, at first those that were RUNNING at the start."""

    def __init__(self, journal: Journal, parts: BackupParts, tell: Tell) -> None:
        self._journal = journal
        self._parts = parts
        self._tell = tell
        crashed = ErrorInfo.of(Interrupted("the agent ended while the task ran"))
        self._waiting = [(task, crashed) for task in journal.running()]

    def add(self, task: Task, info: ErrorInfo) -> None:
        """Keep a task that failed with `info` as far as is known."""
        self._waiting.append((task, info))

    def run(self) -> None:
        """Report how the tasks ended; keep those of which the store still says nothing."""
        self._waiting = [one for one in self._waiting if not self._told(*one)]

    def take_deletes(self) -> list[DeleteTask]:
        """The deletes to be done again now; one that the store is silent about is added back."""
        deletes = [task for task, _ in self._waiting if isinstance(task, DeleteTask)]
        self._waiting = [one for one in self._waiting if not isinstance(one[0], DeleteTask)]
        return deletes

    def _told(self, task: Task, info: ErrorInfo) -> bool:
        if isinstance(task, DeleteTask):
            return False
        record = None
        try:
            if isinstance(task, CreateTask):
                record = self._settled(task, info)
        except AgentError as problem:
            log.warning("backup of task %s is not cleaned up: %s", task.task_id, problem)
            if silent(problem):
                return False
        reached(Point.RECOVERED)
        if record is not None and record.status is BackupStatus.COMPLETED:
            self._tell(task, TaskStatus.DONE, record=record)
        else:
            info = record.error if record and record.error else info
            cancelled = info.code == Cancelled.code
            status = TaskStatus.CANCELLED if cancelled else TaskStatus.FAILED
            self._tell(task, status, record=record, error=info)
        return True

    def _settled(self, task: CreateTask, info: ErrorInfo) -> Record | None:
        """The record as it is to stay: a commit that had begun is brought to its end."""
        self._parts.store.open(create=False)
        record = self._parts.catalogue.read(task.backup.id)
        if record is None or record.instance_id != self._parts.instance_id:
            return None
        if record.status is BackupStatus.DELETING:
            return record
        if record.status is BackupStatus.COMPLETED and self._parts.catalogue.keeps(record):
            return record
        journalled = self._journal.kept_record(task.task_id)
        if journalled and record.status is BackupStatus.BUILDING:
            try:
                return resume_commit(self._parts, journalled)
            except AgentError as problem:
                if silent(problem):
                    raise
                log.warning("backup %s can't be completed: %s", record.id, problem)
        return abandon_record(self._parts, record, record.error or info, remove=not journalled)
