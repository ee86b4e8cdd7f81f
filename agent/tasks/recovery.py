"""Settle the tasks that a crash interrupted, or for which the store fell silent.

Only the store, or the target of a restore, can tell how such a task ended. It stays here until the
store has answered, and gets its one final report then. An interrupted delete is performed again
instead, which continues it. A create or restore that sets `retry` is requeued when nothing is left
of it.

Cleanups of tasks that were reported already are kept in memory only. After a restart they are left
to `backup-agent gc`.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Final

from agent.crash_points import Point, reached
from agent.errors import AgentError, Cancelled, Interrupted, JournalError, StoreFull, TokenLost
from agent.journal import InterruptedTask, cancelled_error
from agent.model import BackupStatus, ErrorInfo, Record, Task, TaskStatus
from agent.tasks.kind import TaskTools
from agent.tasks.kinds import Kinds
from agent.tasks.outcome import may_answer_later
from agent.threads import about_task

log = logging.getLogger(__name__)

# How often a task that sets `retry` is begun at most. One that ends the agent each time must not do
# so for ever.
MOST_RUNS: Final = 3
# Seconds between two cleanups in a store that is full.
_FIRST_PAUSE: Final = 5.0
_LONGEST_PAUSE: Final = 300.0


@dataclass(eq=False)
class _Waiting:
    """A task that waits for the store, and the error it failed with as far as is known.

    Attributes:
        attempt: the id of its backup attempt, "" if it made none.
        reported: it has had its final report. Only a cleanup waits for the store to answer or to
            have room.
        tries: how often the store had no room.
        due: the next try, in monotonic seconds.
        logged: the reason that the log has.
    """

    task: Task
    attempt: str
    info: ErrorInfo
    reported: bool = False
    tries: int = 0
    due: float = 0.0
    logged: str = ""

    def postpone(self) -> None:
        """Set the next try, after twice the last pause."""
        self.due = monotonic() + min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self.tries, 16))
        self.tries += 1

    def log(self, problem: AgentError) -> None:
        """Log why it waits, once while the reason is the same."""
        if str(problem) != self.logged:
            log.warning("task %s is not cleaned up: %s", self.task.task_id, problem)
        self.logged = str(problem)


class Recovery:
    """The tasks that wait for the store, at first those that were RUNNING at the start."""

    def __init__(self, tools: TaskTools, kinds: Kinds) -> None:
        self._journal = tools.journal
        self._stores = tools.stores
        self._reporter = tools.reporter
        self._kinds = kinds
        self._waiting = [
            _Waiting(one.task, one.attempt, self._reason(one)) for one in self._journal.running()
        ]

    def _reason(self, one: InterruptedTask) -> ErrorInfo:
        lost = self._stores.token_lost(one.task)
        return _interrupted(one) if lost is None else ErrorInfo.of(lost)

    def add(
        self, task: Task, info: ErrorInfo, attempt: str = "", *, reported: bool = False
    ) -> None:
        """Keep a task that failed with `info`, as far as is known.

        `reported` means that its final report says so, and only a cleanup is left.
        """
        self._waiting.append(_Waiting(task, attempt, info, reported))

    def reason(self, task_id: str) -> str:
        """Return why that task waits, "" if that is not known."""
        return next((one.logged for one in self._waiting if one.task.task_id == task_id), "")

    def run(self) -> None:
        """Settle and report the tasks that wait. Keep those for which the store is silent.

        Raises:
            JournalError: the journal can't be used. Tasks that it did not take are kept.
        """
        for one in list(self._waiting):
            if monotonic() < one.due:
                continue
            with about_task(one.task.task_id, one.task.subject):
                settled = self._settle_and_report(one)
            if settled:
                self._waiting.remove(one)

    def take_continued(self) -> Iterator[Task]:
        """Yield the tasks to perform again now. A task that has to wait is added back."""
        for one in list(self._waiting):
            if self._continues(one.task):
                self._waiting.remove(one)
                yield one.task

    def requeue(self, task: Task, record: Record | None) -> bool:
        """Requeue an interrupted task that set `retry`. Return True if it was requeued.

        `record` is left of it. It is requeued only if no record is left but one that is FAILED
        because of the agent's end, if it has no kept note and no open cancel, and if it has begun
        fewer than MOST_RUNS times.
        """
        if not self._kinds[type(task)].may_retry(task):
            return False
        if record is not None and not _failed_by_interruption(record):
            return False
        if self._journal.kept_note(task.task_id) is not None:
            # the write of its COMPLETED record may be on its way to the store
            return False
        if not self._journal.requeue(task.task_id, MOST_RUNS):
            return False
        log.warning("task %s was interrupted, and begins again", task.task_id)
        return True

    def _continues(self, task: Task) -> bool:
        return self._kinds[type(task)].continues

    def _settle_and_report(self, one: _Waiting) -> bool:
        """Clean up and report a task. Return True if nothing is left to do for it."""
        if self._continues(one.task):
            return False
        task_id, info = one.task.task_id, one.info
        for cancel in self._journal.cancels(task_id):
            info = ErrorInfo.of(cancelled_error(cancel))
        record, clean, full = None, False, False
        try:
            record = self._kinds[type(one.task)].settle(one.task, one.attempt, info)
            clean = True
        except TokenLost as problem:
            info = ErrorInfo.of(problem)
        except JournalError:
            raise
        except AgentError as problem:
            one.log(problem)
            if may_answer_later(problem):
                return False
            # reported now, and cleaned up when there is room: its bytes were removed to make some
            full = isinstance(problem, StoreFull) and self._journal.kept_note(task_id) is None
        reached(Point.RECOVERED)
        interrupted = clean and info.code == Interrupted.code
        # the journal may have deleted a task that was reported
        if not (one.reported or (interrupted and self.requeue(one.task, record))):
            self._report(one.task, info, record)
        if full:
            one.reported = True
            one.postpone()
        return not full

    def _report(self, task: Task, info: ErrorInfo, record: Record | None) -> None:
        if record is not None and record.status is BackupStatus.COMPLETED:
            self._reporter.tell(task, TaskStatus.DONE, record=record)
            return
        info = record.error if record and record.error else info
        cancelled = info.code == Cancelled.code
        status = TaskStatus.CANCELLED if cancelled else TaskStatus.FAILED
        self._reporter.tell(task, status, record=record, error=info)


def _failed_by_interruption(record: Record) -> bool:
    """Return True if the backup failed for no other reason than the agent's end."""
    if record.status is not BackupStatus.FAILED or record.error is None:
        return False
    return record.error.code == Interrupted.code


def _interrupted(one: InterruptedTask) -> ErrorInfo:
    how_often = f" in each of the task's {one.runs} runs" if one.runs > 1 else " while the task ran"
    return ErrorInfo.of(Interrupted(f"the agent ended{how_often}"))
