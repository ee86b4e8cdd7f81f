"""An installation in which every check passes, and helpers that check it with one fault."""

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
# Warnings that the tests ignore, because the machine that runs them may have no NTP client.
OF_THE_MACHINE = {"host: clock"}


class Site:
    """An agent on the session's servers, with a recovery key and a queue for its reports."""

    def __init__(self, agent: Agent, recovery: RecoverySecret) -> None:
        self.agent = agent
        self._recovery = recovery
        self._overrides: Tables = {"keys": {"recovery": [RECOVERY]}}
        self.write({})

    def write(self, overrides: Tables) -> None:
        """Write the configuration and the secrets again, with these settings changed."""
        self.agent.overrides = {
            name: {**self._overrides.get(name, {}), **overrides.get(name, {})}
            for name in {*self._overrides, *overrides}
        }
        self.agent.write()
        public = self.agent.folder / "keys" / f"{RECOVERY}.pub"
        public.write_bytes(self._recovery.public.pem())

    def look(self, *only: str, environment: Mapping[str, str] | None = None) -> Sequence[Result]:
        """Run all checks, or those of some groups, and return their results in order."""
        return look(self.agent.config, *only, environment=environment)

    def stored(self) -> set[str]:
        """Return the names of all objects of the agent's tenant, each with its container."""
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
        """Return the paths of all entries below the agent's directory."""
        return {str(path) for path in self.agent.folder.rglob("*")}


def look(path: Path, *only: str, environment: Mapping[str, str] | None = None) -> Sequence[Result]:
    """Run the checks on one configuration and return their results in order."""
    run = Run(Context(path, environment or {}), lambda _result: None)
    run.all(chosen(only))
    return run.results


def labels(results: Sequence[Result], verdict: Verdict) -> set[str]:
    return {one.label for one in results if one.verdict is verdict}


def _told(results: Sequence[Result]) -> str:
    shown = [one for one in results if one.verdict is not Verdict.PASS]
    return "\n".join(f"{one.verdict} {one.label}: {one.found}" for one in shown)


def fails(results: Sequence[Result], label: str, *words: str) -> None:
    """Assert that only this check failed, and that its cure contains these words."""
    assert labels(results, Verdict.FAIL) == {label}, _told(results)
    [result] = [one for one in results if one.label == label]
    for word in words:
        assert word in result.cure, result


def warns(results: Sequence[Result], *expected: str) -> None:
    """Assert that nothing failed, and that there are exactly these warnings.

    Warnings in OF_THE_MACHINE are ignored.
    """
    assert labels(results, Verdict.FAIL) == set(), _told(results)
    assert labels(results, Verdict.WARN) - OF_THE_MACHINE == set(expected), _told(results)


def read_reports(agent: Agent) -> None:
    """Bind a durable queue to the agent's reports, which survives a restart of the broker."""
    with pika.BlockingConnection(agent.rabbitmq.parameters()) as connection:
        channel = connection.channel()
        channel.exchange_declare(wire.REPORT_EXCHANGE, "topic", durable=True)
        queue = f"read-by-{agent.instance_id}"
        channel.queue_declare(queue, durable=True)
        channel.queue_bind(queue, wire.REPORT_EXCHANGE, wire.reports_of(agent.instance_id))


def waiting_reports(agent: Agent) -> int:
    """Return the number of messages in the queue that `read_reports` binds."""
    with pika.BlockingConnection(agent.rabbitmq.parameters()) as connection:
        made = connection.channel().queue_declare(f"read-by-{agent.instance_id}", passive=True)
        return int(made.method.message_count)


@contextmanager
def another_user(uid: int) -> Iterator[None]:
    """Run the block with the file permissions of the user `uid`.

    Only root can do this.
    """
    groups = os.getgroups()
    os.setgroups([])
    os.setresuid(uid, uid, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setgroups(groups)
