"""Tasks that can't be kept: held, given back, and never buried by a queue that counts returns."""

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
    """An instance whose journal is on the small disk."""
    with ExitStack() as cleanup:
        yield Site(rabbitmq, disk.folder, cleanup)


@pytest.fixture
def probe(rabbitmq: RabbitMQ) -> Iterator[Probe]:
    with probing(rabbitmq) as probe:
        yield probe


def counting_queue(site: Site, probe: Probe) -> None:
    """Make the site's queue as an agent would, but it buries what came back twice."""
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
    """Cut the connection again and again, each time once the link is at work on it."""
    for _ in range(CUTS):
        at_work = partial(_at_work, site, keeper, site.looks, len(keeper.bodies))
        proxy.cut()
        poll("it is at work", at_work, 10)


def _at_work(site: Site, keeper: Keeper, looks: int, bodies: int) -> bool:
    """Whether it was given a task since, or looked for room twice."""
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
        # in their order, the cancel behind what it cancels, each once
        assert [wire.decode_task(body) for body in keeper.bodies] == tasks
        assert probe.waiting(wire.DEAD) == 0
        link.stop(1)
    assert probe.waiting(site.queue) == 0


def test_a_task_given_back_by_the_hold_limit_is_not_taken_before_there_is_room(
    site: Site, probe: Probe, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variant without a lost connection: each hold ends at once."""
    monkeypatch.setattr(intake, "_HOLD_LIMIT_SECONDS", 0.0)
    counting_queue(site, probe)
    keeper = Keeper(site.journal)
    link = site.running(keeper, pauses=QUICK._replace(hold=0.02))
    disk.fill()
    task = ping()
    probe.send(site.instance_id, wire.encode_task(task))
    poll("it is back in its queue", lambda: probe.waiting(site.queue) == 1, 10)
    # many times longer than the queue's patience would have been
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
    """The other variant: there is room on the disk, but 1 task is all that may be unfinished."""
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
