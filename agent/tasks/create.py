"""`backup.create`: make one backup."""

import logging
from contextlib import nullcontext
from typing import Final

from agent.errors import AgentError, Cancelled, JournalError
from agent.model import BackupStatus, CreateTask, DeleteTask, ErrorInfo, Record, TaskStatus
from agent.operations.backup.abandon import abandon_record, remove_attempt
from agent.operations.backup.commit import resume_commit
from agent.operations.backup.create import BackupOperation
from agent.operations.patience import patience
from agent.operations.resources import BackupResources
from agent.pipeline.meter import Meter
from agent.stop import Stop
from agent.tasks.kind import TaskKind, TaskTools
from agent.tasks.outcome import BackupFailed, Outcome, OutcomeUnknown, may_answer_later, stop_with
from agent.tasks.stores import StorePlace

log = logging.getLogger(__name__)

# Seconds from a cancel to its report, half a second less than the promised 5 s. The engine takes at
# most 3 of them to end. Segments that the store has not removed by then are removed after the
# report.
_CANCEL_SECONDS: Final = 4.5


class CreateKind(TaskKind[CreateTask]):
    """Makes backups, at most one at a time."""

    def __init__(self, tools: TaskTools) -> None:
        self._tools = tools
        self._running: tuple[StorePlace, BackupOperation] | None = None

    def cancel_if_deleted(self, delete: DeleteTask) -> None:
        """Cancel the running backup if `delete` names it or one of its ancestors.

        May be called from any thread.
        """
        place, operation = self._running or (None, None)
        # the same id in another container is another backup
        if operation is not None and place == self._tools.stores.place_of(delete):
            operation.cancel_if_deleted(delete.backup_id)

    def may_retry(self, task: CreateTask) -> bool:
        return task.retry

    def perform(self, task: CreateTask, stop: Stop) -> Outcome:
        with self._tools.stores.resources(task) as resources:
            return Outcome(self._make(task, resources, stop))

    def _make(self, task: CreateTask, resources: BackupResources, stop: Stop) -> Record:
        journal, reporter, meter = self._tools.journal, self._tools.reporter, Meter()
        operation = BackupOperation(
            resources,
            task,
            meter=meter,
            stop=stop,
            observe_lsn=journal.observe_lsn,
            on_begin=lambda record: reporter.tell(task, TaskStatus.RUNNING, record=record),
            on_finished=lambda record: journal.keep_note(task.task_id, record.model_dump_json()),
        )
        journal.keep_attempt(task.task_id, operation.attempt)
        self._running = self._tools.stores.place_of(task), operation
        try:
            with reporter.progress(task, meter, lambda: operation.record):
                return operation.run()
        # any exception, a defect and an interrupt too: no record may stay BUILDING
        except BaseException as error:
            left = self._give_up(task, operation, stop_with(stop, error), stop)
            if left.record and left.record.status is BackupStatus.COMPLETED and not left.problem:
                return left.record
            raise left from error
        finally:
            self._running = None

    def _give_up(
        self, task: CreateTask, operation: BackupOperation, cause: BaseException, stop: Stop
    ) -> BackupFailed:
        """Clean up after a failed backup. Return what is left of it, and any problem.

        Raises:
            OutcomeUnknown: the backup may be COMPLETED, or the journal can't be written.
        """
        if operation.undecided and may_answer_later(cause):
            # a record that says FAILED could reach the store after the one that says COMPLETED
            raise OutcomeUnknown(operation.attempt) from cause
        try:
            if not operation.undecided:
                # a crash from here on must not complete it: FAILED may be on its way
                self._tools.journal.forget_note(task.task_id)
        except JournalError as problem:
            log.warning("the journal can't drop the record of the failed backup: %s", problem)
            raise OutcomeUnknown(operation.attempt) from cause
        limit = None
        if isinstance(cause, Cancelled):
            left_over = "the store has not yet removed the cancelled backup"
            limit = patience(_CANCEL_SECONDS - stop.seconds, left_over)
        try:
            with limit or nullcontext() as late:
                left = operation.abandon(ErrorInfo.of(cause), late)
        except AgentError as problem:
            log.warning("can't clean up the failed backup: %s", problem)
            return BackupFailed(
                cause, operation.record, operation.attempt, problem, undecided=operation.undecided
            )
        return BackupFailed(cause, left, operation.attempt)

    def settle(self, task: CreateTask, attempt: str, error: ErrorInfo) -> Record | None:
        if not attempt:
            return None
        with self._tools.stores.resources(task) as resources:
            resources.store.open(create=False)
            return self._settle(task, resources, attempt, error)

    def _settle(
        self, task: CreateTask, resources: BackupResources, attempt: str, error: ErrorInfo
    ) -> Record | None:
        """Finish a commit that had begun, or else mark the record FAILED.

        The segments are then removed, unless a finished record was journalled.
        """
        catalogue = resources.catalogue
        record = catalogue.read(task.backup.id)
        finished = self._tools.journal.kept_note(task.task_id)
        if record is None or record.attempt != attempt:
            if not finished:
                # there is no record, or another attempt's, so this one can never be committed
                remove_attempt(resources, task.backup.id, attempt, error)
            return None
        if record.status is BackupStatus.DELETING:
            return record
        if record.status is BackupStatus.COMPLETED and catalogue.verify_or_condemn(record):
            return record
        if finished and record.status is BackupStatus.BUILDING:
            try:
                return resume_commit(resources, finished)
            except AgentError as problem:
                if may_answer_later(problem):
                    raise
                log.warning("can't complete backup %s: %s", record.id, problem)
        return abandon_record(resources, record, record.error or error, remove=not finished)
