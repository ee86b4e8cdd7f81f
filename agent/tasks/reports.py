"""What is said about tasks: it goes into the journal, which keeps it until it is sent.

A final report that the journal doesn't take is held until it does; a step or progress is not
worth as much.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

from agent.crash_points import Point, reached
from agent.errors import AgentError, JournalError, TokenExpired, TokenLost
from agent.journal import Journal
from agent.model import (
    BackupStatus,
    BackupView,
    ErrorInfo,
    Record,
    ReportDraft,
    Task,
    TaskStatus,
    utc_now,
)
from agent.pipeline.meter import Meter, every
from agent.tasks.stores import TaskStores

_MOST_DELETED = 10_000  # ids in one report, 390 KB

log = logging.getLogger(__name__)


class Reporter:
    """Tells of tasks; `wake` is called whenever there is something to send.

    A task's token, which `stores` holds, is dropped when its end has been told.
    """

    def __init__(
        self,
        journal: Journal,
        stores: TaskStores,
        *,
        progress_seconds: float,
        wake: Callable[[], None],
    ) -> None:
        self._journal = journal
        self._stores = stores
        self._progress_seconds = progress_seconds
        self._wake = wake
        self._held: Callable[[], None] | None = None
        self._muted = False

    def tell(
        self,
        task: Task,
        status: TaskStatus,
        *,
        record: Record | None = None,
        error: ErrorInfo | None = None,
        meter: Meter | None = None,
        deleted: Sequence[str] | None = None,
    ) -> None:
        """Make a report; JournalError where the journal doesn't take it."""
        self._journal.report(
            ReportDraft(
                task_id=task.task_id,
                type=task.type,
                status=status,
                backup=_view(record, status) if record else None,
                sizes=record.sizes() if record else None,
                progress=meter.progress() if meter else None,
                error=error,
                deleted=None if deleted is None else tuple(deleted[:_MOST_DELETED]),
            )
        )
        if status.final:
            self._stores.forget(task.task_id)
            reached(Point.REPORTED)
        self._wake()

    def tell_end(
        self,
        task: Task,
        status: TaskStatus,
        record: Record | None,
        error: ErrorInfo | None = None,
        deleted: Sequence[str] | None = None,
    ) -> None:
        """Make a final report; JournalError, and it is held, where the journal doesn't take it."""
        self._held = partial(self.tell, task, status, record=record, error=error, deleted=deleted)
        self.tell_held()

    def tell_held(self) -> None:
        """Make the final report that is held, if one is; JournalError."""
        if self._held is not None:
            self._held()
            self._held = None

    def progress(
        self, task: Task, meter: Meter, record: Callable[[], Record | None]
    ) -> AbstractContextManager[None]:
        """Report progress every `progress_seconds` while the block runs."""
        self._muted = False
        return every(self._progress_seconds, lambda: self._tell_progress(task, record(), meter))

    def _tell_progress(self, task: Task, record: Record | None, meter: Meter) -> None:
        """What the journal doesn't take of it is not worth more than a line."""
        try:
            self.tell(task, TaskStatus.RUNNING, record=record, meter=meter)
        except JournalError as error:
            if not self._muted:
                log.warning("the progress of task %s can't be told: %s", task.task_id, error)
            self._muted = True


def _view(record: Record, status: TaskStatus) -> BackupView:
    """Return what a report shows of a backup: of one whose task has failed no BUILDING.

    Its record may say so for a while, if the store doesn't take another one; nobody will finish it.
    """
    view = record.view()
    if status in (TaskStatus.FAILED, TaskStatus.CANCELLED) and view.status is BackupStatus.BUILDING:
        ended = {"status": BackupStatus(status.value), "updated": utc_now()}
        return view.model_copy(update=ended)
    return view


def with_remains(info: ErrorInfo, backup_id: str, problem: AgentError) -> ErrorInfo:
    """Return the error of a failed backup that could not be cleaned up because of `problem`.

    It says what is left in the store, and how to have that removed.
    """
    if isinstance(problem, TokenExpired | TokenLost):
        left = "its record (BUILDING) and what it stored are still in the store"
        how = "with a token that is good"
    else:
        left = "its record may still say BUILDING, and what it stored may still be in the store"
        how = "once the store takes it"
    return ErrorInfo(
        code=info.code,
        message=f"{info.message}; it could not be cleaned up: {left}: {problem}",
        hint=f"{info.hint}; to remove what is left, delete backup {backup_id} {how}",
    )
