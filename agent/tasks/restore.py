"""`backup.restore`: restore a backup and its chain into a directory."""

from pathlib import Path

from agent.engine.checkpoints import read_checkpoints
from agent.machine.host import nearest
from agent.machine.os_user import owner_of
from agent.model import ErrorInfo, Record, RestoreTask, TaskStatus
from agent.operations.backup.commit import parse_journalled
from agent.operations.restore.chain import RestoreOperation
from agent.operations.restore.target import RestoreWorkdir, resolved_below, target_below
from agent.pipeline.meter import Meter
from agent.stop import Stop
from agent.tasks.kind import TaskKind, TaskTools
from agent.tasks.outcome import Outcome


class RestoreKind(TaskKind[RestoreTask]):
    """Restores below the restore roots."""

    def __init__(self, tools: TaskTools) -> None:
        self._tools = tools

    def may_retry(self, task: RestoreTask) -> bool:
        return task.retry

    def perform(self, task: RestoreTask, stop: Stop) -> Outcome:
        journal, reporter, meter = self._tools.journal, self._tools.reporter, Meter()
        with self._tools.stores.resources(task) as resources:
            target = target_below(self._tools.restore_roots, Path(task.target))
            operation = RestoreOperation(
                resources,
                meter=meter,
                stop=stop,
                run_id=task.task_id,
                on_whole=lambda record: journal.keep_note(task.task_id, record.model_dump_json()),
            )
            reporter.tell(task, TaskStatus.RUNNING)
            with reporter.progress(task, meter, lambda: None):
                return Outcome(operation.run(task.backup_id, target)[-1])

    def settle(self, task: RestoreTask, attempt: str, error: ErrorInfo) -> Record | None:
        """Finish a restore if its whole datadir is on the disk. Else remove its work directory.

        The work directory has the task's id in its name. Other files of the target stay.
        """
        target = resolved_below(self._tools.restore_roots, Path(task.target))
        work = RestoreWorkdir(target, task.task_id, owner_of(nearest(target)))
        kept = self._tools.journal.kept_note(task.task_id)
        if kept is None:
            work.remove()
            return None
        work.move_up()
        # fails if the datadir was removed since it was moved up
        work.as_user(lambda: read_checkpoints(target))
        return parse_journalled(kept)
