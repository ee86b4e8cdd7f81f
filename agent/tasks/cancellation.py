"""Cancel tasks. A waiting task ends in the journal, the running one by its Stop.

A cancel is handled on the thread of the broker, so it never waits for the worker. The transaction
that ends the running task also answers its cancels.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from agent.errors import Cancelled, TooLate
from agent.journal import Journal, cancelled_error, refusal_report
from agent.model import CancelTask, Task
from agent.stop import Stop
from agent.threads import about_task

log = logging.getLogger(__name__)


class Cancellation:
    """Cancels tasks of a journal. Methods may be called from any thread."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = threading.Lock()
        self._running: tuple[Task, Stop] | None = None

    def handle(self, cancel: CancelTask) -> None:
        """Stop the task that a journalled cancel names, or answer the cancel. May be repeated."""
        if not self._journal.cancel(cancel):
            return
        with self._lock:
            task, stop = self._running or (None, None)
        if task is not None and stop is not None and task.task_id == cancel.cancels:
            with about_task(task.task_id, task.subject):
                log.warning("task %s is being cancelled", task.task_id)
            late = not stop.request(cancelled_error(cancel))
        else:
            # it is about to begin, or waits until the store can tell how it ended
            late = self._journal.kept_note(cancel.cancels) is not None
        if late:
            problem = TooLate(f"task {cancel.cancels} is already being completed")
            self._journal.report(refusal_report(cancel, problem))

    def resume(self) -> None:
        """Handle the cancels that a crash left unanswered. Call it before any task is claimed."""
        for cancel in self._journal.cancels():
            self.handle(cancel)

    @contextmanager
    def registered(self, task: Task, stop: Stop) -> Iterator[None]:
        """Register `stop` for cancels of `task` inside the block, also for earlier ones.

        A task that has a kept note when it begins here is a delete that goes on. It can't be
        cancelled.
        """
        if self._journal.kept_note(task.task_id) is not None:
            stop.ignore(Cancelled)
        with self._lock:
            self._running = task, stop
        try:
            # a cancel between the claim and this line found nothing to stop
            for cancel in self._journal.cancels(task.task_id):
                stop.request(cancelled_error(cancel))
            yield
        finally:
            with self._lock:
                self._running = None
