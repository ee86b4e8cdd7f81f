"""The daemon: it runs until a signal, and ends its threads in order.

The broker's thread handles messages only. The worker performs one task at a time, with the threads
of the data path while it runs. The main thread waits for a signal or for the failure of another
thread, and tells the service manager about the others.
"""

import logging
import os
import signal
import time
from queue import Empty, SimpleQueue
from types import FrameType

from agent import wiring
from agent.broker.link import BrokerLink
from agent.broker.wire import task_queue
from agent.config.settings import Config
from agent.errors import Internal
from agent.machine.host import lower_priority
from agent.machine.lock import WriteActivity
from agent.machine.systemd import Notifier
from agent.model import utc_now
from agent.tasks.worker import Worker

log = logging.getLogger(__name__)

# Seconds after SIGTERM. The engine has 3 of them to end. Then the record is written and the
# segments of the interrupted attempt are removed. systemd waits 90 s by default.
_WORKER_SECONDS = 45.0
_OUTBOX_SECONDS = 15.0
_LOOP_SECONDS = 0.25
# With each heartbeat before the first consumer, the agent requests this many more seconds to start.
# systemd offers no other way to wait for a broker that is down.
_START_SECONDS = 60.0
# Seconds between two heartbeats, or less: a watchdog gets at least four of them in its time.
_HEARTBEAT_SECONDS = 10.0
_HEARTBEATS_PER_WATCHDOG = 4
# The first word of a daemon's line in the lock file. The time since when follows.
CONSUMING = "consuming"
NOT_CONSUMING = "not-consuming"


class Supervision:
    """Tells systemd when the daemon is ready, what it does, and that its loop runs.

    The daemon is ready when it consumes for the first time. A heartbeat is sent only if the
    broker's loop has gone round since the last one. A loop that is blocked (by a callback, by a
    journal that never answers, in a stopped process) ends the heartbeats, and the watchdog kills
    the process. The worker only has to be alive: a worker that is stuck can't be distinguished
    from one that reads from an engine, or waits for its prepare, for hours. If the journal is
    stuck, which the worker shares with the loop, the loop stops as well.

    `check` is called while both threads live. `say` writes to the state directory whether tasks are
    taken, and since when, for `backup-agent status`.
    """

    def __init__(
        self,
        notifier: Notifier,
        link: BrokerLink,
        queue: str,
        say: WriteActivity = lambda _text: None,
    ) -> None:
        self._notifier = notifier
        self._link = link
        self._queue = queue
        self._say = say
        self._ready = self._consuming = False
        self._told = (False, "")
        self._beats = -1
        self._next_heartbeat = 0.0
        watchdog = notifier.watchdog_seconds or _HEARTBEAT_SECONDS * _HEARTBEATS_PER_WATCHDOG
        self._period = min(_HEARTBEAT_SECONDS, watchdog / _HEARTBEATS_PER_WATCHDOG)

    def check(self) -> None:
        """Report changes. Call it several times a second."""
        consuming, trouble = self._link.consuming.is_set(), self._link.trouble
        text = f"{'consuming' if consuming else 'not consuming'} {self._queue}"
        text += f"; {trouble}" if trouble else ""
        if consuming != self._consuming:
            log.info("%s", text)
            self._say(state_line(consuming=consuming))
        if (consuming, trouble) != self._told:
            self._notifier.say_status(text)
        self._consuming, self._told = consuming, (consuming, trouble)
        if self._consuming and not self._ready:
            self._ready = self._notifier.say_ready()
        beats, now = self._link.beats, time.monotonic()
        if beats != self._beats and now >= self._next_heartbeat and self._heartbeat():
            self._beats, self._next_heartbeat = beats, now + self._period

    def _heartbeat(self) -> bool:
        if self._ready:
            return self._notifier.say_alive()
        return self._notifier.extend(_START_SECONDS)


def state_line(*, consuming: bool) -> str:
    """Return a daemon's line for the lock file. It says if tasks are taken, and since when."""
    return f"{CONSUMING if consuming else NOT_CONSUMING} {utc_now()}"


class Daemon:
    """One run of the daemon."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._notifier = Notifier()
        # Not an Event: a signal that comes while this thread holds its lock would block for ever.
        self._signals: SimpleQueue[int] = SimpleQueue()

    def run(self) -> None:
        """Work until SIGTERM or SIGINT. Raise Internal if a thread has died."""
        lower_priority()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        config = self._config
        # the home directory of a daemon may be the datadir, which must have no cache in it
        resources = wiring.backup_resources(config, wiring.record_cache(config, {}), exclusive=True)
        if not resources.encrypt:
            log.warning("backups are made without encryption: [keys] encrypt is off")
        stores = wiring.task_stores(config, resources, {})
        with wiring.agent_run(
            config,
            resources,
            stores,
            note=state_line(consuming=False),
            wake=lambda: link.wake(),
            progress_seconds=config.agent.progress_seconds,
            ended=lambda: task_ended(),
        ) as run:
            worker = Worker(run.journal, resources, stores, run.executor, wake=lambda: link.wake())
            broker = wiring.broker(config)
            link = BrokerLink(
                broker, config.agent.instance_id, worker.on_message, run.journal, ready=worker.ready
            )
            with wiring.metrics(config, run, link.consuming.is_set) as task_ended:
                self._notifier.say_status(f"connecting to {broker.where}")
                self._serve(worker, link, run.note)

    def _serve(self, worker: Worker, link: BrokerLink, say: WriteActivity) -> None:
        queue = task_queue(self._config.agent.instance_id)
        supervision = Supervision(self._notifier, link, queue, say)
        link.start()
        worker.start()
        signalled = False
        while worker.alive() and link.alive() and not (signalled := self._signalled()):
            supervision.check()
        log.info("ending")
        self._notifier.say_status("ending: the running task is interrupted and cleaned up")
        self._notifier.say_stopping()
        ended = worker.stop(_WORKER_SECONDS)
        link.stop(_OUTBOX_SECONDS)
        if not ended:
            # Its threads wait for a silent store, and the interpreter would wait for them.
            # The next start recovers as after a crash.
            log.error("the running task did not end in %s s", _WORKER_SECONDS)
            logging.shutdown()
            os._exit(1)
        if not signalled:
            raise Internal(f"a thread of the agent died: {worker.failure or 'the broker link'}")

    def _signalled(self) -> bool:
        """Wait a moment for a signal. Return True if there was one."""
        try:
            number = self._signals.get(timeout=_LOOP_SECONDS)
        except Empty:
            return False
        log.info("received %s", signal.Signals(number).name)
        return True

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals.put(number)
