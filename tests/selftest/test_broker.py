"""Self-test checks of a broker that others have changed, or that grants the least rights."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pika
import psutil
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from agent import wiring
from agent.broker import wire
from agent.broker.intake import ACK
from agent.broker.link import BrokerLink
from agent.config.reading import load
from agent.journal import Journal
from agent.machine.host import is_this_machine
from agent.selftest.check import Result
from tests.house.source import CHECKOUT
from tests.selftest.site import Site, warns

GROUPS = ("configuration", "broker")


@pytest.fixture
def served(site: Site, tmp_path: Path) -> Iterator[Site]:
    """Yield a site with a consumer on its task queue."""
    with serving(site, tmp_path):
        yield site


@contextmanager
def serving(site: Site, folder: Path) -> Iterator[None]:
    settings = wiring.broker(load(site.agent.config))
    journal = Journal(folder / "served.sqlite", site.agent.instance_id, str(uuid4()))
    link = BrokerLink(settings, site.agent.instance_id, lambda *_: ACK, journal)
    link.start()
    try:
        assert link.consuming.wait(20)
        yield
    finally:
        link.stop(0)
        journal.close()


@pytest.fixture
def channel(site: Site) -> Iterator[BlockingChannel]:
    with pika.BlockingConnection(site.agent.rabbitmq.parameters()) as connection:
        yield connection.channel()


def said(results: list[Result], name: str) -> Result:
    [one] = [one for one in results if one.label == f"broker: {name}"]
    return one


def test_a_served_instance(served: Site) -> None:
    results = list(served.look(*GROUPS))
    warns(results)
    assert said(results, "declare").found == "exchanges and queues exist"


@pytest.mark.usefixtures("tasks_bound")
def test_an_exchange_that_was_deleted(served: Site, channel: BlockingChannel) -> None:
    channel.exchange_delete(wire.TASK_EXCHANGE)
    for _ in range(2):  # the first run repairs nothing
        results = list(served.look(*GROUPS))
        warns(results, "broker: declare")
        assert f"exchange {wire.TASK_EXCHANGE}" in said(results, "declare").found


def test_a_binding_that_was_deleted(served: Site, channel: BlockingChannel) -> None:
    queue = wire.task_queue(served.agent.instance_id)
    channel.queue_unbind(queue, wire.TASK_EXCHANGE, served.agent.instance_id)
    for _ in range(2):
        results = list(served.look(*GROUPS))
        warns(results, "broker: declare")
        assert "is not bound" in said(results, "declare").found


def test_two_agents_of_one_instance(served: Site, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with serving(served, tmp_path / "other"):
        results = list(served.look(*GROUPS))
    warns(results, "broker: declare")
    assert "stop all agents of this instance but one" in said(results, "declare").cure


def test_a_queue_of_reports_that_is_full(site: Site, channel: BlockingChannel) -> None:
    queue, key = f"full-{site.agent.instance_id}", wire.reports_of(site.agent.instance_id)
    limit = {"x-max-length": 1, "x-overflow": "reject-publish"}
    channel.queue_declare(queue, arguments=limit)
    channel.basic_publish("", queue, b"full")
    channel.queue_bind(queue, wire.REPORT_EXCHANGE, key)
    results = list(site.look(*GROUPS))
    channel.queue_delete(queue)
    warns(results, "broker: report readers")
    assert "is full" in said(results, "report readers").found


def test_a_broker_elsewhere_in_clear(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.selftest.broker.is_this_machine", lambda _name: False)
    results = list(site.look(*GROUPS))
    warns(results, "broker: login")
    assert "amqps:" in said(results, "login").cure


def test_addresses_of_this_host() -> None:
    own = [one.address for several in psutil.net_if_addrs().values() for one in several]
    four = [address for address in own if address.count(".") == 3]
    for name in ("localhost", "127.0.0.1", "127.9.9.9", "::1", *four):
        assert is_this_machine(name), name
    for name in ("192.0.2.1", "2001:db8::1", "no-such-host.invalid", "x" * 300):
        assert not is_this_machine(name), name


def test_the_least_rights_suffice(site: Site, tmp_path: Path) -> None:
    instance, server = site.agent.instance_id, site.agent.rabbitmq
    password = tmp_path / "password"
    password.write_text("of-this-machine")
    password.chmod(0o600)
    script = CHECKOUT / "script" / "broker-definitions"
    done = subprocess.run(
        [script, "instance", instance, password, password],
        env={"QUEUE_TYPE": "classic", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["users"]
    server.define(done.stdout)
    url = server.url_of(f"agent-{instance}")
    site.write({"broker": {"url": url, "password_file": password}})
    warns(site.look(*GROUPS))
    with serving(site, tmp_path):
        results = list(site.look(*GROUPS))
    warns(results)
    assert said(results, "declare").found.endswith("the binding of the queue was not checked")
    assert "needs none" in said(results, "round trip").found
