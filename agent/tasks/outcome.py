"""How a task can end, besides an error of its own."""

from collections.abc import Sequence
from typing import NamedTuple

from agent.errors import (
    AgentError,
    LoginRejected,
    StoreBusy,
    StoreRedirected,
    StoreUnreachable,
    StoreUntrusted,
    TokenRefused,
)
from agent.model import Record
from agent.stop import Stop


class Outcome(NamedTuple):
    """The result of a task that is DONE, for its final report.

    `deleted` are the ids of the backups that a delete removed.
    """

    record: Record | None = None
    deleted: Sequence[str] | None = None


class OutcomeUnknown(Exception):
    """The end of a task is unknown until the store answers, or the task is performed again.

    The cause is `__cause__`. `attempt` is the id of the backup attempt, "" if there is none.
    """

    def __init__(self, attempt: str = "") -> None:
        super().__init__()
        self.attempt = attempt


class BackupFailed(Exception):
    """A backup failed for `cause`. It was cleaned up, unless `problem` prevented that.

    `record` is the record that is left. `undecided` means that the record may still become
    COMPLETED, because the answer to its last write never came.
    """

    def __init__(
        self,
        cause: BaseException,
        record: Record | None,
        attempt: str,
        problem: AgentError | None = None,
        *,
        undecided: bool = False,
    ) -> None:
        super().__init__()
        self.cause = cause
        self.record = record
        self.attempt = attempt
        self.problem = problem
        self.undecided = undecided


def may_answer_later(problem: BaseException) -> bool:
    """Return True if the error only says that the store does not answer at the moment.

    This includes a store that is not trusted, because its certificate can be renewed, one that
    refuses good tokens, because it may not reach Keystone, and a page of a proxy in its place.
    """
    kinds = StoreUnreachable | StoreUntrusted | StoreBusy | TokenRefused
    return isinstance(problem, kinds | LoginRejected | StoreRedirected)


def stop_with(stop: Stop, error: BaseException) -> BaseException:
    """Stop the task's other work with `error`. Return the first error that stopped it.

    An operation that is requested to stop may fail with an error of its own. The error of the
    earlier request is the cause.
    """
    stop.request(error)
    return stop.cause or error
