"""Consume one instance's tasks, and acknowledge each only when it is kept elsewhere.

A message that can't be kept is held, unacknowledged, and offered to `on_message` again. It may go
back to its queue all the same, if the connection is lost or it was held for too long. After that,
nothing is taken from the broker until `ready` reports that there is room. The reason is that a
quorum queue counts the returns of a message, and gives up a message that has too many of them.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final, Literal, NamedTuple, Protocol

from pika.exceptions import ChannelClosedByBroker

from agent.broker import wire
from agent.broker.amqp import properties
from agent.broker.pace import Pace, ProblemLog
from agent.broker.session import Channel, Delivery, Session
from agent.errors import AgentError, BrokerDenied, QueueFull, Unroutable
from agent.threads import about_task

_LOG = logging.getLogger("agent.broker.link")
_PREFETCH: Final = 1
# RabbitMQ closes the channel of a consumer that holds a delivery for 30 minutes.
_HOLD_LIMIT_SECONDS: Final = 600.0


class Verdict(NamedTuple):
    """The decision about a message.

    `ack` acknowledges it. `dead` sends it to `backup.dead`, with `code` and `message` as the
    reason. `hold` keeps it unacknowledged and offers it again.
    """

    action: Literal["ack", "dead", "hold"]
    code: str = ""
    message: str = ""


ACK: Final = Verdict("ack")
HOLD: Final = Verdict("hold")


def dead_letter(error: AgentError) -> Verdict:
    """Return the verdict for a message that can't be used.

    The message goes to `backup.dead` with the error's code and the first 200 characters of its
    text.
    """
    return Verdict("dead", error.code, error.message[:200])


class Topology(Protocol):
    """An object that creates missing exchanges and queues again."""

    async def repair(self, session: Session) -> None: ...


class Intake:
    """The consumer of one instance's queue.

    `on_message` decides about each message. `ready` raises an AgentError if no task can be kept.
    `consuming` is set while the consumer is registered. `trouble` says why no task is taken, or
    that another agent may get the tasks. It is "" if nothing is wrong.
    """

    def __init__(
        self,
        instance_id: str,
        on_message: Callable[[bytes, bool], Verdict],
        ready: Callable[[], None],
        topology: Topology,
        pace: Pace,
    ) -> None:
        self.consuming = threading.Event()
        self.trouble = ""
        self._given = False
        self._queue = wire.task_queue(instance_id)
        self._on_message = on_message
        self._ready = ready
        self._topology = topology
        self._pace = pace
        self._problems = ProblemLog()

    async def run(self, session: Session) -> None:
        """Take messages until the connection is lost, but none after the link began to stop."""
        channel = await session.channel()
        await channel.confirm()
        try:
            while not self._pace.stopping.is_set():
                await self._until_ready(channel)
                consumer = await channel.consume(self._queue, _PREFETCH)
                self._given = False
                await self.look_for_others(session)
                self.consuming.set()
                await self._take_messages(session, channel, consumer)
        finally:
            self.consuming.clear()
        await session.lost()  # the outbox needs the connection until it is empty

    async def _until_ready(self, channel: Channel) -> None:
        """Wait until a task can be kept, or until the link stops."""
        while not self._pace.stopping.is_set() and not self._become_ready():
            await self._pace.pause(self._pace.pauses.hold)
            channel.check()

    def _become_ready(self) -> bool:
        try:
            self._ready()
        except AgentError as error:
            self._holds(error, "no task is taken from the broker")
            return False
        self.trouble = ""
        return True

    async def look_for_others(self, session: Session) -> None:
        """Report it if the queue has other consumers and this one has received nothing yet.

        The broker gives all tasks to one consumer, and has no way to ask which one.
        """
        found = await session.find("queue_declare", queue=self._queue)
        others = found.method.consumer_count - 1 if found is not None else 0
        if others <= 0 or self._given:
            self.trouble = ""
            self._problems.calm()
            return
        self.trouble = f"or waiting as stand-by: the queue has {others + 1} consumers"
        self._problems.complain(
            logging.WARNING,
            f"the queue {self._queue} has {others + 1} consumers, and only one of them gets the "
            "tasks: another agent runs for this instance, or the broker has not yet noticed that a "
            "connection was lost. Stop all agents of the instance except one",
        )

    async def _take_messages(self, session: Session, channel: Channel, consumer: str) -> None:
        """Take messages until one can't be kept, hold that one until it is kept, and return.

        Return also when the link stops.
        """
        while True:
            delivery = await channel.delivery()
            if self._pace.stopping.is_set():
                return
            self._given = True
            if delivery.body == wire.PROBE:
                channel.ack(delivery)
                continue
            verdict = self._ask(delivery)
            if verdict.action == "hold":
                self.consuming.clear()
                await channel.call("basic_cancel", consumer_tag=consumer)
                await self._hold(session, channel, delivery)
                return
            await self._settle(session, channel, delivery, verdict)

    def _ask(self, delivery: Delivery) -> Verdict:
        try:
            return self._on_message(delivery.body, delivery.redelivered)
        except AgentError as error:
            with about_task(wire.task_id_of(delivery.body) or ""):
                self._holds(error, "a task waits on the broker")
            return HOLD

    def _holds(self, error: AgentError, what: str) -> None:
        self.trouble = str(error)
        self._problems.complain(logging.ERROR, f"{what}: {error}; {error.hint}")

    async def _hold(self, session: Session, channel: Channel, delivery: Delivery) -> None:
        """Offer a message again until it is kept.

        Give it back to its queue if it was held for too long, or if the link stops.
        """
        until = time.monotonic() + _HOLD_LIMIT_SECONDS
        while time.monotonic() < until and not self._pace.stopping.is_set():
            await self._pace.pause(self._pace.pauses.hold)
            channel.check()
            verdict = self._ask(delivery) if self._become_ready() else HOLD
            if verdict.action != "hold":
                await self._settle(session, channel, delivery, verdict)
                return
        channel.requeue(delivery)

    async def _settle(
        self, session: Session, channel: Channel, delivery: Delivery, verdict: Verdict
    ) -> None:
        if verdict.action == "dead":
            with about_task(wire.task_id_of(delivery.body) or ""):
                _LOG.error("a message is not a task (%s): %s", verdict.code, verdict.message)
                await self._bury(session, delivery, verdict)
        channel.ack(delivery)
        self._pace.awake.set()

    async def _bury(self, session: Session, delivery: Delivery, verdict: Verdict) -> None:
        """Publish a dead letter, and create its exchange and queue again if they were deleted.

        If they can't be created, drop the letter and log that. The tasks that wait behind it are
        worth more than a message that is not a task.
        """
        try:
            await self._publish_dead(session, delivery, verdict)
        except QueueFull as error:
            self._dropped(error)
        except (Unroutable, ChannelClosedByBroker):
            # If the broker doesn't answer, the letter is not dropped. BrokerSilent ends the
            # connection, and the message stays in its queue.
            try:
                await self._topology.repair(session)
                await self._publish_dead(session, delivery, verdict)
            except (BrokerDenied, QueueFull, Unroutable, ChannelClosedByBroker) as error:
                self._dropped(error)

    @staticmethod
    def _dropped(error: Exception) -> None:
        _LOG.error(
            "a message that is not a task could not be kept in %s and is dropped: %s",
            wire.DEAD,
            error,
        )

    @staticmethod
    async def _publish_dead(session: Session, delivery: Delivery, verdict: Verdict) -> None:
        """Publish a dead letter on a separate channel.

        A missing exchange closes that channel. The channel that delivers tasks must stay open.
        """
        channel = await session.channel()
        await channel.confirm()
        headers = {"x-reason": verdict.code, "x-message": verdict.message}
        # Cut the body. Otherwise one huge message would push all others out of the bounded queue.
        body = delivery.body[: wire.MAX_TASK_BYTES]
        try:
            await channel.publish(wire.DEAD, "", body, properties(headers=headers))
        finally:
            channel.close()
