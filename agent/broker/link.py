"""The daemon's link to RabbitMQ: tasks come in, reports go out, for as long as it runs.

One thread owns the connection and does nothing but messages, so that heartbeats go on
whatever a task does. A lost connection is made again for ever. What a task means, and where
tasks and reports are kept, is not known here.
"""

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, Literal, NamedTuple, Protocol

from agent.broker import wire
from agent.broker.amqp import BrokerSettings, properties, translated
from agent.broker.session import Channel, Delivery, Session
from agent.broker.topology import declare
from agent.crash import Point, reached
from agent.errors import AgentError, Unroutable

_LOG = logging.getLogger(__name__)
_PREFETCH: Final = 1
# RabbitMQ closes the channel of a consumer that holds a delivery for 30 minutes.
_HOLD_LIMIT_SECONDS: Final = 600.0
_IDLE_SECONDS: Final = 30.0
_CLOSING_SECONDS: Final = 10.0
_BEAT_SECONDS: Final = 1.0


class Verdict(NamedTuple):
    """What is to become of a message: `code` and `message` tell why one is dead."""

    action: Literal["ack", "dead", "hold"]
    code: str = ""
    message: str = ""


ACK: Final = Verdict("ack")
HOLD: Final = Verdict("hold")


def dead(error: AgentError) -> Verdict:
    """For a message that can't be used: it goes to `backup.dead` with the reason."""
    return Verdict("dead", error.code, error.message[:200])


class Outgoing(Protocol):
    """A report to be published."""

    @property
    def seq(self) -> int: ...
    @property
    def routing_key(self) -> str: ...
    @property
    def body(self) -> bytes: ...


class Outbox(Protocol):
    """Where reports wait: called from the link's thread, lowest number first."""

    def next_report(self) -> Outgoing | None: ...
    def sent(self, seq: int) -> None: ...


class Pauses(NamedTuple):
    """Seconds: the first and the longest pause after a failure, and between tries to hand
    over a message that is held."""

    first: float = 1.0
    longest: float = 30.0
    hold: float = 5.0

    def after(self, failures: int) -> float:
        """The pause after so many failures in a row: doubled each time, with jitter."""
        delay = min(self.longest, self.first * 2.0 ** min(failures, 16))
        return delay * random.uniform(0.5, 1.0)  # noqa: S311 - only spreads reconnections


DEFAULT_PAUSES: Final = Pauses()


class BrokerLink:
    """Consumes one instance's tasks and publishes the outbox.

    `on_message` is given each message's body, and whether it was delivered before, on the link's
    thread and must be quick (it writes the journal). HOLD, or an AgentError from it, means that
    no task can be kept now: the link stops consuming and offers the message again after a while.
    `consuming` is set while the consumer is registered; of several links of one instance the
    broker lets only one have messages. `beats` grows every second for as long as the loop gets
    round: one that stands still means that something blocks it.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        instance_id: str,
        on_message: Callable[[bytes, bool], Verdict],
        outbox: Outbox,
        pauses: Pauses = DEFAULT_PAUSES,
    ):
        self.consuming = threading.Event()
        self.beats = 0
        self._settings = settings
        self._instance_id = instance_id
        self._on_message = on_message
        self._outbox = outbox
        self._pauses = pauses
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._awake = asyncio.Event()
        self._main: asyncio.Task[None] | None = None
        self._connected = False
        self._said = ""
        self._thread = threading.Thread(target=self._run, name="broker", daemon=True)

    def start(self) -> None:
        """Begin; returns at once, whether the broker answers or not."""
        self._thread.start()

    def alive(self) -> bool:
        """Whether the link's thread runs; it ends by `stop()` only, or by a defect."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """Tell it that there is something in the outbox; from any thread."""
        self._tell(self._awake.set)

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
        self._stopping.set()
        self._awake.set()
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
        while not self._stopping.is_set():
            try:
                with translated(self._settings):
                    await self._connection()
            except AgentError as error:
                failures = 0 if self._connected else failures
                self._connected = False
                self._say(logging.WARNING, f"{error.code}: {error}; {error.hint}")
                await self._pause(self._pauses.after(failures))
                failures += 1

    async def _connection(self) -> None:
        session = await Session.open(self._settings, f"backup-agent {self._instance_id}")
        try:
            await declare(session, self._settings, self._instance_id)
            incoming, outgoing = await session.channel(), await session.channel()
            await incoming.confirm()
            await outgoing.confirm()
            self._connected = True
            self._say(logging.INFO, f"connected to {self._settings.where}")
            await _race(self._consume(session, incoming), self._publish(outgoing), session.lost())
        finally:
            await session.close()

    # --- tasks in ------------------------------------------------------------------------

    async def _consume(self, session: Session, channel: Channel) -> None:
        queue = wire.task_queue(self._instance_id)
        try:
            while not self._stopping.is_set():
                consumer = await channel.consume(queue, _PREFETCH)
                self.consuming.set()
                await self._take_messages(channel, consumer)
        finally:
            self.consuming.clear()
        await session.lost()  # it is still needed while the outbox drains

    async def _take_messages(self, channel: Channel, consumer: str) -> None:
        """Take messages until one can't be kept; when it was kept at last, return."""
        while True:
            delivery = await channel.delivery()
            if self._stopping.is_set():
                return
            verdict = self._ask(delivery)
            if verdict.action == "hold":
                self.consuming.clear()
                await channel.call("basic_cancel", consumer_tag=consumer)
                await self._hold(channel, delivery)
                return
            await self._settle(channel, delivery, verdict)

    def _ask(self, delivery: Delivery) -> Verdict:
        try:
            return self._on_message(delivery.body, delivery.redelivered)
        except AgentError as error:
            self._say(logging.ERROR, f"a task waits on the broker: {error}; {error.hint}")
            return HOLD

    async def _hold(self, channel: Channel, delivery: Delivery) -> None:
        # Held rather than given back: quorum queues count returns and bury what has many.
        until = time.monotonic() + _HOLD_LIMIT_SECONDS
        while time.monotonic() < until and not self._stopping.is_set():
            await self._pause(self._pauses.hold)
            channel.check()
            verdict = self._ask(delivery)
            if verdict.action != "hold":
                await self._settle(channel, delivery, verdict)
                return
        channel.requeue(delivery)

    async def _settle(self, channel: Channel, delivery: Delivery, verdict: Verdict) -> None:
        if verdict.action == "dead":
            _LOG.error("a message is no task (%s): %s", verdict.code, verdict.message)
            headers = {"x-reason": verdict.code, "x-message": verdict.message}
            # cut, or one huge message would push all others out of the bounded queue
            body = delivery.body[: wire.MAX_TASK_BYTES]
            await channel.publish(wire.DEAD, "", body, properties(headers=headers), mandatory=False)
        channel.ack(delivery)
        self._awake.set()

    # --- reports out ---------------------------------------------------------------------

    async def _publish(self, channel: Channel) -> None:
        """Publish the outbox as it fills; returns when the link stops and it is empty."""
        failures = 0
        while True:
            self._awake.clear()
            report = self._outbox.next_report()
            if report is None:
                if self._stopping.is_set():
                    return
                await _wait(self._awake, _IDLE_SECONDS)
                continue
            try:
                await self._send(channel, report)
                if failures:
                    self._say(logging.INFO, "reports are taken again")
                failures = 0
            except Unroutable as error:
                self._say(logging.WARNING, f"{error}; {error.hint}")
                if self._stopping.is_set():
                    return
                # A further report is a reason to try at once: its reader may have come.
                await _wait(self._awake, self._pauses.after(failures))
                failures += 1

    async def _send(self, channel: Channel, report: Outgoing) -> None:
        await channel.publish(
            wire.REPORT_EXCHANGE,
            report.routing_key,
            report.body,
            properties(message_id=str(report.seq), app_id="backup-agent"),
        )
        reached(Point.PUBLISHED)
        self._outbox.sent(report.seq)

    # --- small things --------------------------------------------------------------------

    async def _pause(self, seconds: float) -> None:
        await _wait(self._stopping, seconds)

    def _say(self, level: int, text: str) -> None:
        """Log it, unless it is what was said last."""
        if text != self._said:
            _LOG.log(level, "%s", text)
        self._said = text


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


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
