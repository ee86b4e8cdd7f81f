"""The kind of each type of task. Tasks of the type `backup.verify` are refused."""

from collections.abc import Mapping
from typing import Any

from agent.model import CancelTask, CreateTask, DeleteTask, PingTask, RestoreTask, Task, VerifyTask
from agent.tasks.cancel import CancelKind
from agent.tasks.cancellation import Cancellation
from agent.tasks.create import CreateKind
from agent.tasks.delete import DeleteKind
from agent.tasks.kind import TaskKind, TaskTools
from agent.tasks.ping import PingKind
from agent.tasks.restore import RestoreKind

Kinds = Mapping[type[Task], TaskKind[Any]]


def task_kinds(tools: TaskTools, cancellation: Cancellation) -> Kinds:
    """Return the kind of each type of task, by the class of its model."""
    creates = CreateKind(tools)
    return {
        CreateTask: creates,
        RestoreTask: RestoreKind(tools),
        DeleteTask: DeleteKind(tools, creates),
        VerifyTask: TaskKind(),
        CancelTask: CancelKind(tools, cancellation),
        PingTask: PingKind(),
    }
