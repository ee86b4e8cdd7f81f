"""Reports: what the agent says about a task."""

from typing import Literal

from agent.model.records import BackupView, ErrorInfo
from agent.model.tasks import TaskStatus
from agent.model.values import MESSAGE_VERSION, Frozen, Id


class Progress(Frozen):
    """How far a running task is; `percent` and `seconds_left` are estimates."""

    raw_bytes: int
    stored_bytes: int
    bytes_per_second: float
    percent: float | None = None
    seconds_left: float | None = None


class ReportDraft(Frozen):
    """What a report says; the journal adds who says it, when, and its number.

    `deleted` are the backups that a delete which is DONE has removed, children before parents:
    they have no record any more. The first 10,000 of them.
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
    """One message about a task; `seq` grows with each of an agent's."""

    version: Literal[1] = MESSAGE_VERSION
    agent_run_id: Id
    seq: int
    at: str
    instance_id: Id
