"""Do one task, from its first report to its final one.

This is the task boundary: every exception of a task becomes its final report here. Two kinds of
tasks get no final report yet. If only the store or the journal can tell how a task ended, the task
goes to the recovery. If the agent's end interrupted a task that sets `retry`, it is requeued.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from agent.errors import AgentError, Cancelled, Fenced, Interrupted, JournalError, StoreFull
from agent.journal import Journal
from agent.model import ErrorInfo, Record, Task, TaskStatus
from agent.stop import Stop
from agent.tasks.cancellation import Cancellation
from agent.tasks.kind import TaskTools
from agent.tasks.kinds import task_kinds
from agent.tasks.outcome import BackupFailed, OutcomeUnknown, may_answer_later, stop_with
from agent.tasks.recovery import Recovery
from agent.tasks.reports import Reporter, with_remains
from agent.tasks.stores import TaskStores
from agent.threads import about_task

log = logging.getLogger(__name__)


class Executor:
    """Performs the tasks of a journal. `kinds` has one entry for each type of task."""

    def __init__(
        self,
        journal: Journal,
        stores: TaskStores,
        *,
        restore_roots: Sequence[Path],
        progress_seconds: float,
        wake: Callable[[], None],
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        """Restores may write below `restore_roots`.

        `wake` is called after each new report, and `ended` after each final one.
        """
        self._ending = False
        self.reporter = Reporter(
            journal, stores, progress_seconds=progress_seconds, wake=wake, ended=ended
        )
        self.cancellation = Cancellation(journal)
        tools = TaskTools(journal, stores, self.reporter, restore_roots)
        self.kinds = task_kinds(tools, self.cancellation)
        self.recovery = Recovery(tools, self.kinds)

    def end(self) -> None:
        """Note that the agent is ending. A task of a silent store then waits for the next start."""
        self._ending = True

    def perform(
        self, task: Task, stop: Stop, within: AbstractContextManager[None] | None = None
    ) -> None:
        """Perform one task and write its final report.

        `within` is entered before the task and left after it. It registers the task for cancels.

        Raises:
            JournalError: the journal does not take the final report, which `reporter` then holds.
                Or it can't tell if the task may begin again, and the task stays RUNNING.
        """
        with about_task(task.task_id, task.subject):
            self._perform(task, stop, within or nullcontext())

    def _perform(self, task: Task, stop: Stop, within: AbstractContextManager[None]) -> None:
        log.info("task %s (%s) begins", task.task_id, task.type)
        kind = self.kinds[type(task)]
        try:
            with within:
                outcome = kind.perform(task, stop)
        except OutcomeUnknown as error:
            self._wait(task, error.__cause__ or error, error.attempt)
        except BackupFailed as failed:
            self._backup_failed(task, failed)
        except BaseException as error:  # noqa: BLE001 - the task boundary
            if kind.continues and isinstance(error, JournalError):
                # only the journal knows whether it had begun, so it is performed again
                self._wait(task, error)
            else:
                self._failed(task, stop_with(stop, error), None)
        else:
            log.info("task %s is done", task.task_id)
            self.reporter.tell_end(task, TaskStatus.DONE, outcome.record, deleted=outcome.deleted)

    def _wait(self, task: Task, error: BaseException, attempt: str = "") -> None:
        """Leave it to the recovery, now or at the next start, to report how the task ended."""
        info = ErrorInfo.of(error)
        if isinstance(error, Interrupted):
            log.info("task %s goes on at the next start: %s", task.task_id, info.message)
        else:
            what = "journal" if isinstance(error, JournalError) else "store"
            log.error("task %s waits for the %s: %s", task.task_id, what, info.message)
        self.recovery.add(task, info, attempt)

    def _backup_failed(self, task: Task, failed: BackupFailed) -> None:
        problem = failed.problem
        silent = problem is not None and may_answer_later(problem)
        if silent and (failed.undecided or self._ending):
            self._wait(task, failed.cause, failed.attempt)
            return
        if silent or (isinstance(problem, StoreFull) and not failed.undecided):
            # reported as FAILED now, and cleaned up when the store answers or has room
            self.recovery.add(task, ErrorInfo.of(failed.cause), failed.attempt, reported=True)
        self._failed(task, failed.cause, failed.record, None if silent else problem)

    def _failed(
        self,
        task: Task,
        error: BaseException,
        record: Record | None,
        problem: AgentError | None = None,
    ) -> None:
        """Report a task that failed with `error`. Requeue it if the agent's end interrupted it.

        `problem` is why its backup could not be cleaned up. It is None if that was done, or if the
        recovery does it later.
        """
        interrupted = self._ending and isinstance(error, Interrupted)
        if interrupted and self.recovery.requeue(task, record):
            return
        info = ErrorInfo.of(error)
        if record and problem and not isinstance(problem, Fenced):
            info = with_remains(info, record.id, problem)
        status = TaskStatus.FAILED
        if isinstance(error, Cancelled):
            status = TaskStatus.CANCELLED
            log.warning("task %s is cancelled: %s", task.task_id, info.message)
        elif isinstance(error, AgentError):
            log.error("task %s failed: %s: %s", task.task_id, info.code, info.message)
        else:
            log.exception("task %s failed because of a defect of the agent", task.task_id)
        self.reporter.tell_end(task, status, record, info)
