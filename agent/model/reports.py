"""Models of the reports that the agent sends about tasks."""

from typing import Literal

from agent.model.records import BackupView, ErrorInfo
from agent.model.tasks import TaskStatus
from agent.model.values import MESSAGE_VERSION, Frozen, Id


class Progress(Frozen):
    """The progress of a running task.

    `percent` and `seconds_left` are estimates. They are None if no estimate is possible.
    """

    raw_bytes: int
    stored_bytes: int
    bytes_per_second: float
    percent: float | None = None
    seconds_left: float | None = None


class ReportDraft(Frozen):
    """A report before the journal adds its sender, time and number.

    `deleted` has the ids of the backups that a DONE delete removed, children before parents. These
    backups have no record any more. The list has at most 10,000 of them, with the root last.
    """

    task_id: Id
    type: str
    status: TaskStatus
    backup: BackupView | None = None
    sizes: dict[str, int] | None = None
    progress: Progress | None = None
    error: ErrorInfo | None = None
    deleted: tuple[Id, ...] | None = None


class Report(ReportDraft):
    """One message about a task, with a `seq` that grows with each report of one agent."""

    version: Literal[1] = MESSAGE_VERSION
    agent_run_id: Id
    seq: int
    at: str
    instance_id: Id
