"""The base of all types of task. Each type is one subclass in one file of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from agent.errors import TaskUnsupported
from agent.journal import Journal
from agent.model import ErrorInfo, Record, Task
from agent.stop import Stop
from agent.tasks.outcome import Outcome
from agent.tasks.reports import Reporter
from agent.tasks.stores import TaskStores

T = TypeVar("T", bound=Task)


@dataclass(frozen=True)
class TaskTools:
    """The objects that all types of task share. Restores may write below `restore_roots` only."""

    journal: Journal
    stores: TaskStores
    reporter: Reporter
    restore_roots: Sequence[Path]


class TaskKind(Generic[T]):
    """How tasks of one type are accepted, performed, and settled after a crash.

    The base class itself is the kind of a type that this agent does not support.

    Attributes:
        writes_files: the task may write files of its own. A full disk could make it fail, so no
            such task is accepted while the disk is full.
        done_when_accepted: the task is DONE when the journal has it. No worker performs it.
        continues: a task that was interrupted is performed again, which continues it.
    """

    writes_files = True
    done_when_accepted = False
    continues = False

    def after_journalled(self, task: T, *, is_new: bool) -> None:
        """Do the part of a task that can't wait. The broker's thread calls this after journalling.

        `is_new` is False if the journal knew the task already, or refused it.
        """

    def perform(self, task: T, stop: Stop) -> Outcome:
        """Perform the task. Any exception ends it.

        Raises:
            OutcomeUnknown: only the store can tell how it ended.
            BackupFailed: a backup failed. The error holds the record that is left of it.
        """
        raise TaskUnsupported(f"tasks of type {task.type} are not supported")

    def settle(self, task: T, attempt: str, error: ErrorInfo) -> Record | None:
        """Finish an interrupted task, or remove its remains.

        `attempt` is the id of its backup attempt, "" if it made none. `error` goes into the
        record of a backup that is given up.

        Returns:
            The record that is left, or None. The task was done if that record is COMPLETED.
        """
        return None

    def may_retry(self, task: T) -> bool:
        """Return True if the task asks to be requeued when the agent's end interrupted it."""
        return False
