"""`task.cancel`: end another task."""

from agent.crash_points import Point, reached
from agent.model import CancelTask
from agent.tasks.cancellation import Cancellation
from agent.tasks.kind import TaskKind, TaskTools


class CancelKind(TaskKind[CancelTask]):
    """Cancels a task as soon as the cancel is accepted: the worker may be busy with that task."""

    writes_files = False

    def __init__(self, tools: TaskTools, cancellation: Cancellation) -> None:
        self._tools = tools
        self._cancellation = cancellation

    def after_journalled(self, task: CancelTask, *, is_new: bool) -> None:
        reached(Point.CANCEL_JOURNALLED)
        self._cancellation.handle(task)
        if self._tools.journal.has_ended(task.cancels):
            self._tools.stores.forget(task.cancels)
