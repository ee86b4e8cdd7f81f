"""The daemon's link to RabbitMQ: tasks come in, reports go out, for as long as it runs.

One thread owns the connection and does nothing but messages, so that heartbeats go on
whatever a task does. A lost connection is made again for ever. What a task means, and where
tasks and reports are kept, is not known here.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final

from agent.broker.amqp import BrokerSettings, translated
from agent.broker.intake import Intake, Verdict
from agent.broker.outflow import Outbox, Outflow
from agent.broker.pace import DEFAULT_PAUSES, Pace, Pauses, Voice
from agent.broker.session import Session
from agent.broker.topology import Upkeep
from agent.errors import AgentError

_CLOSING_SECONDS: Final = 10.0
_BEAT_SECONDS: Final = 1.0


class BrokerLink:
    """Consumes one instance's tasks and publishes the outbox.

    `on_message` is given each message's body, and whether it was delivered before, on the link's
    thread and must be quick (it writes the journal). HOLD, or an AgentError from it, means that
    no task can be kept now: the link stops consuming and offers the message again after a while.
    `ready` raises an AgentError if no task could be kept: nothing is taken from the broker then.
    `consuming` is set while the consumer is registered; of several links of one instance the
    broker lets only one have messages. `trouble` says in a few words what is not as it should be
    while the link is connected. `beats` grows every second for as long as the loop gets
    round: one that stands still means that something blocks it.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        instance_id: str,
        on_message: Callable[[bytes, bool], Verdict],
        outbox: Outbox,
        pauses: Pauses = DEFAULT_PAUSES,
        ready: Callable[[], None] = lambda: None,
    ):
        self.beats = 0
        self._settings = settings
        self._instance_id = instance_id
        self._pace = Pace(pauses)
        self._voice = Voice()
        self._upkeep = Upkeep(settings, instance_id)
        self._intake = Intake(instance_id, on_message, ready, self._upkeep, self._pace)
        self._outflow = Outflow(settings, outbox, self._pace)
        self.consuming = self._intake.consuming
        self._loop = asyncio.new_event_loop()
        self._main: asyncio.Task[None] | None = None
        self._connected = False
        self._thread = threading.Thread(target=self._run, name="broker", daemon=True)

    @property
    def trouble(self) -> str:
        """What is wrong on the broker; "" if nothing is."""
        parts = (self._intake, self._upkeep, self._outflow)
        return "; ".join(part.trouble for part in parts if part.trouble)

    def start(self) -> None:
        """Begin; returns at once, whether the broker answers or not."""
        self._thread.start()

    def alive(self) -> bool:
        """Whether the link's thread runs; it ends by `stop()` only, or by a defect."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """Tell it that there is something in the outbox; from any thread."""
        self._tell(self._pace.awake.set)

    def stop(self, deadline_seconds: float) -> None:
        """Stop consuming, publish what waits for at most that long, and disconnect."""
        if self._thread.ident is None:
            self._loop.close()
            return
        self._tell(lambda: self._begin_stop(deadline_seconds))
        # a connection that doesn't close in time ends with the process
        self._thread.join(deadline_seconds + _CLOSING_SECONDS)

    def _tell(self, callback: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the link with it
            self._loop.call_soon_threadsafe(callback)

    def _begin_stop(self, seconds: float) -> None:
        self._pace.stopping.set()
        self._pace.awake.set()
        if self._main:
            self._loop.call_later(seconds if self._connected else 0.0, self._main.cancel)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._until_stopped())

    async def _until_stopped(self) -> None:
        beating = asyncio.create_task(self._beat())
        self._main = asyncio.create_task(self._reconnecting())
        await asyncio.wait({self._main})
        beating.cancel()
        if not self._main.cancelled():
            self._main.result()

    async def _beat(self) -> None:
        while True:
            self.beats += 1
            await asyncio.sleep(_BEAT_SECONDS)

    async def _reconnecting(self) -> None:
        failures = 0
        while not self._pace.stopping.is_set():
            began = self._loop.time()
            try:
                with translated(self._settings):
                    await self._connection()
            except AgentError as error:
                # a broker that ends each connection at once is no better than one that takes none
                lasted = self._loop.time() - began
                failures = 0 if self._connected and lasted > self._pace.pauses.longest else failures
                self._connected = False
                self._voice.complain(logging.WARNING, f"{error.code}: {error}; {error.hint}")
                await self._pace.pause(self._pace.pauses.after(failures))
                failures += 1

    async def _connection(self) -> None:
        session = await Session.open(self._settings, f"backup-agent {self._instance_id}")
        try:
            await self._upkeep.begin(session)
            self._connected = True
            self._voice.tell(logging.INFO, f"connected to {self._settings.where}")
            await _race(
                self._intake.run(session),
                self._outflow.run(session),
                self._watch(session),
                session.lost(),
            )
        finally:
            await session.close()

    async def _watch(self, session: Session) -> None:
        """Look again and again whether tasks can still come; not while the link stops."""
        while not self._pace.stopping.is_set():
            await self._pace.pause(self._pace.pauses.check)
            await self._upkeep.check(session)
            if self.consuming.is_set():
                await self._intake.look_for_others(session)
        await session.lost()


async def _race(*contestants: Coroutine[Any, Any, None]) -> None:
    """Run them side by side until one ends, and end the others; raises what it raised."""
    tasks = [asyncio.create_task(contestant) for contestant in contestants]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
