"""The daemon's link to RabbitMQ, which receives tasks and sends reports while the daemon runs.

One thread owns the connection and handles only messages, so that heartbeats go on while a task
runs. A lost connection is opened again, for ever. This module knows neither the meaning of a task
nor the place where tasks and reports are kept.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final

from agent.broker.amqp import BrokerSettings, translated
from agent.broker.intake import Intake, Verdict
from agent.broker.outflow import Outflow, ReportQueue
from agent.broker.pace import DEFAULT_PAUSES, Pace, Pauses, ProblemLog
from agent.broker.session import Session
from agent.broker.topology import Upkeep
from agent.errors import AgentError, BrokerUntrusted

_CLOSING_SECONDS: Final = 10.0
_BEAT_SECONDS: Final = 1.0


class BrokerLink:
    """A link that consumes one instance's tasks and publishes the outbox, on its own thread.

    `on_message` is called on that thread with the body of each message, and with True if the
    message was delivered before. It must be quick, because it blocks the thread (it writes the
    journal). If it returns HOLD or raises an AgentError, no task can be kept at present. Then the
    link stops consuming and offers the message again after a pause.

    `ready` raises an AgentError if no task can be kept. Then nothing is taken from the broker.
    `consuming` is set while the consumer is registered. If one instance has several links, the
    broker gives messages to only one of them. `beats` grows by 1 every second while the event loop
    runs. If it does not grow, something blocks the loop.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        instance_id: str,
        on_message: Callable[[bytes, bool], Verdict],
        outbox: ReportQueue,
        pauses: Pauses = DEFAULT_PAUSES,
        ready: Callable[[], None] = lambda: None,
    ):
        self.beats = 0
        self._settings = settings
        self._instance_id = instance_id
        self._pace = Pace(pauses)
        self._problems = ProblemLog()
        self._upkeep = Upkeep(settings, instance_id)
        self._intake = Intake(instance_id, on_message, ready, self._upkeep, self._pace)
        self._outflow = Outflow(settings, outbox, self._pace)
        self.consuming = self._intake.consuming
        self._loop = asyncio.new_event_loop()
        self._main: asyncio.Task[None] | None = None
        self._connected = False
        self._untrusted = ""
        self._thread = threading.Thread(target=self._run, name="broker", daemon=True)

    @property
    def trouble(self) -> str:
        """Return in a few words the problems of the link, or "" if there are none.

        A lost connection is not one of these problems, unless a certificate is refused. That lasts
        until the certificate is renewed.
        """
        parts = (self._intake, self._upkeep, self._outflow)
        troubles = [self._untrusted, *(part.trouble for part in parts)]
        return "; ".join(trouble for trouble in troubles if trouble)

    def start(self) -> None:
        """Start the thread and return at once, even if the broker does not answer."""
        self._thread.start()

    def alive(self) -> bool:
        """Return True while the link's thread runs, which only `stop()` or a defect ends."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """Tell the link, from any thread, that there is a report in the outbox."""
        self._tell(self._pace.awake.set)

    def stop(self, deadline_seconds: float) -> None:
        """Stop consuming, publish the waiting reports, and disconnect.

        Publishing may take at most `deadline_seconds`. Without a connection nothing is published.
        Disconnecting may take 10 seconds more.
        """
        if self._thread.ident is None:
            self._loop.close()
            return
        self._tell(lambda: self._begin_stop(deadline_seconds))
        # A connection that isn't closed in time ends with the process.
        self._thread.join(deadline_seconds + _CLOSING_SECONDS)

    def _tell(self, callback: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and so has the link
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
                # A broker that ends each connection at once needs growing pauses, like a broker
                # that accepts none. So only a connection that lasted resets the failures.
                lasted = self._loop.time() - began
                failures = 0 if self._connected and lasted > self._pace.pauses.longest else failures
                self._connected = False
                self._untrusted = str(error) if isinstance(error, BrokerUntrusted) else ""
                self._problems.complain(logging.WARNING, f"{error.code}: {error}; {error.hint}")
                await self._pace.pause(self._pace.pauses.after(failures))
                failures += 1

    async def _connection(self) -> None:
        session = await Session.open(self._settings, f"backup-agent {self._instance_id}")
        try:
            await self._upkeep.begin(session)
            self._connected, self._untrusted = True, ""
            self._problems.tell(logging.INFO, f"connected to {self._settings.where}")
            await _race(
                self._intake.run(session),
                self._outflow.run(session),
                self._watch(session),
                session.lost(),
            )
        finally:
            await session.close()

    async def _watch(self, session: Session) -> None:
        """Check at intervals that tasks can still come, until the link stops.

        Then wait until the connection is lost, because the outbox may still be publishing.
        """
        while not self._pace.stopping.is_set():
            await self._pace.pause(self._pace.pauses.check)
            await self._upkeep.check(session)
            if self.consuming.is_set():
                await self._intake.look_for_others(session)
        await session.lost()


async def _race(*contestants: Coroutine[Any, Any, None]) -> None:
    """Run coroutines concurrently until the first one ends, and cancel the others.

    Raise the error of the one that ended, if it failed.
    """
    tasks = [asyncio.create_task(contestant) for contestant in contestants]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
