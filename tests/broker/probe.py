"""The peer of a link in tests: a plain pika connection to the same broker."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pika

from agent.broker import wire
from agent.broker.amqp import BrokerSettings
from agent.broker.intake import ACK, HOLD, Verdict, dead_letter
from agent.broker.pace import Pauses
from agent.errors import JournalFull, MessageUnreadable
from agent.journal import Journal
from agent.model import Report, ReportDraft, Task, TaskStatus
from tests.stack.process import StackError
from tests.stack.rabbitmq import RabbitMQ

QUICK = Pauses(first=0.05, longest=0.2, hold=0.1)


def settings_for(server: RabbitMQ, **changes: Any) -> BrokerSettings:
    """Return settings for a test, with classic queues, which survive an early kill -9."""
    values: dict[str, Any] = {
        "url": server.url,
        "password": server.password,
        "queue_type": "classic",
        "connect_seconds": 5.0,
        "answer_seconds": 10.0,
    }
    return BrokerSettings(**(values | changes))


def draft(task: Task, status: TaskStatus) -> ReportDraft:
    return ReportDraft(task_id=task.task_id, type=task.type, status=status)


class Keeper:
    """A message handler that journals tasks as the agent does, and keeps every body."""

    def __init__(self, journal: Journal):
        self.journal = journal
        self.bodies: list[bytes] = []

    def __call__(self, body: bytes, redelivered: bool) -> Verdict:
        self.bodies.append(body)
        try:
            task = wire.decode_task(body)
            self.journal.accept(task, draft(task, TaskStatus.ACCEPTED), answer=not redelivered)
        except MessageUnreadable as error:
            return dead_letter(error)
        except JournalFull:
            return HOLD
        return ACK


class Probe:
    """A connection of the test with one channel, which has publisher confirms."""

    def __init__(self, connection: pika.BlockingConnection):
        self.connection = connection
        self.channel = connection.channel()
        self.channel.confirm_delivery()

    def send(self, instance_id: str, body: bytes) -> None:
        """Publish to the instance's queue. Raise pika's UnroutableError if there is none."""
        self.channel.basic_publish(wire.TASK_EXCHANGE, instance_id, body, mandatory=True)

    def waiting(self, queue: str) -> int:
        """Return how many messages are ready in a queue."""
        return int(self.channel.queue_declare(queue, passive=True).method.message_count)

    def consumers(self, queue: str) -> int:
        return int(self.channel.queue_declare(queue, passive=True).method.consumer_count)

    def reports_queue(self, instance_id: str) -> str:
        """Declare a durable queue for the later reports of the instance. Return its name."""
        name = f"test.reports.{instance_id}"
        self.channel.queue_declare(name, durable=True)
        self.channel.queue_bind(name, wire.REPORT_EXCHANGE, wire.reports_of(instance_id))
        return name

    def take(self, queue: str, seconds: float = 20.0) -> tuple[Any, Any, bytes]:
        """Return the method, the properties and the body of the next message of a queue.

        Raise StackError if none comes within `seconds`.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            method, properties, body = self.channel.basic_get(queue, auto_ack=True)
            if method is not None:
                return method, properties, body
            self.connection.process_data_events(time_limit=0.02)
        raise StackError(f"nothing came into {queue} within {seconds} s")

    def report(self, queue: str) -> Report:
        method, properties, body = self.take(queue)
        report = wire.decode_report(body)
        assert method.routing_key == wire.routing_key(report)
        assert properties.delivery_mode == 2
        assert properties.message_id == str(report.seq)
        return report


@contextmanager
def probing(server: RabbitMQ) -> Iterator[Probe]:
    connection = pika.BlockingConnection(server.parameters())
    try:
        yield Probe(connection)
    finally:
        if connection.is_open:
            connection.close()
