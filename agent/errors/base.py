"""The root of the error tree, and the errors that can end any task."""

from typing import ClassVar


class AgentError(Exception):
    """The base class of all errors of the agent.

    `str(error)` says what failed and why. `hint` says how to fix it.
    """

    code: ClassVar[str] = ""
    exit_status: ClassVar[int] = 1
    retryable: ClassVar[bool] = False
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = self.default_hint if hint is None else hint


class Internal(AgentError):
    """The agent itself failed in an unexpected way."""

    code = "internal"
    default_hint = "this is a defect of backup-agent: report it with the agent's log"


class Interrupted(AgentError):
    """The agent was stopped or killed before the task ended."""

    code = "interrupted"
    default_hint = (
        "the agent stopped before the task ended: run the command again, or send the task again "
        "with a new task id"
    )


class Cancelled(AgentError):
    """The task was cancelled on request."""

    code = "cancelled"
    default_hint = "the task was cancelled on request: send a new task if it is still needed"
