"""An installation in which every check passes, and a way to look at it with one fault in it."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pika

from agent.broker import wire
from agent.keys.recovery import RecoverySecret
from agent.selftest.check import Result, Verdict
from agent.selftest.context import Context
from agent.selftest.plan import chosen
from agent.selftest.run import Run
from tests.e2e.objects import Objects
from tests.stack.agent import Agent, Tables

RECOVERY = "escrow"
# Whether the machine that runs the tests has an NTP client is not the tests' business.
OF_THE_MACHINE = {"host: clock"}


class Site:
    """An agent on the session's servers, with a recovery key and somebody who reads reports."""

    def __init__(self, agent: Agent, recovery: RecoverySecret) -> None:
        self.agent = agent
        self._recovery = recovery
        self._overrides: Tables = {"keys": {"recovery": [RECOVERY]}}
        self.write({})

    def write(self, overrides: Tables) -> None:
        """Write the configuration and the secrets anew, with these settings changed."""
        self.agent.overrides = {
            name: {**self._overrides.get(name, {}), **overrides.get(name, {})}
            for name in {*self._overrides, *overrides}
        }
        self.agent.write()
        public = self.agent.folder / "keys" / f"{RECOVERY}.pub"
        public.write_bytes(self._recovery.public.pem())

    def look(self, *only: str, environment: Mapping[str, str] | None = None) -> Sequence[Result]:
        """All checks, or those of some groups, as they come out."""
        return look(self.agent.config, *only, environment=environment)

    def stored(self) -> set[str]:
        """The names of all objects of the agent's tenant."""
        objects = Objects(self.agent)
        try:
            return {
                f"{container}/{name}"
                for container in (objects.container, objects.segments)
                for name in objects.names(container)
            }
        finally:
            objects.close()

    def entries(self) -> set[str]:
        """Everything in the agent's folder."""
        return {str(path) for path in self.agent.folder.rglob("*")}


def look(path: Path, *only: str, environment: Mapping[str, str] | None = None) -> Sequence[Result]:
    """The checks on one configuration."""
    run = Run(Context(path, environment or {}), lambda _result: None)
    run.all(chosen(only))
    return run.results


def labels(results: Sequence[Result], verdict: Verdict) -> set[str]:
    return {one.label for one in results if one.verdict is verdict}


def _told(results: Sequence[Result]) -> str:
    shown = [one for one in results if one.verdict is not Verdict.PASS]
    return "\n".join(f"{one.verdict} {one.label}: {one.found}" for one in shown)


def fails(results: Sequence[Result], label: str, *words: str) -> None:
    """That check failed and no other, and what it says to do has these words in it."""
    assert labels(results, Verdict.FAIL) == {label}, _told(results)
    [result] = [one for one in results if one.label == label]
    for word in words:
        assert word in result.cure, result


def warns(results: Sequence[Result], *expected: str) -> None:
    """Nothing failed, and of the warnings there are these and no others."""
    assert labels(results, Verdict.FAIL) == set(), _told(results)
    assert labels(results, Verdict.WARN) - OF_THE_MACHINE == set(expected), _told(results)


def read_reports(agent: Agent) -> None:
    """Bind a queue to the agent's reports; it outlives a restart of the broker."""
    with pika.BlockingConnection(agent.rabbitmq.parameters()) as connection:
        channel = connection.channel()
        channel.exchange_declare(wire.REPORT_EXCHANGE, "topic", durable=True)
        queue = f"read-by-{agent.instance_id}"
        channel.queue_declare(queue, durable=True)
        channel.queue_bind(queue, wire.REPORT_EXCHANGE, wire.reports_of(agent.instance_id))


def waiting_reports(agent: Agent) -> int:
    """How many messages are in that queue."""
    with pika.BlockingConnection(agent.rabbitmq.parameters()) as connection:
        made = connection.channel().queue_declare(f"read-by-{agent.instance_id}", passive=True)
        return int(made.method.message_count)


@contextmanager
def another_user(uid: int) -> Iterator[None]:
    """Be somebody else inside, as far as files are concerned; for root only."""
    groups = os.getgroups()
    os.setgroups([])
    os.setresuid(uid, uid, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setgroups(groups)
