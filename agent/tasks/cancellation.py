"""Cancelling: a task that waits ends in the journal, the one that runs by its stop.

It happens on the thread that takes the messages, so a cancel never waits for the worker. What
runs answers the cancel when it has ended, in the journal's own transaction.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from agent.errors import Cancelled, TooLate
from agent.journal import Journal, cancellation, refused
from agent.model import CancelTask, Task
from agent.stop import Stop

log = logging.getLogger(__name__)


class Cancellation:
    """Knows the stop of the running task. Methods may be called from any thread."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = threading.Lock()
        self._running: tuple[str, Stop] | None = None

    def take(self, cancel: CancelTask) -> None:
        """Begin to do what a journalled cancel asks for, or answer it; again, where need be."""
        if not self._journal.cancel(cancel):
            return
        with self._lock:
            task_id, stop = self._running or ("", None)
        if stop is not None and task_id == cancel.cancels:
            log.warning("task %s is to be cancelled", task_id)
            late = not stop.request(cancellation(cancel))
        else:
            # it waits for the store to be brought to its end, or is about to begin
            late = self._journal.kept_record(cancel.cancels) is not None
        if late:
            problem = TooLate(f"task {cancel.cancels} is being brought to its end")
            self._journal.report(refused(cancel, problem))

    def resume(self) -> None:
        """Take the cancels that a crash left without an answer; before any task is claimed."""
        for cancel in self._journal.cancels():
            self.take(cancel)

    @contextmanager
    def possible(self, task: Task, stop: Stop) -> Iterator[None]:
        """Have cancels of `task` request `stop` inside the block, also those that came before.

        Not where it is brought to its end that had begun before.
        """
        if self._journal.kept_record(task.task_id) is not None:
            stop.ignore(Cancelled)
        with self._lock:
            self._running = task.task_id, stop
        try:
            # one that came between the claim and here found nothing to stop
            for cancel in self._journal.cancels(task.task_id):
                stop.request(cancellation(cancel))
            yield
        finally:
            with self._lock:
                self._running = None
