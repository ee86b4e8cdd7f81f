"""The exchanges and queues that an agent needs on the broker: made if they aren't there.

An agent with the least rights may make and bind nothing. It uses what is there, and says what is
missing.
"""

import logging
from typing import Any, Final, NamedTuple

from pika.exceptions import ChannelClosedByBroker

from agent.broker import wire
from agent.broker.amqp import ACCESS_REFUSED, BrokerSettings, properties, refusal
from agent.broker.pace import Voice
from agent.broker.session import Session
from agent.errors import BrokerDenied, QueueFull, Unroutable

_DEAD_MESSAGES: Final = 10_000
_DEAD_BYTES: Final = 64 * 1024 * 1024


class DeclaredObject(NamedTuple):
    """An exchange or a queue that was not there before; `kind` tells which."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class _Queue(NamedTuple):
    """A queue, and the exchange and key that it is bound to."""

    name: str
    exchange: str
    key: str
    arguments: dict[str, Any]


_EXCHANGES: Final = ((wire.TASK_EXCHANGE, "direct"), (wire.REPORT_EXCHANGE, "topic"))
_DEAD_EXCHANGE: Final = (wire.DEAD, "fanout")


def _queues(instance_id: str) -> tuple[_Queue, _Queue]:
    limits = {"x-max-length": _DEAD_MESSAGES, "x-max-length-bytes": _DEAD_BYTES}
    once = {"x-single-active-consumer": True, "x-dead-letter-exchange": wire.DEAD}
    queue = wire.task_queue(instance_id)
    return (
        _Queue(wire.DEAD, wire.DEAD, "", limits),
        _Queue(queue, wire.TASK_EXCHANGE, instance_id, once),
    )


async def missing(session: Session, instance_id: str) -> list[DeclaredObject]:
    """Return what one instance's tasks and reports need and is not there."""
    found = [
        DeclaredObject("exchange", name)
        for name, _ in (*_EXCHANGES, _DEAD_EXCHANGE)
        if not await session.exists("exchange_declare", exchange=name)
    ]
    for queue in _queues(instance_id):
        if not await session.exists("queue_declare", queue=queue.name):
            found.append(DeclaredObject("queue", queue.name))
    return found


async def declare(
    session: Session, settings: BrokerSettings, instance_id: str
) -> list[DeclaredObject]:
    """Make and bind what is missing; return it. BrokerDenied if the user may not.

    What exists is taken as it is: its owner may have chosen other arguments.
    """
    gone = await missing(session, instance_id)
    for name, kind in (*_EXCHANGES, _DEAD_EXCHANGE):
        made = DeclaredObject("exchange", name)
        if made in gone:
            await _create(session, settings, made, exchange=name, exchange_type=kind)
    for queue in _queues(instance_id):
        made = DeclaredObject("queue", queue.name)
        if made in gone:
            typed: dict[str, Any] = {**queue.arguments, "x-queue-type": settings.queue_type}
            await _create(session, settings, made, queue=queue.name, arguments=typed)
        if made in gone or DeclaredObject("exchange", queue.exchange) in gone:
            await _bind(session, settings, queue)
    return gone


async def _create(
    session: Session, settings: BrokerSettings, made: DeclaredObject, **arguments: Any
) -> None:
    channel = await session.channel()
    try:
        await channel.call(f"{made.kind}_declare", durable=True, **arguments)
    except ChannelClosedByBroker as error:
        raise refusal(settings, error, f"the {made} is missing and can't be made") from error
    channel.close()


async def _bind(session: Session, settings: BrokerSettings, queue: _Queue) -> None:
    channel = await session.channel()
    try:
        await channel.call(
            "queue_bind", queue=queue.name, exchange=queue.exchange, routing_key=queue.key
        )
    except ChannelClosedByBroker as error:
        what = f"the queue {queue.name} can't be bound to {queue.exchange}"
        raise refusal(settings, error, what) from error
    channel.close()


class Upkeep:
    """Looks after one instance's exchanges, queues and bindings while the link is connected.

    `trouble` says what is missing and can't be made.
    """

    def __init__(self, settings: BrokerSettings, instance_id: str) -> None:
        self.trouble = ""
        self._settings = settings
        self._instance_id = instance_id
        self._voice = Voice()
        self._may_bind = self._may_publish = True

    async def begin(self, session: Session) -> None:
        """Make and bind what a new connection needs; BrokerDenied if no task could come."""
        try:
            await self.repair(session)
        except BrokerDenied:
            queue = wire.task_queue(self._instance_id)
            if not await session.exists("queue_declare", queue=queue):
                raise
        if self._may_bind and not self.trouble:
            await self._bind_all(session)

    async def repair(self, session: Session) -> None:
        """Make again what is missing, and say so; BrokerDenied if the user may not."""
        try:
            made = await declare(session, self._settings, self._instance_id)
        except BrokerDenied as error:
            self.trouble = str(error)
            self._voice.complain(logging.ERROR, f"{error}; {error.hint}")
            raise
        self.trouble = ""
        if made:
            names = ", ".join(str(one) for one in made)
            self._voice.tell(logging.WARNING, f"made on the broker, where it was missing: {names}")

    async def check(self, session: Session) -> None:
        """Repair what is missing, and see whether a task would reach the queue."""
        try:
            await self.repair(session)
        except BrokerDenied:
            return  # it is said
        if self._may_publish and await self._is_empty(session):
            await self._check_binding(session)
        if not self.trouble:
            self._voice.calm()

    async def _is_empty(self, session: Session) -> bool:
        """Tell whether the queue has no message: while tasks wait, and a probe, none is sent."""
        queue = wire.task_queue(self._instance_id)
        found = await session.find("queue_declare", queue=queue)
        return found is not None and found.method.message_count == 0

    async def _bind_all(self, session: Session) -> None:
        """Bind anew what may be bound already: AMQP has no way to ask."""
        try:
            for queue in _queues(self._instance_id):
                await _bind(session, self._settings, queue)
        except BrokerDenied:
            self._may_bind = False
            self._voice.tell(
                logging.INFO,
                f"the user {self._settings.address.user} may not bind queues: they are taken as "
                "bound already",
            )

    async def _check_binding(self, session: Session) -> None:
        """Send a probe the way that tasks go; bind the queue again if it finds no way."""
        channel = await session.channel()
        await channel.confirm()
        try:
            await channel.publish(wire.TASK_EXCHANGE, self._instance_id, wire.PROBE, properties())
        except Unroutable:
            await self._bind_again(session)
        except QueueFull:
            return  # so it is bound
        except ChannelClosedByBroker as error:
            self._may_publish = error.reply_code != ACCESS_REFUSED
        finally:
            channel.close()

    async def _bind_again(self, session: Session) -> None:
        queue = _queues(self._instance_id)[1]
        try:
            await _bind(session, self._settings, queue)
        except BrokerDenied as error:
            self.trouble = f"no task can come: {error}"
            self._voice.complain(logging.ERROR, f"{self.trouble}; {error.hint}")
            return
        self._voice.tell(
            logging.WARNING,
            f"the queue {queue.name} was not bound to {queue.exchange}, so that tasks were "
            "returned to their senders: it is bound again",
        )
