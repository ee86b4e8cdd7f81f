"""Find, create and bind the exchanges and queues that an agent needs on the broker.

An agent with the least rights can't create or bind anything. It uses the existing exchanges and
queues, and reports those that are missing.
"""

import logging
from typing import Any, Final, NamedTuple

from pika.exceptions import ChannelClosedByBroker

from agent.broker import wire
from agent.broker.amqp import ACCESS_REFUSED, BrokerSettings, properties, refusal
from agent.broker.pace import ProblemLog
from agent.broker.session import Session
from agent.errors import BrokerDenied, QueueFull, Unroutable

_DEAD_MESSAGES: Final = 10_000
_DEAD_BYTES: Final = 64 * 1024 * 1024


class DeclaredObject(NamedTuple):
    """An exchange or a queue that is or was missing, with the kind `exchange` or `queue`."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class _Queue(NamedTuple):
    """A queue, with the exchange and the routing key of its binding."""

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
    """Return the missing exchanges and queues of one instance's tasks and reports."""
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
    """Create and bind the missing exchanges and queues, and return them.

    Existing ones are not changed, because their owner may have chosen other arguments.

    Raises:
        BrokerDenied: the user may not create or bind one of them.
    """
    absent = await missing(session, instance_id)
    for name, kind in (*_EXCHANGES, _DEAD_EXCHANGE):
        made = DeclaredObject("exchange", name)
        if made in absent:
            await _create(session, settings, made, exchange=name, exchange_type=kind)
    for queue in _queues(instance_id):
        made = DeclaredObject("queue", queue.name)
        if made in absent:
            typed: dict[str, Any] = {**queue.arguments, "x-queue-type": settings.queue_type}
            await _create(session, settings, made, queue=queue.name, arguments=typed)
        if made in absent or DeclaredObject("exchange", queue.exchange) in absent:
            await _bind(session, settings, queue)
    return absent


async def _create(
    session: Session, settings: BrokerSettings, made: DeclaredObject, **arguments: Any
) -> None:
    channel = await session.channel()
    try:
        await channel.call(f"{made.kind}_declare", durable=True, **arguments)
    except ChannelClosedByBroker as error:
        raise refusal(settings, error, f"the {made} is missing and can't be created") from error
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
    """A keeper of one instance's exchanges, queues and bindings while the link is connected.

    `trouble` names a missing exchange, queue or binding that can't be created. It is "" if there is
    none.
    """

    def __init__(self, settings: BrokerSettings, instance_id: str) -> None:
        self.trouble = ""
        self._settings = settings
        self._instance_id = instance_id
        self._problems = ProblemLog()
        self._may_bind = self._may_publish = True

    async def begin(self, session: Session) -> None:
        """Create and bind the exchanges and queues when a connection begins.

        Raises:
            BrokerDenied: the task queue is missing and can't be created, so no task can come.
        """
        try:
            await self.repair(session)
        except BrokerDenied:
            queue = wire.task_queue(self._instance_id)
            if not await session.exists("queue_declare", queue=queue):
                raise
        if self._may_bind and not self.trouble:
            await self._bind_all(session)

    async def repair(self, session: Session) -> None:
        """Create missing exchanges and queues again, and log it.

        Raises:
            BrokerDenied: the user may not create one of them.
        """
        try:
            made = await declare(session, self._settings, self._instance_id)
        except BrokerDenied as error:
            self.trouble = str(error)
            self._problems.complain(logging.ERROR, f"{error}; {error.hint}")
            raise
        self.trouble = ""
        if made:
            names = ", ".join(str(one) for one in made)
            self._problems.tell(
                logging.WARNING, f"created on the broker, because it was missing: {names}"
            )

    async def check(self, session: Session) -> None:
        """Create missing exchanges and queues, and test that a task would reach the queue."""
        try:
            await self.repair(session)
        except BrokerDenied:
            return  # repair has logged it
        if self._may_publish and await self._is_empty(session):
            await self._check_binding(session)
        if not self.trouble:
            self._problems.calm()

    async def _is_empty(self, session: Session) -> bool:
        """Return True if the queue has no message.

        No probe is sent while tasks or an earlier probe wait in the queue.
        """
        queue = wire.task_queue(self._instance_id)
        found = await session.find("queue_declare", queue=queue)
        return found is not None and found.method.message_count == 0

    async def _bind_all(self, session: Session) -> None:
        """Bind all queues, even if they are bound, because AMQP has no way to ask for bindings."""
        try:
            for queue in _queues(self._instance_id):
                await _bind(session, self._settings, queue)
        except BrokerDenied:
            self._may_bind = False
            self._problems.tell(
                logging.INFO,
                f"the user {self._settings.user} may not bind queues: the agent assumes "
                "that they are bound already",
            )

    async def _check_binding(self, session: Session) -> None:
        """Publish a probe as a task is published, and bind the queue again if no queue takes it."""
        channel = await session.channel()
        await channel.confirm()
        try:
            await channel.publish(wire.TASK_EXCHANGE, self._instance_id, wire.PROBE, properties())
        except Unroutable:
            await self._bind_again(session)
        except QueueFull:
            return  # a full queue that refuses the probe is bound
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
            self._problems.complain(logging.ERROR, f"{self.trouble}; {error.hint}")
            return
        self._problems.tell(
            logging.WARNING,
            f"the queue {queue.name} was not bound to {queue.exchange}, so that tasks were "
            "returned to their senders. It is bound again",
        )
