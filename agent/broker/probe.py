"""Test whether the broker does what the agent needs, and leave nothing behind on it.

with Probe(settings) as probe:
    probe.declare(instance_id)
    probe.round_trip()
"""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Coroutine
from typing import Any, Final, NamedTuple, TypeVar
from uuid import uuid4

from pika.exceptions import ChannelClosedByBroker

from agent.broker import wire
from agent.broker.amqp import ACCESS_REFUSED, BrokerSettings, properties, translated
from agent.broker.client import ControlClient
from agent.broker.session import Session
from agent.broker.topology import DeclaredObject, declare, missing
from agent.errors import BrokerUnreachable, QueueFull, Unroutable
from agent.model import PingTask, Report, TaskStatus, utc_now

T = TypeVar("T")
_BODY_BYTES: Final = 4096
# Expiration in milliseconds, as AMQP writes it. The message leaves each queue at once unless a
# consumer takes it immediately (https://www.rabbitmq.com/docs/ttl, "setting the TTL to 0").
_AT_ONCE: Final = "0"


def reach(settings: BrokerSettings) -> None:
    """Connect to the broker's port and disconnect.

    Raises:
        BrokerUnreachable: the connection fails.
    """
    address = settings.address
    with translated(settings):
        socket.create_connection((address.host, address.port), settings.connect_seconds).close()


class BrokerState(NamedTuple):
    """The state of one instance's exchanges, queues and binding on the broker.

    `missing` names the exchanges and queues that do not exist. `agents` is the number of agents
    that consume the instance's tasks, or None if it has no task queue. `bound` tells whether the
    queue is bound. It is None if that can't be tested: the user may send no tasks, the queue is
    full, something is missing, or no agent would take the test message.
    """

    missing: list[str]
    agents: int | None
    bound: bool | None


class Probe(ControlClient):
    """A short-lived connection to the broker for the self-test.

    It is logged in inside a `with` block. The end of the block deletes everything that the probe
    created. Every method may raise BrokerUnreachable or BrokerDenied.
    """

    def __init__(self, settings: BrokerSettings) -> None:
        super().__init__(settings)
        self._made: list[DeclaredObject] = []

    def __exit__(self, *error: object) -> None:
        try:
            self._run(self._remove())
        finally:
            super().__exit__(*error)

    def declare(self, instance_id: str) -> list[str]:
        """Declare the exchanges and queues of an instance, as an agent of it would.

        Return those that were missing. They are deleted at the end of the `with` block, unless
        they are in use by then.
        """
        made = self._run(declare(self._opened(), self._settings, instance_id))
        self._made += made
        return [f"{one.kind} {one.name}" for one in made]

    def observe(self, instance_id: str) -> BrokerState:
        """Return the state of an instance on the broker, and change nothing."""
        return self._run(self._look(instance_id))

    def round_trip(self) -> float | None:
        """Publish a confirmed message to a private queue, consume it, and return the seconds taken.

        Return None if the user may not create a queue.

        Raises:
            BrokerUnreachable: the message does not come back, or comes back with other bytes.
        """
        return self._run(_if_allowed(self._round_trip()))

    def returns_unroutable(self) -> bool | None:
        """Return True if the broker returns a mandatory message that no queue takes.

        Return None if the user may not use the default exchange, as is recommended.
        """
        name = f"backup.self-test.{uuid4()}"
        routable = self._run(_if_allowed(self._routable("", name, b"{}")))
        return None if routable is None else not routable

    def has_readers(self, instance_id: str) -> bool:
        """Return True if a queue takes this instance's reports.

        The test publishes a report which says that a ping is DONE, although no client sent that
        ping. The report expires at once.

        Raises:
            QueueFull: a queue that takes the reports is full.
        """
        report = Report(
            task_id=str(uuid4()),
            type=PingTask.model_fields["type"].default,
            status=TaskStatus.DONE,
            agent_run_id=str(uuid4()),
            seq=int(time.time() * 1000),
            at=utc_now(),
            instance_id=instance_id,
        )
        key, body = wire.routing_key(report), wire.encode_report(report)
        return self._run(self._routable(wire.REPORT_EXCHANGE, key, body))

    async def _look(self, instance_id: str) -> BrokerState:
        session = self._opened()
        absent = [str(one) for one in await missing(session, instance_id)]
        found = await session.find("queue_declare", queue=wire.task_queue(instance_id))
        if found is None:
            return BrokerState(absent, None, None)
        agents, bound = int(found.method.consumer_count), None
        if agents and not absent:
            routable = self._routable(wire.TASK_EXCHANGE, instance_id, wire.PROBE, at_once=False)
            with contextlib.suppress(QueueFull):
                bound = await _if_allowed(routable)
        return BrokerState(absent, agents, bound)

    async def _round_trip(self) -> float:
        channel = await self._opened().channel()
        await channel.confirm()
        made = await channel.call("queue_declare", queue="", exclusive=True, auto_delete=True)
        queue, sent = made.method.queue, os.urandom(_BODY_BYTES)
        started = time.monotonic()
        await channel.publish("", queue, sent, properties())
        await channel.consume(queue, 1)
        try:
            async with asyncio.timeout(self._settings.answer_seconds):
                delivery = await channel.delivery()
        except TimeoutError:
            raise BrokerUnreachable(
                f"{self._settings.where} confirmed a message but did not deliver it"
            ) from None
        seconds = time.monotonic() - started
        channel.ack(delivery)
        channel.close()
        if delivery.body != sent:
            raise BrokerUnreachable(f"{self._settings.where} delivered other bytes than were sent")
        return seconds

    async def _routable(
        self, exchange: str, key: str, body: bytes, *, at_once: bool = True
    ) -> bool:
        channel = await self._opened().channel()
        await channel.confirm()
        message_properties = properties(expiration=_AT_ONCE) if at_once else properties()
        try:
            await channel.publish(exchange, key, body, message_properties)
        except Unroutable:
            return False
        finally:
            channel.close()
        return True

    async def _remove(self) -> None:
        while self._made:
            await _delete(self._opened(), self._made.pop())


async def _if_allowed(work: Coroutine[Any, Any, T]) -> T | None:
    """Await the work, and return None if the user lacks the right to do it."""
    try:
        return await work
    except ChannelClosedByBroker as error:
        if error.reply_code != ACCESS_REFUSED:
            raise
        return None


async def _delete(session: Session, made: DeclaredObject) -> None:
    """Delete an exchange or queue, unless it is in use.

    The broker refuses to delete one that is in use, by closing the channel.
    """
    channel = await session.channel()
    with contextlib.suppress(ChannelClosedByBroker):
        if made.kind == "queue":
            await channel.call("queue_delete", queue=made.name, if_unused=True, if_empty=True)
        else:
            await channel.call("exchange_delete", exchange=made.name, if_unused=True)
        channel.close()
