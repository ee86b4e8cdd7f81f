"""Build task reports and put them into the journal's outbox.

A final report that the journal does not take is held, and written later. Other reports are not
held.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    StageTotal,
    Task,
    TaskStatus,
    utc_now,
)
from agent.pipeline.meter import Meter, every
from agent.pipeline.stages import StageWork
from agent.tasks.stores import TaskStores

log = logging.getLogger(__name__)


class Reporter:
    """Reports on tasks. The final report of a task drops its token, which `stores` holds."""

    def __init__(
        self,
        journal: Journal,
        stores: TaskStores,
        *,
        progress_seconds: float,
        wake: Callable[[], None],
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        """Progress is reported every `progress_seconds`.

        `wake` is called after each report, and `ended` after each final one.
        """
        self._journal = journal
        self._stores = stores
        self._progress_seconds = progress_seconds
        self._wake = wake
        self._ended = ended
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
        stages: Mapping[str, StageTotal] | None = None,
    ) -> None:
        """Write a report, and the work of the data path's stages that it comes with.

        Raises:
            JournalError: the journal takes neither.
        """
        self._journal.report(
            ReportDraft(
                task_id=task.task_id,
                type=task.type,
                status=status,
                backup=_view(record, status) if record else None,
                sizes=record.sizes() if record else None,
                progress=meter.progress() if meter else None,
                error=error,
                deleted=None if deleted is None else tuple(deleted),
            ),
            stages or {},
        )
        if status.final:
            self._stores.forget(task.task_id)
            reached(Point.REPORTED)
            self._ended()
        self._wake()

    def tell_end(
        self,
        task: Task,
        status: TaskStatus,
        record: Record | None,
        error: ErrorInfo | None = None,
        deleted: Sequence[str] | None = None,
    ) -> None:
        """Write a final report. Hold it and raise JournalError if the journal does not take it."""
        self._held = partial(self.tell, task, status, record=record, error=error, deleted=deleted)
        self.tell_held()

    def tell_held(self) -> None:
        """Write the final report that is held, if any. Raise JournalError as `tell_end` does."""
        if self._held is not None:
            self._held()
            self._held = None

    @contextmanager
    def progress(
        self, task: Task, meter: Meter, record: Callable[[], Record | None]
    ) -> Iterator[None]:
        """Report progress every `progress_seconds`, and count the stages, while the block runs."""
        self._muted, work = False, StageWork(meter)

        def tell() -> None:
            self._tell_progress(task, record(), meter, work)

        try:
            with every(self._progress_seconds, tell):
                yield
        finally:
            self._keep_stages(work)

    def _keep_stages(self, work: StageWork) -> None:
        """Keep the rest of a run's work. Log it if the journal can't take it."""
        try:
            with work.rest() as stages:
                if stages:
                    self._journal.add_stages(stages)
        except JournalError as error:
            log.warning("the totals of the stages, which metrics show, can't be kept: %s", error)

    def _tell_progress(
        self, task: Task, record: Record | None, meter: Meter, work: StageWork
    ) -> None:
        """Report progress, and keep the work so far. Log once if the journal takes neither."""
        try:
            with work.rest() as stages:
                self.tell(task, TaskStatus.RUNNING, record=record, meter=meter, stages=stages)
        except JournalError as error:
            if not self._muted:
                log.warning("the progress of task %s can't be reported: %s", task.task_id, error)
            self._muted = True


def _view(record: Record, status: TaskStatus) -> BackupView:
    """Return the view of a backup for a report. It is never BUILDING if its task has failed.

    Its record may say so for a while, if the store takes no other one. No agent will finish it.
    """
    view = record.view()
    if status in (TaskStatus.FAILED, TaskStatus.CANCELLED) and view.status is BackupStatus.BUILDING:
        ended = {"status": BackupStatus(status.value), "updated": utc_now()}
        return view.model_copy(update=ended)
    return view


def with_remains(info: ErrorInfo, backup_id: str, problem: AgentError) -> ErrorInfo:
    """Return the error of a failed backup that `problem` prevented from being cleaned up.

    It says which objects are left in the store, and how to remove them.
    """
    if isinstance(problem, TokenExpired | TokenLost):
        left = "its record (BUILDING) and its segments are still in the store"
        how = "with a token that is good"
    else:
        left = "its record may still say BUILDING, and its segments may still be in the store"
        how = "once the store answers and has room"
    return ErrorInfo(
        code=info.code,
        message=f"{info.message}; it could not be cleaned up: {left}: {problem}",
        hint=f"{info.hint}; to remove the rest, delete backup {backup_id} {how}",
    )
