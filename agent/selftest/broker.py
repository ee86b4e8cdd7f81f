"""Group `broker`: whether tasks can come and reports can go."""

import logging
from collections.abc import Sequence
from functools import cached_property

from agent.broker.probe import Probe, reach
from agent.errors import AgentError, BrokerUnreachable
from agent.selftest.check import Check, Outcome, failed, passed, skipped, warned
from agent.selftest.context import Context

log = logging.getLogger(__name__)


class _Group:
    """The checks, on one connection that is made at the login."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @cached_property
    def _probe(self) -> Probe:
        probe = Probe(self._context.broker)
        probe.__enter__()
        self._context.after_group.callback(_close, probe)
        return probe

    @property
    def _instance_id(self) -> str:
        return self._context.config.agent.instance_id

    def reach(self) -> Outcome:
        if self._context.config.broker is None:
            return skipped("there is no [broker]: this agent takes no tasks, only commands")
        settings = self._context.broker
        try:
            reach(settings)
        except BrokerUnreachable as error:
            return failed(
                str(error),
                "start RabbitMQ (systemctl start rabbitmq-server), open its port in the "
                "firewall, or correct [broker] url",
            )
        return passed(settings.where)

    def login(self) -> Outcome:
        _ = self._probe
        address = self._context.broker.address
        return passed(f"as {address.user} in the virtual host {address.vhost}")

    def declare(self) -> Outcome:
        made = self._probe.declare(self._instance_id)
        if made:
            return passed(f"could make {', '.join(made)}")
        return passed("exchanges and queues are there")

    def round_trip(self) -> Outcome:
        seconds = self._probe.round_trip()
        return passed(f"published, confirmed and consumed in {seconds * 1000:.0f} ms")

    def unroutable(self) -> Outcome:
        if self._probe.returns_unroutable():
            return passed("a message that nobody takes is returned")
        return failed(
            "a message that nobody takes was confirmed and not returned",
            "this broker does not do as AMQP 0-9-1 says of `mandatory`: use RabbitMQ",
        )

    def report_readers(self) -> Outcome:
        if self._probe.has_readers(self._instance_id):
            return passed("a queue takes this instance's reports")
        return warned(
            "nobody reads this instance's reports: they wait in the agent's journal",
            f"bind a queue to the exchange backup.reports with {self._instance_id}.# or #",
        )


def checks(context: Context) -> Sequence[Check]:
    group = _Group(context)
    login = ("login",)
    base = ("configuration: file", "configuration: broker password")
    return [
        Check("reach", group.reach, base),
        Check("login", group.login, ("reach",)),
        Check("declare", group.declare, login),
        Check("round trip", group.round_trip, login),
        Check("unroutable", group.unroutable, login),
        Check("report readers", group.report_readers, ("declare",)),
    ]


def _close(probe: Probe) -> None:
    try:
        probe.__exit__(None, None, None)
    except AgentError as error:
        log.warning("what the self-test made on the broker may be left there: %s", error)
