"""The daemon: builds the parts, runs until a signal, and ends in the right order.

Threads: the broker's (messages and nothing else), the worker (one task at a time, with the
data path's own threads while it runs), and this one, which waits for a signal or for the
failure of another.
"""

import logging
import os
import shutil
import signal
from queue import Empty, SimpleQueue
from types import FrameType
from uuid import uuid4

from agent import assembly
from agent.broker.link import BrokerLink
from agent.broker.wire import task_queue
from agent.config import Config
from agent.errors import Internal
from agent.host import lower_priority
from agent.journal import Journal
from agent.lock import only_agent
from agent.operations.parts import BackupParts
from agent.performer import Performer
from agent.runner import Runner

log = logging.getLogger(__name__)

# After SIGTERM: the engine has 3 s to end, then the record is written and the segments of
# the interrupted attempt are removed; systemd's default patience is 90 s.
_WORKER_SECONDS = 45.0
_OUTBOX_SECONDS = 15.0
_LOOK_SECONDS = 0.25


class Service:
    """One run of the daemon."""

    def __init__(self, config: Config) -> None:
        self._config = config
        # Not an Event: a signal that comes while this thread holds its lock would wait for ever.
        self._signals: SimpleQueue[int] = SimpleQueue()

    def run(self) -> None:
        """Work until SIGTERM or SIGINT; raises Internal where a thread has died."""
        lower_priority()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        config = self._config
        parts = assembly.backup_parts(config)
        with only_agent(config.agent.state_folder / "lock"):
            self._work(config, parts)

    def _work(self, config: Config, parts: BackupParts) -> None:
        # What an engine left there when the agent was killed is of no use to anyone.
        shutil.rmtree(parts.scratch, ignore_errors=True)
        journal = Journal(
            assembly.journal_path(config), config.agent.instance_id, run_id=str(uuid4())
        )
        performer = Performer(
            journal,
            parts,
            restore_roots=config.agent.restore_roots,
            progress_seconds=config.agent.progress_seconds,
            wake=lambda: link.wake(),
        )
        runner = Runner(journal, parts, performer, wake=lambda: link.wake())
        link = BrokerLink(
            assembly.broker(config), config.agent.instance_id, runner.on_message, journal
        )
        try:
            self._serve(runner, link)
        finally:
            parts.store.close()
            journal.close()

    def _serve(self, runner: Runner, link: BrokerLink) -> None:
        queue = task_queue(self._config.agent.instance_id)
        link.start()
        runner.start()
        consuming = signalled = False
        while runner.alive() and link.alive() and not (signalled := self._signalled()):
            if link.consuming.is_set() != consuming:
                consuming = not consuming
                log.info("%s %s", "consuming" if consuming else "not consuming", queue)
        log.info("ending")
        ended = runner.stop(_WORKER_SECONDS)
        link.stop(_OUTBOX_SECONDS)
        if not ended:
            # Its threads wait for a store that says nothing, and the interpreter would wait
            # for them. The next start does what it does after a crash.
            log.error("the running task did not end in %s s", _WORKER_SECONDS)
            logging.shutdown()
            os._exit(1)
        if not signalled:
            raise Internal(f"a thread of the agent died: {runner.failure or 'the broker link'}")

    def _signalled(self) -> bool:
        """Wait a moment for a signal; whether there was one."""
        try:
            number = self._signals.get(timeout=_LOOK_SECONDS)
        except Empty:
            return False
        log.info("received %s", signal.Signals(number).name)
        return True

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals.put(number)
