"""Claim, run and record one task at a time.

This is the task boundary: whatever a task raises becomes its FAILED report here, and the
thread goes on with the next task.
"""

import gc
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from agent.broker import wire
from agent.broker.link import ACK, Verdict, dead
from agent.errors import (
    AgentError,
    DatabaseError,
    Interrupted,
    MessageUnreadable,
    TaskUnsupported,
)
from agent.journal import Journal
from agent.model import (
    BackupStatus,
    CreateTask,
    ErrorInfo,
    PingTask,
    Record,
    ReportDraft,
    RestoreTask,
    Task,
    TaskStatus,
)
from agent.operations.backup import BackupOperation
from agent.operations.parts import BackupParts
from agent.operations.preflight import look_at_lineage
from agent.operations.restore import RestoreOperation
from agent.operations.target import target_below
from agent.pipeline.meter import Meter, every
from agent.pipeline.stop import Stop
from agent.recovery import Recovery, silent

log = logging.getLogger(__name__)

# How long the worker sleeps when nobody wakes it: a bound, not a polling interval.
_IDLE_SECONDS = 5.0
# How often an idle agent looks at the LSN, to notice a volume that was rolled back.
_LOOK_SECONDS = 60.0


class _Undecided(Exception):
    """Nobody knows how a backup ended until the store answers again."""


class _Abandoned(Exception):
    """A backup failed, for the cause that this is raised from; `record` is what is left of it."""

    def __init__(self, record: Record | None) -> None:
        super().__init__()
        self.record = record


class Runner:
    """Owns the worker thread; `wake` is called whenever there is something to send."""

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
        self._work = threading.Event()
        self._lock = threading.Lock()
        self._ending = False
        self._current: Stop | None = None
        self._recovery = Recovery(journal, parts, self._report)
        self._looked = -math.inf
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self.failure: BaseException | None = None

    # --- the broker's side ---------------------------------------------------------------

    def on_message(self, body: bytes) -> Verdict:
        """Journal a delivery; the verdict tells the broker's thread what to do with it.

        A JournalError means that the broker has to keep it for now.
        """
        try:
            task = wire.decode_task(body)
        except MessageUnreadable as error:
            return self._refuse(body, error)
        draft = ReportDraft(task_id=task.task_id, type=task.type, status=TaskStatus.ACCEPTED)
        self._journal.accept(task, draft)
        self._work.set()
        self._wake()
        return ACK

    def _refuse(self, body: bytes, error: MessageUnreadable) -> Verdict:
        task_id = wire.task_id_of(body)
        if task_id is not None:
            self._journal.refuse(
                ReportDraft(
                    task_id=task_id,
                    type=wire.task_type_of(body) or "unknown",
                    status=TaskStatus.FAILED,
                    error=ErrorInfo.of(error),
                )
            )
            self._wake()
        return dead(error)

    # --- the worker's life ---------------------------------------------------------------

    def start(self) -> None:
        """Begin to work, with what a crash cut off."""
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """Interrupt the running task and end the thread; whether it ended in that time.

        After half of it no request to the store is repeated any more.
        """
        with self._lock:
            self._ending = True
            current = self._current
        if current is not None:
            current.request(Interrupted("the agent was told to stop"))
        self._work.set()
        self._thread.join(seconds / 2)
        if self._thread.is_alive():
            self._parts.store.abort()
            self._thread.join(seconds / 2)
        return not self._thread.is_alive()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._ending:
                self._work.clear()
                self._recovery.run()
                task = self._journal.claim()
                if task is None:
                    self._look()
                    self._work.wait(_IDLE_SECONDS)
                else:
                    self._perform(task)
                    # A failed task's traceback and its stop refer to each other, and to
                    # the buffers of the data path: a cycle that would keep 100 MiB.
                    gc.collect()
        except BaseException as error:  # noqa: BLE001 - the thread's top: the daemon looks here
            log.critical("the worker thread ended: %s", error)
            self.failure = error

    def _look(self) -> None:
        """Note the server's LSN now and then, so that one that goes back is noticed."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        try:
            look_at_lineage(self._parts, self._journal.observe_lsn)
        except DatabaseError as error:
            log.info("the LSN can't be looked at: %s", error)

    # --- one task ------------------------------------------------------------------------

    def _perform(self, task: Task) -> None:
        """Run one task to its final report; nothing it raises gets out of here."""
        log.info("task %s (%s) begins", task.task_id, task.type)
        with self._stoppable() as stop:
            try:
                record = self._dispatch(task, stop)
            except _Undecided as error:
                info = ErrorInfo.of(error.__cause__ or error)
                log.error("task %s waits for the store: %s", task.task_id, info.message)
                self._recovery.add(task, info)
            except _Abandoned as failed:
                self._failed(task, failed.__cause__ or failed, failed.record)
            except BaseException as error:  # noqa: BLE001 - the task boundary
                self._failed(task, error, None)
            else:
                self._report(task, TaskStatus.DONE, record=record)
                log.info("task %s is done", task.task_id)

    def _failed(self, task: Task, error: BaseException, record: Record | None) -> None:
        info = ErrorInfo.of(error)
        if isinstance(error, AgentError):
            log.error("task %s failed: %s: %s", task.task_id, info.code, info.message)
        else:
            log.exception("task %s failed by a defect of the agent", task.task_id)
        self._report(task, TaskStatus.FAILED, record=record, error=info)

    def _dispatch(self, task: Task, stop: Stop) -> Record | None:
        if isinstance(task, CreateTask):
            return self._create(task, stop)
        if isinstance(task, RestoreTask):
            return self._restore(task, stop)
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
            on_finished=lambda record: self._journal.finish_record(
                task.task_id, record.model_dump_json()
            ),
        )
        try:
            with self._reporting(task, meter, lambda: operation.record):
                return operation.run()
        except BaseException as error:
            left = self._abandon(task, operation, error)
            if left and left.status is BackupStatus.COMPLETED:
                return left
            raise _Abandoned(left) from error

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
                self._recovery.add(task, ErrorInfo.of(error))
            return operation.record

    def _restore(self, task: RestoreTask, stop: Stop) -> Record:
        target = target_below(self._restore_roots, Path(task.target))
        meter = Meter()
        operation = RestoreOperation(self._parts, meter=meter, stop=stop)
        self._report(task, TaskStatus.RUNNING)
        with self._reporting(task, meter, lambda: None):
            return operation.run(task.backup_id, target)[-1]

    @contextmanager
    def _stoppable(self) -> Iterator[Stop]:
        """A stop for one task, which `stop` reaches; already stopped when the agent ends."""
        stop = Stop()
        with self._lock:
            self._current = stop
            ending = self._ending
        if ending:
            stop.request(Interrupted("the agent was told to stop"))
        try:
            yield stop
        finally:
            with self._lock:
                self._current = None

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
        self._wake()
