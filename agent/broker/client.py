"""Send one task over RabbitMQ and follow its reports, for the operator's commands.

with ControlClient(settings) as client:
    client.subscribe(instance_id)
    client.send_task(instance_id, task)
    for report in client.reports(task.task_id, idle_seconds=60):
        ...
"""

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any, Final, Self, TypeVar

from pika import BasicProperties
from pika.exceptions import ChannelClosedByBroker

from agent.broker import wire
from agent.broker.amqp import ACCESS_REFUSED, BrokerSettings, properties, translated
from agent.broker.session import Channel, Session
from agent.errors import InstanceNotServed, Internal, MessageUnreadable, ReplyTimeout, Unroutable
from agent.model import Report, Task

T = TypeVar("T")
_PREFETCH: Final = 100


class ControlClient:
    """A short-lived connection to the broker, which is open inside a `with` block.

    Every method may raise BrokerUnreachable or BrokerDenied.
    """

    def __init__(self, settings: BrokerSettings):
        self._settings = settings
        self._runner = asyncio.Runner()
        self._session: Session | None = None
        self._reports: Channel | None = None

    def __enter__(self) -> Self:
        self._runner.__enter__()
        try:
            self._session = self._run(Session.open(self._settings, "backup-agent control"))
        finally:
            if self._session is None:
                self._runner.close()
        return self

    def __exit__(self, *_error: object) -> None:
        try:
            self._run(self._opened().close())
        finally:
            self._runner.close()

    def subscribe(self, instance_id: str) -> None:
        """Begin to receive the instance's reports.

        Call this before `send_task`, so that no report is missed.

        Raises:
            InstanceNotServed: the instance has no task queue, so no agent has ever run for it.
        """
        self._run(self._subscribe(instance_id))

    def send_task(self, instance_id: str, task: Task) -> int:
        """Put a task into the instance's queue, and return when the broker has it on disk.

        Returns:
            The number of agents that consumed the queue just before. 0 means that the task waits
            for an agent.

        Raises:
            InstanceNotServed: there is no such queue, or it isn't bound to the exchange.
        """
        return self._run(self._send_task(instance_id, task))

    def reports(self, task_id: str, idle_seconds: float) -> Iterator[Report]:
        """Yield the reports of a task, until its final one.

        Raises:
            ReplyTimeout: no report of any task comes for `idle_seconds`. Reports of other tasks
                count: the task may wait behind another one, whose progress shows that the agent is
                alive.
        """
        while True:
            report = self._run(self._next_report(idle_seconds))
            if report is None:
                raise ReplyTimeout(f"the agent has reported nothing for {idle_seconds:g} s")
            if report.task_id != task_id:
                continue
            yield report
            if report.status.final:
                return

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        with translated(self._settings):
            return self._runner.run(work)

    def _opened(self) -> Session:
        if self._session is None:
            raise Internal("the control client is used outside its with block")
        return self._session

    async def _check_served(self, instance_id: str) -> int:
        queue = wire.task_queue(instance_id)
        found = await self._opened().find("queue_declare", queue=queue)
        if found is None:
            raise InstanceNotServed(f"no agent takes tasks for the instance {instance_id}")
        return int(found.method.consumer_count)

    async def _subscribe(self, instance_id: str) -> None:
        await self._check_served(instance_id)
        channel = await self._opened().channel()
        queue = wire.client_queue(instance_id)
        await channel.call("queue_declare", queue=queue, exclusive=True, auto_delete=True)
        await channel.call(
            "queue_bind",
            queue=queue,
            exchange=wire.REPORT_EXCHANGE,
            routing_key=wire.reports_of(instance_id),
        )
        await channel.consume(queue, _PREFETCH)
        self._reports = channel

    async def _send_task(self, instance_id: str, task: Task) -> int:
        consumers = await self._check_served(instance_id)
        body, persistent = wire.encode_task(task), properties(message_id=task.task_id)
        try:
            await self._publish(wire.TASK_EXCHANGE, instance_id, body, persistent)
        except ChannelClosedByBroker as error:
            if error.reply_code != ACCESS_REFUSED:
                raise
            # The user may not send tasks to all instances. If the instance has an exchange of its
            # own, the user may have the right to send to that one.
            own = wire.own_exchange(instance_id)
            if not await self._opened().exists("exchange_declare", exchange=own):
                raise
            await self._publish(own, instance_id, body, persistent)
        return consumers

    async def _publish(
        self, exchange: str, instance_id: str, body: bytes, message_properties: BasicProperties
    ) -> None:
        channel = await self._opened().channel()
        await channel.confirm()
        try:
            await channel.publish(exchange, instance_id, body, message_properties)
        except Unroutable as error:
            raise InstanceNotServed(
                f"the queue of the instance {instance_id} isn't bound to {exchange}"
            ) from error
        finally:
            channel.close()

    async def _next_report(self, seconds: float) -> Report | None:
        """Return the next readable report of any task, or None if none comes for `seconds`."""
        if self._reports is None:
            raise Internal("reports are read before subscribe was called")
        try:
            async with asyncio.timeout(seconds):
                while True:
                    delivery = await self._reports.delivery()
                    self._reports.ack(delivery)
                    try:
                        report = wire.decode_report(delivery.body)
                    except MessageUnreadable:
                        continue  # a message of another sender on that exchange
                    # The broker checks a sender's right to the routing key, but not to the keys
                    # in a header CC. So another instance's agent could have sent this message.
                    # Then the routing key differs from the report's own key.
                    if delivery.key == wire.routing_key(report):
                        return report
        except TimeoutError:
            return None
