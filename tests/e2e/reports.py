"""All reports about one instance, collected in the test's own queue."""

import json
from contextlib import suppress
from typing import Any, Self
from uuid import uuid4

import pika
from pika.exceptions import AMQPError

from agent.broker import wire
from agent.model import RestoreTask, TaskStatus
from tests.stack.agent import Agent
from tests.stack.process import poll


def doomed() -> RestoreTask:
    """Return a task for the worker that fails soon, because its backup doesn't exist."""
    return RestoreTask(task_id=str(uuid4()), backup_id=str(uuid4()), target="/nowhere/at/all")


class Reports:
    """A queue of reports that is bound before the test sends anything.

    `wait_for` reads until a report matches.
    """

    def __init__(self, agent: Agent) -> None:
        self._connection = pika.BlockingConnection(agent.rabbitmq.parameters())
        self._channel = self._connection.channel()
        self._channel.exchange_declare(wire.REPORT_EXCHANGE, "topic", durable=True)
        self._queue = self._channel.queue_declare("", exclusive=True).method.queue
        self._channel.queue_bind(self._queue, wire.REPORT_EXCHANGE, f"{agent.instance_id}.#")
        self.seen: list[dict[str, Any]] = []

    def end_of(self, task_id: str) -> dict[str, Any]:
        """Wait for the final report of this task, and return it."""
        return self.wait_for(task_id, *(one for one in TaskStatus if one.final))

    def wait_for(self, task_id: str, *statuses: str, seconds: float = 60) -> dict[str, Any]:
        """Wait for the first report of this task with one of these statuses, and return it.

        All reports read so far are in `seen`.
        """
        found: list[dict[str, Any]] = []

        def come() -> bool:
            _, _, body = self._channel.basic_get(self._queue, auto_ack=True)
            if body is not None:
                report = json.loads(body)
                self.seen.append(report)
                if report["task_id"] == task_id and report["status"] in statuses:
                    found.append(report)
            return bool(found)

        poll(f"task {task_id} is {' or '.join(statuses)}", come, seconds)
        return found[0]

    def statuses(self, task_id: str) -> list[str]:
        return [report["status"] for report in self.seen if report["task_id"] == task_id]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        # a broker that was killed meanwhile has already closed the connection
        with suppress(AMQPError):
            self._connection.close()
