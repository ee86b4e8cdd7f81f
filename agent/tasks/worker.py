"""The worker accepts tasks into the journal, and performs one at a time on its own thread."""

import gc
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, repeat

from agent.broker import wire
from agent.broker.intake import ACK, Verdict, dead_letter
from agent.crash_points import Point, reached
from agent.errors import (
    DatabaseError,
    Interrupted,
    JournalError,
    LockTimeout,
    MessageUnreadable,
    StorageRefused,
)
from agent.journal import Acceptance, Journal
from agent.model import ErrorInfo, ReportDraft, Task, TaskStatus
from agent.operations.backup.preflight import observe_lineage
from agent.operations.backup.replica import restart_sql_thread
from agent.operations.resources import BackupResources
from agent.stop import Stop
from agent.tasks.executor import Executor
from agent.tasks.stores import TaskStores, without_token
from agent.threads import about_task

log = logging.getLogger(__name__)

# The longest sleep of an idle worker. A task wakes it at once.
_IDLE_SECONDS = 5.0
# Seconds between two tries to use a journal that can't be used.
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
# How often an idle agent reads the LSN, to notice a volume that was rolled back.
_LSN_SECONDS = 60.0


class Worker:
    """The worker thread, and the broker's way to give it tasks.

    `failure` is the exception that ended the thread, None if there is none.
    """

    def __init__(
        self,
        journal: Journal,
        resources: BackupResources,
        stores: TaskStores,
        executor: Executor,
        *,
        wake: Callable[[], None],
    ) -> None:
        """`wake` is called after each new report."""
        self._journal = journal
        self._resources = resources
        self._stores = stores
        self._wake = wake
        self._work = threading.Event()
        self._lock = threading.Lock()
        self._ending = False
        self._current: Stop | None = None
        self._executor = executor
        self._lsn_read = -math.inf
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self.failure: BaseException | None = None

    # --- the broker's side ---------------------------------------------------------------

    def on_message(self, body: bytes, redelivered: bool = False) -> Verdict:
        """Journal a message. Return the verdict for the broker.

        The latest report of a known task is sent once more, unless the message is `redelivered`:
        then only its acknowledgement was lost.

        Raises:
            JournalError: the broker has to keep the message for now.
        """
        try:
            task = wire.decode_task(body)
        except MessageUnreadable as error:
            return self._refuse(body, error)
        with about_task(task.task_id, task.subject):
            self._take(task, answer=not redelivered)
        self._work.set()
        self._wake()
        return ACK

    def _take(self, task: Task, *, answer: bool) -> None:
        kind = self._executor.kinds[type(task)]
        if kind.writes_files:
            self._journal.check_disk()
        accepted = self._accept(task, answer=answer)
        reached(Point.ACCEPTED)
        log.debug("the message is %s", accepted.name if accepted else "REFUSED")
        kind.after_journalled(task, is_new=accepted is Acceptance.NEW)

    def ready(self) -> None:
        """Raise JournalError if the journal could take no task. The broker keeps them all then."""
        self._journal.try_room()

    def _accept(self, task: Task, *, answer: bool) -> Acceptance | None:
        """Journal a task without its token, which stays in memory while the task is unfinished.

        Return None if the task is refused. The journal then has only the FAILED report of a task
        that it did not know.
        """
        bare = without_token(task)
        draft = ReportDraft(task_id=task.task_id, type=task.type, status=TaskStatus.ACCEPTED)
        drafts = [draft]
        if self._executor.kinds[type(task)].done_when_accepted:
            drafts.append(draft.model_copy(update={"status": TaskStatus.DONE}))
        try:
            self._stores.check_place(task)
        except StorageRefused as error:
            refused = {"status": TaskStatus.FAILED, "error": ErrorInfo.of(error)}
            self._journal.accept(bare, draft.model_copy(update=refused), answer=answer)
            return None
        first, accepted = self._stores.keep(task), None
        try:
            accepted = self._journal.accept(bare, *drafts, answer=answer)
        finally:
            known = accepted is Acceptance.KNOWN
            if (first and accepted is None) or (known and self._journal.has_ended(task.task_id)):
                self._stores.forget(task.task_id)
        return accepted

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
        return dead_letter(error)

    # --- the worker's life ---------------------------------------------------------------

    def start(self) -> None:
        """Start the thread. It settles interrupted tasks first."""
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """Interrupt the running task and end the thread. Return True if it ended in that time.

        After half of `seconds` no request to the store is retried.
        """
        self._executor.end()
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
        """Return True if the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._insist(self._executor.cancellation.resume)
            while not self._ending:
                self._insist(self._round)
        except BaseException as error:  # noqa: BLE001 - the thread's top: the daemon reads it
            log.critical("the worker thread ended: %s", error)
            self.failure = error

    def _insist(self, step: Callable[[], None]) -> None:
        """Do a step. Retry it while the journal can't be used and the agent does not end."""
        pauses = chain(_PAUSES, repeat(_PAUSES[-1]))
        while not self._ending:
            try:
                step()
                return
            except JournalError as error:
                pause = next(pauses)
                if pause == _PAUSES[0]:
                    log.error("no task goes on until the journal can be used: %s", error)
            # the order matters: an event that is set from here on ends the wait
            self._work.clear()
            if not self._ending:
                self._work.wait(pause)

    def _round(self) -> None:
        self._work.clear()
        self._executor.reporter.tell_held()
        self._executor.recovery.run()
        # each once, so that one that can't be finished delays no other task
        for task in self._executor.recovery.take_continued():
            self._do(task)
        claimed = self._journal.claim()
        if claimed is None:
            self._do_idle_work()
            self._work.wait(_IDLE_SECONDS)
        else:
            reached(Point.CLAIMED)
            self._do(claimed)

    def _do(self, task: Task) -> None:
        with self._stoppable() as stop:
            self._executor.perform(task, stop, self._executor.cancellation.registered(task, stop))
        # A failed task's traceback and its stop refer to each other, and to the buffers of
        # the data path: a cycle that would keep 100 MiB.
        gc.collect()

    def _do_idle_work(self) -> None:
        """Note the server's LSN once a minute. One that went back means a rollback.

        Also start the SQL threads of a replica that a killed agent left stopped.
        """
        if time.monotonic() - self._lsn_read < _LSN_SECONDS:
            return
        self._lsn_read = time.monotonic()
        restart_sql_thread(self._resources)
        try:
            observe_lineage(self._resources, self._journal.observe_lsn)
        except (DatabaseError, LockTimeout) as error:
            log.info("can't read the LSN: %s", error)

    # --- the running task ---------------------------------------------------------------

    @contextmanager
    def _stoppable(self) -> Iterator[Stop]:
        """Yield the Stop of one task. It is requested at once if the agent is ending."""
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
