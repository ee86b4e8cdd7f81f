"""Tests of changes that others make to the broker while an agent is connected.

They delete bindings, queues and exchanges, fill queues, or run a second agent for the instance.
"""

import logging
from collections.abc import Iterator
from functools import partial
from uuid import uuid4

import pytest

from agent.broker import wire
from agent.broker.amqp import QueueType
from agent.broker.probe import Probe as SelfTestProbe
from agent.errors import QueueFull
from agent.model import PingTask
from tests.broker.probe import QUICK, Keeper, Probe, settings_for
from tests.broker.site import Site
from tests.journal.looks import unsent
from tests.stack.process import poll

OFTEN = QUICK._replace(check=0.1)


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO, "agent.broker"):
        yield


def ping() -> PingTask:
    return PingTask(task_id=str(uuid4()))


def comes_through(site: Site, probe: Probe) -> None:
    """Send one task, and check that it is kept."""
    task = ping()
    probe.send(site.instance_id, wire.encode_task(task))
    poll("the task is kept", lambda: site.journal.status(task.task_id) is not None, 10)


@pytest.mark.usefixtures("tasks_bound")
def test_a_deleted_exchange_of_tasks_is_made_again_while_connected(
    site: Site, probe: Probe, caplog: pytest.LogCaptureFixture
) -> None:
    site.running(pauses=OFTEN)
    caplog.clear()
    probe.channel.exchange_delete(wire.TASK_EXCHANGE)
    poll("it is said", lambda: f"missing: exchange {wire.TASK_EXCHANGE}" in caplog.text, 10)
    comes_through(site, probe)
    assert "connected to RabbitMQ" not in caplog.text


@pytest.mark.parametrize("kind", ["quorum", "classic"])
def test_a_deleted_binding_is_made_again_while_connected(
    site: Site, probe: Probe, caplog: pytest.LogCaptureFixture, kind: QueueType
) -> None:
    """The binding is made again each time it is deleted.

    A quorum queue confirms a probe before the probe comes back, a classic queue afterwards.
    """
    keeper = Keeper(site.journal)
    settings = settings_for(site.server, queue_type=kind)
    site.running(keeper, settings, pauses=OFTEN)
    for _ in range(2):
        _wait_for_probes(site, probe)
        caplog.clear()
        probe.channel.queue_unbind(site.queue, wire.TASK_EXCHANGE, site.instance_id)
        poll("it is said", lambda: f"{site.queue} was not bound" in caplog.text, 10)
        comes_through(site, probe)
    assert "broker_" not in caplog.text
    # The link's probes to itself are not offered as messages.
    assert wire.PROBE not in keeper.bodies


def _wait_for_probes(site: Site, probe: Probe) -> None:
    """Wait until the link has sent a few probes. Bind a queue to see them, then delete it."""
    copies = f"test.probes.{site.instance_id}"
    probe.channel.queue_declare(copies)
    probe.channel.queue_bind(copies, wire.TASK_EXCHANGE, site.instance_id)
    poll("some probes are sent", lambda: probe.waiting(copies) > 2, 10)
    probe.channel.queue_delete(copies)


@pytest.mark.parametrize("kind", ["queue", "exchange"])
def test_dead_letters_are_kept_when_their_place_was_deleted(
    site: Site, probe: Probe, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    site.running()
    caplog.clear()
    getattr(probe.channel, f"{kind}_delete")(wire.DEAD)
    probe.send(site.instance_id, b"junk")
    poll("it is said", lambda: f"missing: {kind} {wire.DEAD}" in caplog.text, 10)
    assert probe.take(wire.DEAD)[2] == b"junk"
    comes_through(site, probe)
    assert "connected to RabbitMQ" not in caplog.text


def test_a_full_queue_of_reports_disturbs_nothing_else(
    site: Site, probe: Probe, caplog: pytest.LogCaptureFixture
) -> None:
    queue = f"test.reports.{site.instance_id}"
    limit = {"x-max-length": 1, "x-overflow": "reject-publish"}
    probe.channel.queue_declare(queue, durable=True, arguments=limit)
    probe.channel.exchange_declare(wire.REPORT_EXCHANGE, "topic", durable=True)
    probe.channel.queue_bind(queue, wire.REPORT_EXCHANGE, wire.reports_of(site.instance_id))
    link = site.running()
    for _ in range(5):
        comes_through(site, probe)
    full = f"a queue that takes {site.instance_id}.agent.ping.ACCEPTED from backup.reports is full"
    poll("it is said", lambda: full in link.trouble, 10)
    assert link.consuming.is_set()
    with SelfTestProbe(settings_for(site.server)) as other, pytest.raises(QueueFull):
        other.has_readers(site.instance_id)
    # Pauses grow. Without them there would be a try every millisecond.
    assert caplog.text.count(full) == 1
    poll("the queue is read", lambda: _empty(site, probe, queue), 20)
    poll("it is well again", lambda: link.trouble == "", 10)
    assert caplog.text.count("connected to RabbitMQ") == 1
    assert "broker_unreachable" not in caplog.text


def _empty(site: Site, probe: Probe, queue: str) -> bool:
    probe.channel.basic_get(queue, auto_ack=True)
    return unsent(site.journal) == 0


def test_a_second_agent_says_that_it_may_be_the_stand_by(
    site: Site, probe: Probe, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = Keeper(site.journal), Keeper(site.journal)
    active = site.running(first, pauses=OFTEN)
    comes_through(site, probe)
    assert active.trouble == ""
    stand_by = site.running(second, pauses=OFTEN)
    assert stand_by.trouble == "or waiting as stand-by: the queue has 2 consumers"
    assert f"the queue {site.queue} has 2 consumers" in caplog.text
    comes_through(site, probe)
    assert (len(second.bodies), active.trouble) == (0, "")
    active.stop(0)
    poll("it is alone", lambda: stand_by.trouble == "", 10)
    comes_through(site, probe)
    assert len(second.bodies) == 1


@pytest.mark.usefixtures("tasks_bound")
@pytest.mark.parametrize("gone", ["exchange", "binding", "nothing"])
def test_the_self_tests_probe_changes_nothing_and_tells(
    site: Site, probe: Probe, gone: str
) -> None:
    keeper = Keeper(site.journal)
    site.running(keeper)
    if gone == "exchange":
        probe.channel.exchange_delete(wire.TASK_EXCHANGE)
    elif gone == "binding":
        probe.channel.queue_unbind(site.queue, wire.TASK_EXCHANGE, site.instance_id)
    missing = [f"exchange {wire.TASK_EXCHANGE}"] if gone == "exchange" else []
    bound = {"exchange": None, "binding": False, "nothing": True}[gone]
    with SelfTestProbe(settings_for(site.server)) as other:
        for _ in range(2):
            assert other.observe(site.instance_id) == (missing, 1, bound)
    probe.channel.exchange_declare(wire.TASK_EXCHANGE, "direct", durable=True)
    probe.channel.queue_bind(site.queue, wire.TASK_EXCHANGE, site.instance_id)
    comes_through(site, probe)
    poll("the probes are gone", partial(_none_waits, site, probe), 10)
    assert len(keeper.bodies) == 1


def _none_waits(site: Site, probe: Probe) -> bool:
    return probe.waiting(site.queue) == 0
