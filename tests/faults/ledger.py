"""Every report about one instance in the order in which it came, and whether that is right.

Consumers drop what they have seen by (`agent_run_id`, `seq`); so does this one.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Self

import pika
from pika.exceptions import AMQPError

from agent.broker import wire
from agent.model import TaskStatus
from tests.stack.agent import Agent
from tests.stack.process import poll

Report = dict[str, Any]


class Ledger:
    """Binds before anything is sent, and keeps what comes in a queue of its own.

    A `durable` one outlives a broker that is killed; `reopen` it then.
    """

    def __init__(self, agent: Agent, *, durable: bool = False) -> None:
        self._agent = agent
        self._durable = durable
        self._name = f"ledger.{agent.instance_id}" if durable else ""
        self._bodies: dict[tuple[str, int], Report] = {}
        self.reports: list[Report] = []
        self.repeated = 0
        self._connection: pika.BlockingConnection | None = None
        self.reopen()

    def reopen(self) -> None:
        """Connect, again where the connection was lost."""
        self.close()
        self._connection = pika.BlockingConnection(self._agent.rabbitmq.parameters())
        self._channel = self._connection.channel()
        self._channel.exchange_declare(wire.REPORT_EXCHANGE, "topic", durable=True)
        declared = self._channel.queue_declare(
            self._name, durable=self._durable, exclusive=not self._durable
        )
        self._queue = declared.method.queue
        reports = wire.reports_of(self._agent.instance_id)
        self._channel.queue_bind(self._queue, wire.REPORT_EXCHANGE, reports)

    def pump(self) -> None:
        """Take what has come; a repetition must be one of what was said before."""
        while True:
            _, _, body = self._channel.basic_get(self._queue, auto_ack=True)
            if body is None:
                return
            report = json.loads(body)
            pair = report["agent_run_id"], report["seq"]
            known = self._bodies.setdefault(pair, report)
            assert known == report, f"two reports with one number: {known} and {report}"
            if known is report:
                self.reports.append(report)
            else:
                self.repeated += 1

    def of(self, task_id: str) -> list[Report]:
        return [report for report in self.reports if report["task_id"] == task_id]

    def final(self, task_id: str) -> Report | None:
        """The task's final report, as far as it has come."""
        return next(filter(_is_final, self.of(task_id)), None)

    def wait_for_ends(self, task_ids: Iterable[str], seconds: float) -> None:
        """Until each of those tasks has a final report; StackError after that many seconds."""
        missing = set(task_ids)

        def ended() -> bool:
            self.pump()
            missing.difference_update([one for one in missing if self.final(one)])
            return not missing

        poll(f"final reports of {len(missing)} tasks", ended, seconds)

    def check(self, task_ids: Iterable[str]) -> None:
        """AssertionError unless numbers grow, and each task has one end and a beginning."""
        numbers = [report["seq"] for report in self.reports]
        assert numbers == sorted(set(numbers)), f"numbers don't grow as they come: {numbers}"
        for task_id in task_ids:
            statuses = [report["status"] for report in self.of(task_id)]
            ends = [report for report in self.of(task_id) if _is_final(report)]
            assert len(ends) == 1, f"not one final report: {statuses}"
            assert _is_final(self.of(task_id)[-1]), f"said after the end: {statuses}"
            assert statuses[0] == "ACCEPTED", f"not ACCEPTED first: {statuses}"

    def close(self) -> None:
        if self._connection is not None:
            # a broker that was killed has closed it already
            with suppress(AMQPError):
                self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _is_final(report: Report) -> bool:
    return TaskStatus(report["status"]).final
