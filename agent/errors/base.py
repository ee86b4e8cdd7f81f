"""The root of the tree, and what may end any task."""

from typing import ClassVar


class AgentError(Exception):
    """Base of all errors; `str(error)` says what failed and why, `hint` what to do."""

    code: ClassVar[str] = ""
    exit_status: ClassVar[int] = 1
    retryable: ClassVar[bool] = False
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = self.default_hint if hint is None else hint


class Internal(AgentError):
    """The agent itself failed in a way that nobody foresaw."""

    code = "internal"
    default_hint = "this is a defect of backup-agent: report it with the agent's log"


class Interrupted(AgentError):
    """The agent was stopped, or died, before the task ended."""

    code = "interrupted"
    default_hint = (
        "the agent stopped before the task ended: give the command again, or send the task again "
        "with a fresh task id"
    )


class Cancelled(AgentError):
    """The task was cancelled on request."""

    code = "cancelled"
    default_hint = "someone cancelled the task"
