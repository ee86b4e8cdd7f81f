"""Every report about one instance, in order of arrival, and a check of their order and content.

Consumers drop repetitions by (`agent_run_id`, `seq`). The ledger does the same.
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
    """A list of reports from a separate queue, which is bound before any task is sent.

    A `durable` ledger survives a broker that is killed. Call `reopen` after that.
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
        """Connect, or connect again after a lost connection."""
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
        """Read the reports that have arrived. A repetition must equal the earlier report."""
        while True:
            _, _, body = self._channel.basic_get(self._queue, auto_ack=True)
            if body is None:
                return
            report = json.loads(body)
            pair = report["agent_run_id"], report["seq"]
            known = self._bodies.setdefault(pair, report)
            assert known == report, f"two reports have one number: {known} and {report}"
            if known is report:
                self.reports.append(report)
            else:
                self.repeated += 1

    def of(self, task_id: str) -> list[Report]:
        return [report for report in self.reports if report["task_id"] == task_id]

    def final(self, task_id: str) -> Report | None:
        """Return the task's final report, or None if it hasn't arrived."""
        return next(filter(_is_final, self.of(task_id)), None)

    def wait_for_ends(self, task_ids: Iterable[str], seconds: float) -> None:
        """Wait until each task has a final report. Raise StackError after `seconds`."""
        missing = set(task_ids)

        def ended() -> bool:
            self.pump()
            missing.difference_update([one for one in missing if self.final(one)])
            return not missing

        poll(f"final reports of {len(missing)} tasks", ended, seconds)

    def check(self, task_ids: Iterable[str]) -> None:
        """Raise AssertionError unless numbers grow and each task has one beginning and one end."""
        numbers = [report["seq"] for report in self.reports]
        assert numbers == sorted(set(numbers)), f"numbers don't grow in order: {numbers}"
        for task_id in task_ids:
            statuses = [report["status"] for report in self.of(task_id)]
            ends = [report for report in self.of(task_id) if _is_final(report)]
            assert len(ends) == 1, f"not one final report: {statuses}"
            assert _is_final(self.of(task_id)[-1]), f"reported after the end: {statuses}"
            assert statuses[0] == "ACCEPTED", f"not ACCEPTED first: {statuses}"

    def close(self) -> None:
        if self._connection is not None:
            # a killed broker has closed the connection already
            with suppress(AMQPError):
                self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _is_final(report: Report) -> bool:
    return TaskStatus(report["status"]).final
