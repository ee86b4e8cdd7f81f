"""`backup.delete`: delete a backup and its descendants."""

from agent.errors import BackupUnknown, Cancelled, Interrupted, StoreError
from agent.model import DeleteTask, Record, TaskStatus
from agent.operations.delete.begun import BegunDelete
from agent.operations.delete.family import DeleteOperation
from agent.operations.resources import BackupResources
from agent.pipeline.meter import Meter
from agent.stop import Stop
from agent.tasks.create import CreateKind
from agent.tasks.kind import TaskKind, TaskTools
from agent.tasks.outcome import Outcome, OutcomeUnknown, may_answer_later


class DeleteKind(TaskKind[DeleteTask]):
    """Deletes backups. `creates` cancels a running backup that a delete would remove."""

    continues = True

    def __init__(self, tools: TaskTools, creates: CreateKind) -> None:
        self._tools = tools
        self._creates = creates

    def after_journalled(self, task: DeleteTask, *, is_new: bool) -> None:
        """Cancel a running backup that the delete would remove.

        The worker is busy with that backup, and would take the delete only after its end.
        """
        if is_new:
            self._creates.cancel_if_deleted(task)

    def perform(self, task: DeleteTask, stop: Stop) -> Outcome:
        with self._tools.stores.resources(task) as resources:
            return self._delete(task, resources, stop)

    def _delete(self, task: DeleteTask, resources: BackupResources, stop: Stop) -> Outcome:
        """Delete, or continue an interrupted delete. One that has begun can't be cancelled.

        Raises:
            OutcomeUnknown: it has begun, and the store is silent or the agent ends. It is then
                continued until it ends.
        """
        journal, reporter, meter = self._tools.journal, self._tools.reporter, Meter()
        begun = BegunDelete.of(journal.kept_note(task.task_id))

        def begin(record: Record) -> None:
            nonlocal begun
            begun = begun.more(record, operation.planned)
            # a cancel comes too late from here on
            stop.ignore(Cancelled)
            journal.keep_note(task.task_id, begun.to_text())
            reporter.tell(task, TaskStatus.RUNNING, record=begun.root)

        operation = DeleteOperation(
            resources.store,
            resources.catalogue,
            connections=resources.path.connections,
            meter=meter,
            stop=stop,
            on_begin=begin,
            parents=journal.parents,
        )
        try:
            with reporter.progress(task, meter, lambda: begun.root):
                last = operation.run(task.backup_id)
            begun = begun.more(last, [node.id for node in operation.deleted])
        except BackupUnknown:
            if begun.root is None:
                raise
        except (StoreError, Interrupted) as error:
            if begun.root is not None and (
                may_answer_later(error) or isinstance(error, Interrupted)
            ):
                raise OutcomeUnknown from error
            raise
        return Outcome(begun.root, begun.ids)
