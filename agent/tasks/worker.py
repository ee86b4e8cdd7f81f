"""The worker: takes tasks into the journal, and does one at a time on a thread of its own."""

import gc
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, repeat

from agent.broker import wire
from agent.broker.intake import ACK, Verdict, dead
from agent.crash_points import Point, reached
from agent.errors import (
    DatabaseError,
    Interrupted,
    JournalError,
    MessageUnreadable,
    StorageRefused,
)
from agent.journal import Acceptance, Journal
from agent.model import (
    CancelTask,
    DeleteTask,
    ErrorInfo,
    PingTask,
    ReportDraft,
    StoreTask,
    Task,
    TaskStatus,
)
from agent.operations.backup.preflight import observe_lineage
from agent.operations.backup.replica import put_back
from agent.operations.resources import BackupResources
from agent.stop import Stop
from agent.tasks.cancellation import Cancellation
from agent.tasks.executor import Executor
from agent.tasks.stores import TaskStores, without_token

log = logging.getLogger(__name__)

# How long the worker sleeps when nobody wakes it: a bound, not a polling interval.
_IDLE_SECONDS = 5.0
# How long it waits, after each time that the journal could not be used, to use it again.
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
# How often an idle agent looks at the LSN, to notice a volume that was rolled back.
_LOOK_SECONDS = 60.0


class Worker:
    """Owns the worker thread; `wake` is called whenever there is something to send."""

    def __init__(
        self,
        journal: Journal,
        resources: BackupResources,
        stores: TaskStores,
        performer: Executor,
        *,
        wake: Callable[[], None],
    ) -> None:
        self._journal = journal
        self._resources = resources
        self._stores = stores
        self._wake = wake
        self._work = threading.Event()
        self._lock = threading.Lock()
        self._ending = False
        self._current: Stop | None = None
        self._performer = performer
        self._cancellation = Cancellation(journal)
        self._looked = -math.inf
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self.failure: BaseException | None = None

    # --- the broker's side ---------------------------------------------------------------

    def on_message(self, body: bytes, redelivered: bool = False) -> Verdict:
        """Journal a delivery; the verdict tells the broker's thread what to do with it.

        A JournalError means that the broker has to keep it for now. What comes again, because
        its acknowledgement was lost, is not answered once more where it is known.
        """
        try:
            task = wire.decode_task(body)
        except MessageUnreadable as error:
            return self._refuse(body, error)
        if not isinstance(task, CancelTask | PingTask):
            # it would fail for want of a place for its own files
            self._journal.check_disk()
        accepted = self._accept(task, answer=not redelivered)
        reached(Point.ACCEPTED)
        if isinstance(task, CancelTask):
            self._cancel(task)
        if accepted is Acceptance.NEW and isinstance(task, DeleteTask):
            # the worker is busy with what stands in the way, and would take it only then
            self._performer.make_way(task)
        self._work.set()
        self._wake()
        return ACK

    def ready(self) -> None:
        """Raise JournalError if no task could be kept: then the broker has to keep them all."""
        self._journal.check_room()

    def _cancel(self, task: CancelTask) -> None:
        reached(Point.CANCEL_JOURNALLED)
        self._cancellation.take(task)
        if self._ended(task.cancels):
            self._stores.forget(task.cancels)

    def _accept(self, task: Task, *, answer: bool) -> Acceptance | None:
        """Journal a task without its token, which is kept while the task is unfinished.

        None for one that is refused: its end is all that is journalled.
        """
        bare = without_token(task)
        draft = ReportDraft(task_id=task.task_id, type=task.type, status=TaskStatus.ACCEPTED)
        drafts = [draft]
        if isinstance(task, PingTask):
            # a sign of life must not wait for the worker, and is done by saying so
            drafts.append(draft.model_copy(update={"status": TaskStatus.DONE}))
        try:
            self._stores.admit(task)
        except StorageRefused as error:
            refused = {"status": TaskStatus.FAILED, "error": ErrorInfo.of(error)}
            self._journal.accept(bare, draft.model_copy(update=refused), answer=answer)
            return None
        first, accepted = self._stores.keep(task), None
        try:
            accepted = self._journal.accept(bare, *drafts, answer=answer)
        finally:
            known = accepted is Acceptance.KNOWN
            if (first and accepted is None) or (known and self._ended(task.task_id)):
                self._stores.forget(task.task_id)
        return accepted

    def _ended(self, task_id: str) -> bool:
        status = self._journal.status(task_id)
        return status is None or status.final

    def _refuse(self, body: bytes, error: MessageUnreadable) -> Verdict:
        task_id = wire.task_id_of(body)
        if task_id is not None:
            self._journal.refuse(
                ReportDraft(
                    task_id=task_id,
                    type=wire.task_type_of(body) or "unknown",
                    status=TaskStatus.FAILED,
                    error=ErrorInfo.of(error),
                )
            )
            self._wake()
        return dead(error)

    # --- the worker's life ---------------------------------------------------------------

    def start(self) -> None:
        """Begin to work, with what a crash cut off."""
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """Interrupt the running task and end the thread; whether it ended in that time.

        After half of it no request to the store is repeated any more.
        """
        self._performer.end()
        with self._lock:
            self._ending = True
            current = self._current
        if current is not None:
            current.request(Interrupted("the agent was told to stop"))
        self._work.set()
        self._thread.join(seconds / 2)
        if self._thread.is_alive():
            self._stores.abort()
            self._thread.join(seconds / 2)
        return not self._thread.is_alive()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._insist(self._cancellation.resume)
            while not self._ending:
                self._insist(self._round)
        except BaseException as error:  # noqa: BLE001 - the thread's top: the daemon looks here
            log.critical("the worker thread ended: %s", error)
            self.failure = error

    def _insist(self, step: Callable[[], None]) -> None:
        """Do a step, again and again while the journal can't be used, until the agent ends."""
        pauses = chain(_PAUSES, repeat(_PAUSES[-1]))
        while not self._ending:
            try:
                step()
                return
            except JournalError as error:
                pause = next(pauses)
                if pause == _PAUSES[0]:
                    log.error("no task goes on until the journal can be used: %s", error)
            # the order matters: what is set from here on ends the wait
            self._work.clear()
            if not self._ending:
                self._work.wait(pause)

    def _round(self) -> None:
        self._work.clear()
        self._performer.reporter.tell_held()
        self._performer.recovery.run()
        # each once, so that one that can't be ended holds no other task up
        for delete in self._performer.recovery.take_deletes():
            self._do(delete)
        task = self._journal.claim()
        if task is None:
            self._look()
            self._work.wait(_IDLE_SECONDS)
        else:
            reached(Point.CLAIMED)
            self._do(task)

    def _do(self, task: Task) -> None:
        with self._stoppable() as stop:
            self._performer.perform(task, stop, self._cancellation.possible(task, stop))
        # A failed task's traceback and its stop refer to each other, and to the buffers of
        # the data path: a cycle that would keep 100 MiB.
        if isinstance(task, StoreTask):
            gc.collect()

    def _look(self) -> None:
        """Note the server's LSN now and then, so that one that goes back is noticed."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        # an agent that was killed during a backup may have left it stopped
        put_back(self._resources)
        try:
            observe_lineage(self._resources, self._journal.observe_lsn)
        except DatabaseError as error:
            log.info("the LSN can't be looked at: %s", error)

    # --- the running task ---------------------------------------------------------------

    @contextmanager
    def _stoppable(self) -> Iterator[Stop]:
        """A stop for one task, which `stop` reaches; already stopped when the agent ends."""
        stop = Stop()
        with self._lock:
            self._current = stop
            ending = self._ending
        if ending:
            stop.request(Interrupted("the agent was told to stop"))
        try:
            yield stop
        finally:
            with self._lock:
                self._current = None
