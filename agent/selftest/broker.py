"""Checks of the group `broker`, which tell if tasks can arrive and reports can leave."""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Final

from agent.broker.probe import Probe, reach
from agent.broker.wire import TASK_EXCHANGE, task_queue
from agent.errors import AgentError, BrokerUnreachable, QueueFull
from agent.machine.host import is_this_machine
from agent.selftest.check import Check, CheckOutcome, failed, passed, skipped, warned
from agent.selftest.context import Context

log = logging.getLogger(__name__)

# An agent's certificate that expires earlier gets a warning.
_SOON: Final = timedelta(days=14)
_REPAIR = (
    "an agent with the right creates and binds it again within a minute; else import "
    "the output of script/broker-definitions, see Rights on the broker in docs/operations.md"
)


class _Group:
    """The checks of the broker, on one connection that the check `login` opens."""

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

    def reach(self) -> CheckOutcome:
        if self._context.config.broker is None:
            return skipped("there is no section [broker]: this agent takes no tasks, only commands")
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

    def login(self) -> CheckOutcome:
        _ = self._probe
        settings = self._context.broker
        address = settings.address
        login = f"as the user {settings.user} in the virtual host {address.vhost}"
        if not address.tls and not is_this_machine(address.host):
            return warned(
                f"{login}; passwords, tasks and their tokens are sent to {address.host} "
                "unencrypted",
                "use amqps: in [broker] url, and give RabbitMQ a certificate",
            )
        if settings.certificate is None:
            return passed(login)
        expires = settings.certificate.expires()
        found = f"{login}; the agent's certificate is valid until {expires:%Y-%m-%d %H:%M} UTC"
        if expires < datetime.now(UTC) + _SOON:
            return warned(
                found,
                f"renew {settings.certificate.file} and its key in time; the agent reads them at "
                "its next connection",
            )
        return passed(found)

    def declare(self) -> CheckOutcome:
        seen = self._probe.observe(self._instance_id)
        queue = task_queue(self._instance_id)
        if seen.agents is None:
            made = self._probe.declare(self._instance_id)
            return passed(f"this user can create {', '.join(made)}")
        if seen.missing:
            names = ", ".join(seen.missing)
            return warned(f"messages are lost, because these are missing: {names}", _REPAIR)
        if seen.bound is False:
            return warned(
                f"no task can arrive: the queue {queue} is not bound to {TASK_EXCHANGE}", _REPAIR
            )
        if seen.agents > 1:
            return warned(
                f"{seen.agents} agents take tasks from {queue}, but only one gets them",
                "stop all agents of this instance but one; a lost connection still counts as an "
                "agent for a minute",
            )
        binding = "" if seen.bound else "; the binding of the queue was not checked"
        return passed(f"exchanges and queues exist{binding}")

    def round_trip(self) -> CheckOutcome:
        seconds = self._probe.round_trip()
        if seconds is None:
            return passed("not tried: this user may not create queues, and needs none")
        return passed(f"published, confirmed and consumed in {seconds * 1000:.0f} ms")

    def unroutable(self) -> CheckOutcome:
        returned = self._probe.returns_unroutable()
        if returned is None:
            return passed(
                "not tried: this user may not use the default exchange, and does not need it"
            )
        if returned:
            return passed("a message that no queue takes is returned")
        return failed(
            "a message that no queue takes was confirmed and not returned",
            "this broker does not treat `mandatory` messages as AMQP 0-9-1 says: use RabbitMQ",
        )

    def report_readers(self) -> CheckOutcome:
        try:
            readers = self._probe.has_readers(self._instance_id)
        except QueueFull as error:
            return warned(f"{error}: reports wait in the agent's journal", error.hint)
        if readers:
            return passed("a queue takes this instance's reports")
        return warned(
            "no queue takes this instance's reports: they wait in the agent's journal",
            f"bind a queue to the exchange backup.reports with the key {self._instance_id}.# or #",
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
        log.warning("the self-test may have left queues or exchanges on the broker: %s", error)
