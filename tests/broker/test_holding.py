"""Tests of tasks that can't be kept for lack of room.

They are held and given back. A queue that counts returns must never dead-letter one of them.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from agent.broker import intake, wire
from agent.journal import Journal
from agent.model import CancelTask, PingTask, Task, TaskStatus
from tests.broker.probe import QUICK, Keeper, Probe, draft, probing, settings_for
from tests.broker.site import Site
from tests.stack.disk import SmallDisk
from tests.stack.process import poll
from tests.stack.proxy import Proxy, proxied
from tests.stack.rabbitmq import RabbitMQ

LIMIT = 2
CUTS = 5


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    small = SmallDisk(tmp_path / "state")
    small.mount()
    yield small
    small.unmount()


@pytest.fixture
def site(rabbitmq: RabbitMQ, disk: SmallDisk) -> Iterator[Site]:
    """Yield an instance with its journal on the small disk."""
    with ExitStack() as cleanup:
        yield Site(rabbitmq, disk.folder, cleanup)


@pytest.fixture
def probe(rabbitmq: RabbitMQ) -> Iterator[Probe]:
    with probing(rabbitmq) as probe:
        yield probe


def counting_queue(site: Site, probe: Probe) -> None:
    """Declare the site's queue with a delivery limit.

    Unlike the queue of an agent, it dead-letters a message that came back more than LIMIT times.
    """
    probe.channel.exchange_declare(wire.DEAD, "fanout", durable=True)
    arguments = {
        "x-queue-type": "quorum",
        "x-single-active-consumer": True,
        "x-dead-letter-exchange": wire.DEAD,
        "x-delivery-limit": LIMIT,
    }
    probe.channel.queue_declare(site.queue, durable=True, arguments=arguments)
    probe.channel.exchange_declare(wire.TASK_EXCHANGE, "direct", durable=True)
    probe.channel.queue_bind(site.queue, wire.TASK_EXCHANGE, site.instance_id)


@contextmanager
def behind_proxy(site: Site) -> Iterator[tuple[Proxy, str]]:
    with proxied(site.server.port) as proxy:
        yield proxy, site.server.url.replace(str(site.server.port), str(proxy.port))


def kept(journal: Journal, task: Task) -> bool:
    return journal.status(task.task_id) is not None


def ping() -> PingTask:
    return PingTask(task_id=str(uuid4()))


def cut_often(site: Site, keeper: Keeper, proxy: Proxy) -> None:
    """Cut the connection CUTS times. Wait each time until the link works on the next one."""
    for _ in range(CUTS):
        at_work = partial(_at_work, site, keeper, site.looks, len(keeper.bodies))
        proxy.cut()
        poll("it is at work", at_work, 10)


def _at_work(site: Site, keeper: Keeper, looks: int, bodies: int) -> bool:
    """Return True if the link has since offered a task, or checked the room twice."""
    return site.looks > looks + 1 or len(keeper.bodies) > bodies


def test_connections_that_drop_while_the_disk_is_full_bury_no_task(
    site: Site, probe: Probe, disk: SmallDisk
) -> None:
    counting_queue(site, probe)
    keeper = Keeper(site.journal)
    with behind_proxy(site) as (proxy, url):
        link = site.running(keeper, settings_for(site.server, url=url))
        probe.channel.queue_purge(wire.DEAD)
        disk.fill()
        first = ping()
        tasks: list[Task] = [first, ping(), CancelTask(task_id=str(uuid4()), cancels=first.task_id)]
        for task in tasks:
            probe.send(site.instance_id, wire.encode_task(task))
        poll("it stops consuming", lambda: not link.consuming.is_set(), 10)
        assert "no space is left" in link.trouble
        cut_often(site, keeper, proxy)
        assert probe.waiting(wire.DEAD) == 0
        keeper.bodies.clear()
        disk.free()
        poll("all are kept", lambda: kept(site.journal, tasks[-1]), 10)
        # Each task came once and in order, the cancel after the task that it cancels.
        assert [wire.decode_task(body) for body in keeper.bodies] == tasks
        assert probe.waiting(wire.DEAD) == 0
        link.stop(1)
    assert probe.waiting(site.queue) == 0


def test_a_task_given_back_by_the_hold_limit_is_not_taken_before_there_is_room(
    site: Site, probe: Probe, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This is the variant without a lost connection. Each hold ends at once."""
    monkeypatch.setattr(intake, "_HOLD_LIMIT_SECONDS", 0.0)
    counting_queue(site, probe)
    keeper = Keeper(site.journal)
    link = site.running(keeper, pauses=QUICK._replace(hold=0.02))
    disk.fill()
    task = ping()
    probe.send(site.instance_id, wire.encode_task(task))
    poll("it is back in its queue", lambda: probe.waiting(site.queue) == 1, 10)
    # This takes many times longer than the delivery limit would have lasted.
    asked = len(keeper.bodies)
    beats = link.beats
    poll("a while has passed", lambda: link.beats > beats + 1, 10)
    assert len(keeper.bodies) == asked
    disk.free()
    poll("it is kept", lambda: kept(site.journal, task), 10)
    assert probe.waiting(site.queue) == 0


def test_a_full_journal_takes_nothing_after_a_reconnection(
    site: Site, probe: Probe, tmp_path: Path
) -> None:
    """In this variant the disk has room, but only 1 task may be unfinished."""
    counting_queue(site, probe)
    small = Journal(tmp_path / "small.sqlite", site.instance_id, str(uuid4()), max_tasks=1)
    site.journal.close()
    site.journal = small
    keeper = Keeper(small)
    with behind_proxy(site) as (proxy, url):
        site.running(keeper, settings_for(site.server, url=url))
        probe.channel.queue_purge(wire.DEAD)
        tasks = [ping() for _ in range(2)]
        for task in tasks:
            probe.send(site.instance_id, wire.encode_task(task))
        poll("the second was offered", lambda: len(keeper.bodies) == 2, 10)
        cut_often(site, keeper, proxy)
        assert probe.waiting(wire.DEAD) == 0
        assert small.claim() == tasks[0]
        small.report(draft(tasks[0], TaskStatus.DONE))
        poll("the second is kept", lambda: kept(small, tasks[1]), 10)
    small.close()
