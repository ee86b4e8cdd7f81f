"""Do one task, from its first report to its final one.

This is the task boundary: whatever a task raises becomes its FAILED report here.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from agent.crash import Point, reached
from agent.errors import (
    AgentError,
    BackupUnknown,
    Cancelled,
    Interrupted,
    StoreError,
    TaskUnsupported,
)
from agent.journal import Journal
from agent.model import (
    BackupStatus,
    CreateTask,
    DeleteTask,
    ErrorInfo,
    PingTask,
    Record,
    ReportDraft,
    RestoreTask,
    Task,
    TaskStatus,
)
from agent.operations.backup import BackupOperation
from agent.operations.delete import DeleteOperation
from agent.operations.parts import BackupParts
from agent.operations.restore import RestoreOperation
from agent.operations.target import target_below
from agent.pipeline.meter import Meter, every
from agent.pipeline.stop import Stop
from agent.recovery import Recovery, silent

log = logging.getLogger(__name__)


class _Undecided(Exception):
    """Nobody knows how a task ended until the store answers again, or it is done again."""


class _Abandoned(Exception):
    """A backup failed, for the cause that this is raised from; `record` is what is left of it."""

    def __init__(self, record: Record | None) -> None:
        super().__init__()
        self.record = record


class Performer:
    """Does tasks that the journal holds; `wake` is called whenever there is something to send."""

    def __init__(
        self,
        journal: Journal,
        parts: BackupParts,
        *,
        restore_roots: Sequence[Path],
        progress_seconds: float,
        wake: Callable[[], None],
    ) -> None:
        self._journal = journal
        self._parts = parts
        self._restore_roots = restore_roots
        self._progress_seconds = progress_seconds
        self._wake = wake
        self._ending = False
        self._making: BackupOperation | None = None
        self.recovery = Recovery(journal, parts, self._report)

    def end(self) -> None:
        """The agent is ending: what the store doesn't answer now waits for the next start."""
        self._ending = True

    def make_way(self, deleted: str) -> None:
        """Cancel the running backup where it is the one to be deleted or descends from it."""
        making = self._making
        if making is not None:
            making.make_way(deleted)

    def perform(self, task: Task, stop: Stop) -> None:
        """Run one task to its final report; nothing it raises gets out of here."""
        log.info("task %s (%s) begins", task.task_id, task.type)
        try:
            record = self._dispatch(task, stop)
        except _Undecided as error:
            info = ErrorInfo.of(error.__cause__ or error)
            if isinstance(error.__cause__, Interrupted):
                log.info("task %s goes on at the next start: %s", task.task_id, info.message)
            else:
                log.error("task %s waits for the store: %s", task.task_id, info.message)
            self.recovery.add(task, info)
        except _Abandoned as failed:
            self._failed(task, failed.__cause__ or failed, failed.record)
        except BaseException as error:  # noqa: BLE001 - the task boundary
            self._failed(task, error, None)
        else:
            self._report(task, TaskStatus.DONE, record=record)
            log.info("task %s is done", task.task_id)

    def _failed(self, task: Task, error: BaseException, record: Record | None) -> None:
        info = ErrorInfo.of(error)
        status = TaskStatus.FAILED
        if isinstance(error, Cancelled):
            status = TaskStatus.CANCELLED
            log.warning("task %s is cancelled: %s", task.task_id, info.message)
        elif isinstance(error, AgentError):
            log.error("task %s failed: %s: %s", task.task_id, info.code, info.message)
        else:
            log.exception("task %s failed by a defect of the agent", task.task_id)
        self._report(task, status, record=record, error=info)

    def _dispatch(self, task: Task, stop: Stop) -> Record | None:
        if isinstance(task, CreateTask):
            return self._create(task, stop)
        if isinstance(task, RestoreTask):
            return self._restore(task, stop)
        if isinstance(task, DeleteTask):
            return self._delete(task, stop)
        if isinstance(task, PingTask):
            return None
        raise TaskUnsupported(f"tasks of type {task.type} are not supported")

    def _create(self, task: CreateTask, stop: Stop) -> Record:
        meter = Meter()
        operation = BackupOperation(
            self._parts,
            task,
            meter=meter,
            stop=stop,
            observe_lsn=self._journal.observe_lsn,
            on_begin=lambda record: self._report(task, TaskStatus.RUNNING, record=record),
            on_finished=lambda record: self._journal.keep_record(
                task.task_id, record.model_dump_json()
            ),
        )
        self._making = operation
        try:
            with self._reporting(task, meter, lambda: operation.record):
                return operation.run()
        except BaseException as error:
            left = self._abandon(task, operation, error)
            if left and left.status is BackupStatus.COMPLETED:
                return left
            raise _Abandoned(left) from error
        finally:
            self._making = None

    def _abandon(
        self, task: Task, operation: BackupOperation, error: BaseException
    ) -> Record | None:
        try:
            return operation.abandon(ErrorInfo.of(error))
        except AgentError as problem:
            log.warning("the failed backup could not be cleaned up: %s", problem)
            if silent(problem) and (operation.undecided or self._ending):
                raise _Undecided from error
            if silent(problem):
                # reported as FAILED now, and cleaned up when the store answers
                self.recovery.add(task, ErrorInfo.of(error))
            return operation.record

    def _restore(self, task: RestoreTask, stop: Stop) -> Record:
        target = target_below(self._restore_roots, Path(task.target))
        meter = Meter()
        operation = RestoreOperation(self._parts, meter=meter, stop=stop)
        self._report(task, TaskStatus.RUNNING)
        with self._reporting(task, meter, lambda: None):
            return operation.run(task.backup_id, target)[-1]

    def _delete(self, task: DeleteTask, stop: Stop) -> Record:
        """Delete, or go on with a delete that was cut off: once begun it is brought to its end."""
        meter = Meter()
        root = self._begun(task)

        def begin(record: Record) -> None:
            nonlocal root
            root = record
            self._journal.keep_record(task.task_id, record.model_dump_json())
            self._report(task, TaskStatus.RUNNING, record=record)

        operation = DeleteOperation(
            self._parts.store,
            self._parts.catalogue,
            connections=self._parts.path.connections,
            meter=meter,
            stop=stop,
            on_begin=begin,
        )
        try:
            with self._reporting(task, meter, lambda: root):
                return operation.run(task.backup_id)
        except BackupUnknown:
            if root is None:
                raise
            return root
        except (StoreError, Interrupted) as error:
            if root is not None and (silent(error) or isinstance(error, Interrupted)):
                raise _Undecided from error
            raise

    def _begun(self, task: DeleteTask) -> Record | None:
        """The root of a delete that had begun before this process did."""
        kept = self._journal.kept_record(task.task_id)
        return Record.model_validate_json(kept) if kept else None

    def _reporting(
        self, task: Task, meter: Meter, record: Callable[[], Record | None]
    ) -> AbstractContextManager[None]:
        """Send a progress report every `progress_seconds` while the block runs."""
        return every(
            self._progress_seconds,
            lambda: self._report(task, TaskStatus.RUNNING, record=record(), meter=meter),
        )

    def _report(
        self,
        task: Task,
        status: TaskStatus,
        *,
        record: Record | None = None,
        error: ErrorInfo | None = None,
        meter: Meter | None = None,
    ) -> None:
        self._journal.report(
            ReportDraft(
                task_id=task.task_id,
                type=task.type,
                status=status,
                backup=record.view() if record else None,
                sizes=record.sizes() if record else None,
                progress=meter.progress() if meter else None,
                error=error,
            )
        )
        if status.final:
            reached(Point.REPORTED)
        self._wake()
