"""Do one task, from its first report to its final one.

This is the task boundary: whatever a task raises becomes its FAILED report here.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Final, NamedTuple

from agent.errors import (
    AgentError,
    BackupUnknown,
    Cancelled,
    Fenced,
    Interrupted,
    JournalError,
    StoreError,
    StoreFull,
    StoreSilent,
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
    RestoreTask,
    Task,
    TaskStatus,
)
from agent.operations.backup.create import BackupOperation
from agent.operations.delete.begun import BegunDelete
from agent.operations.delete.family import DeleteOperation
from agent.operations.resources import BackupResources
from agent.operations.restore.chain import RestoreOperation
from agent.operations.restore.target import target_below
from agent.pipeline.meter import Meter
from agent.stop import Stop
from agent.tasks.recovery import Recovery, silent
from agent.tasks.reports import Reporter, with_remains
from agent.tasks.stores import Place, TaskStores, place_of

log = logging.getLogger(__name__)

# From a cancel to its report, with half a second to spare: the engine takes 3 s at most to end.
# What the store hasn't removed by then is removed afterwards.
_CANCEL_SECONDS: Final = 4.5


class _OutcomeUnknown(Exception):
    """Nobody knows how a task ended until the store answers again, or it is done again."""

    def __init__(self, attempt: str = "") -> None:
        super().__init__()
        self.attempt = attempt


class _Result(NamedTuple):
    """What a task that is done has to show; `deleted` are the backups that a delete removed."""

    record: Record | None
    deleted: Sequence[str] | None = None


class _BackupFailed(Exception):
    """A backup failed for `cause`; `record` is what is left of it.

    `problem` is why that could not be cleaned up.
    """

    def __init__(
        self, record: Record | None, cause: BaseException, problem: AgentError | None
    ) -> None:
        super().__init__()
        self.record = record
        self.cause = cause
        self.problem = problem


def _stop_with(stop: Stop, error: BaseException) -> BaseException:
    """Why a task ended: what was told to stop may fail in its own words.

    Whatever wants to stop it from now on came later.
    """
    stop.request(error)
    return stop.cause or error


@contextmanager
def _until(seconds: float) -> Iterator[Stop]:
    """A stop that says that the store is silent, after that time or a second."""
    late = Stop()
    cause = StoreSilent("the store has not cleaned up yet what was cancelled")
    timer = threading.Timer(max(1.0, seconds), late.request, (cause,))
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


class Executor:
    """Does tasks that the journal holds; `restore_roots` are where restores may write."""

    def __init__(
        self,
        journal: Journal,
        stores: TaskStores,
        *,
        restore_roots: Sequence[Path],
        progress_seconds: float,
        wake: Callable[[], None],
    ) -> None:
        self._journal = journal
        self._stores = stores
        self._restore_roots = restore_roots
        self._ending = False
        self._making: tuple[Place, BackupOperation] | None = None
        self.reporter = Reporter(journal, stores, progress_seconds=progress_seconds, wake=wake)
        self.recovery = Recovery(journal, stores, self.reporter, restore_roots)

    def end(self) -> None:
        """The agent is ending: what the store doesn't answer now waits for the next start."""
        self._ending = True

    def make_way(self, delete: DeleteTask) -> None:
        """Cancel the running backup where it is the one to be deleted or descends from it."""
        place, making = self._making or (None, None)
        # the same id in another container is another backup
        if making is not None and place == place_of(delete):
            making.make_way(delete.backup_id)

    def perform(
        self, task: Task, stop: Stop, within: AbstractContextManager[None] | None = None
    ) -> None:
        """Run one task, inside `within`, to its final report; what it raises becomes that.

        JournalError where the journal doesn't take the final report, which `reporter` holds then.
        """
        log.info("task %s (%s) begins", task.task_id, task.type)
        try:
            with within or nullcontext():
                done = self._dispatch(task, stop)
        except _OutcomeUnknown as error:
            self._wait(task, error.__cause__ or error, error.attempt)
        except _BackupFailed as failed:
            self._failed(task, failed.cause, failed.record, failed.problem)
        except BaseException as error:  # noqa: BLE001 - the task boundary
            if isinstance(task, DeleteTask) and isinstance(error, JournalError):
                # only the journal knows whether it had begun: it is done again
                self._wait(task, error)
            else:
                self._failed(task, _stop_with(stop, error), None)
        else:
            log.info("task %s is done", task.task_id)
            self.reporter.tell_end(task, TaskStatus.DONE, done.record, deleted=done.deleted)

    def _wait(self, task: Task, error: BaseException, attempt: str = "") -> None:
        """Leave it to the recovery, now or at the next start, to say how the task ended."""
        info = ErrorInfo.of(error)
        if isinstance(error, Interrupted):
            log.info("task %s goes on at the next start: %s", task.task_id, info.message)
        else:
            what = "journal" if isinstance(error, JournalError) else "store"
            log.error("task %s waits for the %s: %s", task.task_id, what, info.message)
        self.recovery.add(task, info, attempt)

    def _failed(
        self,
        task: Task,
        error: BaseException,
        record: Record | None,
        problem: AgentError | None = None,
    ) -> None:
        cut_off = self._ending and isinstance(error, Interrupted)
        if cut_off and self.recovery.requeue(task, record):
            return
        info = ErrorInfo.of(error)
        if record and problem and not (silent(problem) or isinstance(problem, Fenced)):
            info = with_remains(info, record.id, problem)
        status = TaskStatus.FAILED
        if isinstance(error, Cancelled):
            status = TaskStatus.CANCELLED
            log.warning("task %s is cancelled: %s", task.task_id, info.message)
        elif isinstance(error, AgentError):
            log.error("task %s failed: %s: %s", task.task_id, info.code, info.message)
        else:
            log.exception("task %s failed by a defect of the agent", task.task_id)
        self.reporter.tell_end(task, status, record, info)

    def _dispatch(self, task: Task, stop: Stop) -> _Result:
        with self._stores.resources(task) as resources:
            if isinstance(task, CreateTask):
                return _Result(self._create(task, resources, stop))
            if isinstance(task, RestoreTask):
                return _Result(self._restore(task, resources, stop))
            if isinstance(task, DeleteTask):
                return self._delete(task, resources, stop)
        if isinstance(task, PingTask):
            return _Result(None)
        raise TaskUnsupported(f"tasks of type {task.type} are not supported")

    def _create(self, task: CreateTask, resources: BackupResources, stop: Stop) -> Record:
        meter = Meter()
        operation = BackupOperation(
            resources,
            task,
            meter=meter,
            stop=stop,
            observe_lsn=self._journal.observe_lsn,
            on_begin=lambda record: self.reporter.tell(task, TaskStatus.RUNNING, record=record),
            on_finished=lambda record: self._journal.keep_record(
                task.task_id, record.model_dump_json()
            ),
        )
        self._journal.keep_attempt(task.task_id, operation.attempt)
        self._making = place_of(task), operation
        try:
            with self.reporter.progress(task, meter, lambda: operation.record):
                return operation.run()
        # whatever ends it, a defect and an interrupt too, no record may stay BUILDING
        except BaseException as error:
            cause = _stop_with(stop, error)
            if operation.undecided and silent(cause):
                # no record says FAILED: it could reach the store after one that says COMPLETED
                raise _OutcomeUnknown(operation.attempt) from cause
            left, problem = self._abandon(task, operation, cause, stop)
            if left and left.status is BackupStatus.COMPLETED:
                return left
            raise _BackupFailed(left, cause, problem) from error
        finally:
            self._making = None

    def _abandon(
        self, task: Task, operation: BackupOperation, error: BaseException, stop: Stop
    ) -> tuple[Record | None, AgentError | None]:
        """Clean up; return what is left, and why it could not be cleaned up if so."""
        patience = _until(_CANCEL_SECONDS - stop.seconds) if isinstance(error, Cancelled) else None
        try:
            if not operation.undecided:
                # a crash from here on must not have it completed: FAILED may be under way
                self._journal.forget_record(task.task_id)
        except JournalError as problem:
            log.warning("what is journalled of the failed backup can't be changed: %s", problem)
            raise _OutcomeUnknown(operation.attempt) from error
        try:
            with patience or nullcontext() as late:
                return operation.abandon(ErrorInfo.of(error), late), None
        except AgentError as problem:
            log.warning("the failed backup could not be cleaned up: %s", problem)
            if silent(problem) and (operation.undecided or self._ending):
                raise _OutcomeUnknown(operation.attempt) from error
            if silent(problem) or (isinstance(problem, StoreFull) and not operation.undecided):
                # reported as FAILED now, and cleaned up when the store answers, or has room
                self.recovery.add(task, ErrorInfo.of(error), operation.attempt, told=True)
            return operation.record, problem

    def _restore(self, task: RestoreTask, resources: BackupResources, stop: Stop) -> Record:
        target = target_below(self._restore_roots, Path(task.target))
        meter = Meter()
        operation = RestoreOperation(
            resources,
            meter=meter,
            stop=stop,
            run_id=task.task_id,
            on_whole=lambda record: self._journal.keep_record(
                task.task_id, record.model_dump_json()
            ),
        )
        self.reporter.tell(task, TaskStatus.RUNNING)
        with self.reporter.progress(task, meter, lambda: None):
            return operation.run(task.backup_id, target)[-1]

    def _delete(self, task: DeleteTask, resources: BackupResources, stop: Stop) -> _Result:
        """Delete, or go on with a delete that was cut off: once begun it is brought to its end."""
        meter = Meter()
        begun = self._begun(task)

        def begin(record: Record) -> None:
            nonlocal begun
            begun = begun.more(record, operation.planned)
            # once begun it is brought to its end, whoever may want to cancel it
            stop.ignore(Cancelled)
            self._journal.keep_record(task.task_id, begun.to_text())
            self.reporter.tell(task, TaskStatus.RUNNING, record=begun.root)

        operation = DeleteOperation(
            resources.store,
            resources.catalogue,
            connections=resources.path.connections,
            meter=meter,
            stop=stop,
            on_begin=begin,
            children=self._journal.children,
        )
        try:
            with self.reporter.progress(task, meter, lambda: begun.root):
                last = operation.run(task.backup_id)
            begun = begun.more(last, [kin.id for kin in operation.deleted])
        except BackupUnknown:
            if begun.root is None:
                raise
        except (StoreError, Interrupted) as error:
            if begun.root is not None and (silent(error) or isinstance(error, Interrupted)):
                raise _OutcomeUnknown from error
            raise
        return _Result(begun.root, begun.ids)

    def _begun(self, task: DeleteTask) -> BegunDelete:
        """What is known of a delete that had begun before this process did."""
        return BegunDelete.of(self._journal.kept_record(task.task_id))
