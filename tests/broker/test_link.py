"""Tests of the daemon's link on a real RabbitMQ.

Tasks arrive, reports leave, and the broker dies.
"""

import logging
import threading
from functools import partial
from pathlib import Path
from uuid import uuid4

import pika
import pika.data
import pytest

from agent.broker import wire
from agent.broker.intake import ACK, Verdict
from agent.broker.link import BrokerLink
from agent.broker.pace import Pauses
from agent.errors import JournalError
from agent.journal import Journal
from agent.model import PingTask, TaskStatus
from tests.broker.probe import Keeper, Probe, draft, probing, settings_for
from tests.broker.site import Site
from tests.journal.looks import unsent
from tests.stack.process import free_port, poll
from tests.stack.rabbitmq import RabbitMQ


def ping() -> PingTask:
    return PingTask(task_id=str(uuid4()))


def _is_in(journal: Journal, task: PingTask) -> bool:
    return journal.status(task.task_id) is not None


def test_a_task_is_journalled_acknowledged_and_reported(site: Site, probe: Probe) -> None:
    link = site.running()
    queue = probe.reports_queue(site.instance_id)
    task = ping()
    probe.send(site.instance_id, wire.encode_task(task))
    assert probe.report(queue).status is TaskStatus.ACCEPTED
    assert site.journal.claim() == task
    site.report(task, TaskStatus.DONE, link)
    assert probe.report(queue).status is TaskStatus.DONE
    poll("the outbox empty", lambda: unsent(site.journal) == 0, 10)
    link.stop(5)
    assert not link.alive()
    assert not link.consuming.is_set()
    assert probe.waiting(site.queue) == 0


def test_the_same_task_twice_is_answered_and_not_stored_twice(site: Site, probe: Probe) -> None:
    link = site.running()
    queue = probe.reports_queue(site.instance_id)
    task = ping()
    probe.send(site.instance_id, wire.encode_task(task))
    first = probe.report(queue)
    site.journal.claim()
    site.report(task, TaskStatus.DONE, link)
    done = probe.report(queue)
    probe.send(site.instance_id, wire.encode_task(task))
    again = probe.report(queue)
    assert (again.task_id, again.status) == (task.task_id, TaskStatus.DONE)
    assert first.seq < done.seq < again.seq
    assert site.journal.claim() is None


@pytest.mark.parametrize(
    "table",
    [b"\x01aT" + b"\xff" * 8, b"\x01aD\xff" + b"\xff" * 4, b"\x02\xff\xfeS\0\0\0\x01\xff"],
    ids=["a time that Python has no name for", "a tiny decimal", "no UTF-8"],
)
def test_headers_that_pika_can_not_read_hold_nothing_up(
    site: Site, probe: Probe, monkeypatch: pytest.MonkeyPatch, table: bytes
) -> None:
    site.running()
    odd, usual = ping(), ping()

    def encode(pieces: list[bytes], _table: object) -> int:
        pieces.append(len(table).to_bytes(4, "big") + table)
        return 4 + len(table)

    told = pika.BasicProperties(headers={"a": 1}, content_encoding="gzip", reply_to="nobody")
    with monkeypatch.context() as patched:
        patched.setattr(pika.data, "encode_table", encode)
        probe.channel.basic_publish(
            wire.TASK_EXCHANGE, site.instance_id, wire.encode_task(odd), told
        )
    probe.send(site.instance_id, wire.encode_task(usual))
    poll("both tasks are journalled", lambda: _is_in(site.journal, usual), 10)
    assert _is_in(site.journal, odd)


@pytest.mark.parametrize("body", [b"\xff\xfe", b'{"version": 1, "type": "agent.ping"}', b""])
def test_what_is_no_task_goes_to_the_dead_with_its_reason(
    site: Site, probe: Probe, body: bytes
) -> None:
    site.running()
    probe.channel.queue_purge(wire.DEAD)
    probe.send(site.instance_id, body)
    _method, properties, buried = probe.take(wire.DEAD)
    assert buried == body
    assert properties.headers["x-reason"] == "message_unreadable"
    assert 0 < len(properties.headers["x-message"]) <= 200
    assert properties.delivery_mode == 2
    task = ping()
    probe.send(site.instance_id, wire.encode_task(task))
    poll("the next task taken", lambda: _is_in(site.journal, task), 10)
    assert probe.waiting(wire.DEAD) == 0


def test_huge_messages_do_not_push_the_other_dead_out(site: Site, probe: Probe) -> None:
    """The largest message differs by version.

    RabbitMQ 3 takes more in one message than the queue may hold. RabbitMQ 4 takes a quarter of the
    queue's limit.
    """
    said = site.server.control("eval", "application:get_env(rabbit, max_message_size).")
    size = min(65 << 20, int(said.strip().removeprefix("{ok,").removesuffix("}")))
    site.running()
    probe.channel.queue_purge(wire.DEAD)
    probe.send(site.instance_id, b"small")
    count = -(-(65 << 20) // size)
    for _ in range(count):
        probe.send(site.instance_id, b"x" * size)
    assert probe.take(wire.DEAD)[2] == b"small"
    for _ in range(count):
        _method, properties, cut = probe.take(wire.DEAD)
        assert cut == b"x" * wire.MAX_TASK_BYTES
        assert str(size) in properties.headers["x-message"]


def test_reports_that_nobody_reads_wait_in_order(
    site: Site, probe: Probe, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = [site.ping() for _ in range(3)]
    with caplog.at_level(logging.INFO, "agent.broker"):
        site.running()
        poll("the first is returned", lambda: "no queue takes messages" in caplog.text, 10)
        assert unsent(site.journal) == 3
        queue = probe.reports_queue(site.instance_id)
        told = [probe.report(queue).task_id for _ in range(3)]
        assert told == [task.task_id for task in tasks]
        poll("the outbox empty", lambda: unsent(site.journal) == 0, 10)
        poll("it is said", lambda: "reports are taken again" in caplog.text, 10)
    assert caplog.text.count("no queue takes messages") == 1


def test_a_broker_that_dies_costs_nothing(
    site: Site, rabbitmq: RabbitMQ, caplog: pytest.LogCaptureFixture
) -> None:
    link = site.running()
    with probing(rabbitmq) as before:
        queue = before.reports_queue(site.instance_id)
        early = ping()
        before.send(site.instance_id, wire.encode_task(early))
        seen = before.report(queue)
        assert seen.task_id == early.task_id
    rabbitmq.kill()
    try:
        poll("the loss is seen", lambda: not link.consuming.is_set(), 10)
        tasks = [site.ping() for _ in range(5)]
        link.wake()
        assert unsent(site.journal) == 5
    finally:
        rabbitmq.start()
    assert link.consuming.wait(30)
    with probing(rabbitmq) as after:
        told = [after.report(queue) for _ in range(5)]
        # A killed broker may have forgotten an acknowledgement. Then it delivers a report again,
        # and consumers drop it by its number.
        told = [report for report in told if report.seq > seen.seq]
        told += [after.report(queue) for _ in range(5 - len(told))]
        assert [report.task_id for report in told] == [task.task_id for task in tasks]
        assert [report.seq for report in told] == sorted({report.seq for report in told})
        late = ping()
        after.send(site.instance_id, wire.encode_task(late))
        assert after.report(queue).task_id == late.task_id
    assert "can't be reached" in caplog.text
    assert rabbitmq.password not in caplog.text


def test_tasks_wait_on_the_broker_while_the_journal_is_full(
    site: Site, probe: Probe, tmp_path: Path
) -> None:
    small = Journal(tmp_path / "small.sqlite", site.instance_id, str(uuid4()), max_tasks=1)
    keeper = Keeper(small)
    link = site.running(keeper)
    tasks = [ping() for _ in range(3)]
    for task in tasks:
        probe.send(site.instance_id, wire.encode_task(task))
    poll("it stops consuming", lambda: not link.consuming.is_set(), 10)
    poll("it tries again", lambda: len(keeper.bodies) > 3, 10)
    assert probe.waiting(site.queue) == 1
    assert probe.consumers(site.queue) == 0
    for expected in tasks:
        poll("the task comes", partial(_is_in, small, expected), 10)
        assert small.claim() == expected
        small.report(draft(expected, TaskStatus.DONE))
    assert link.consuming.wait(10)
    link.stop(0)
    assert probe.waiting(site.queue) == 0
    small.close()


def test_a_journal_that_fails_holds_the_task(site: Site, probe: Probe) -> None:
    kept: list[bytes] = []
    broken = threading.Event()
    broken.set()

    def on_message(body: bytes, _redelivered: bool) -> Verdict:
        if broken.is_set():
            raise JournalError("no space is left")
        kept.append(body)
        return ACK

    link = site.running(on_message)
    probe.send(site.instance_id, b"one")
    poll("it stops consuming", lambda: not link.consuming.is_set(), 10)
    broken.clear()
    poll("the task is kept", lambda: kept == [b"one"], 10)
    assert link.consuming.wait(10)


def test_a_task_is_not_lost_when_the_link_stops_while_holding_it(site: Site, probe: Probe) -> None:
    def on_message(_body: bytes, _redelivered: bool) -> Verdict:
        raise JournalError("no space is left")

    link = site.running(on_message)
    probe.send(site.instance_id, b"one")
    poll("it stops consuming", lambda: not link.consuming.is_set(), 10)
    link.stop(1)
    assert not link.alive()
    poll("it is back", lambda: probe.waiting(site.queue) == 1, 10)


def test_of_two_links_one_has_the_tasks_until_it_goes(site: Site, probe: Probe) -> None:
    first, second = Keeper(site.journal), Keeper(site.journal)
    active = site.running(first)
    site.running(second)
    for _ in range(4):
        probe.send(site.instance_id, wire.encode_task(ping()))
    poll("all are taken", lambda: site.journal.unfinished() == 4, 10)
    assert (len(first.bodies), len(second.bodies)) == (4, 0)
    active.stop(0)
    probe.send(site.instance_id, wire.encode_task(ping()))
    poll("the other takes over", lambda: len(second.bodies) == 1, 10)
    assert len(first.bodies) == 4


def test_stop_publishes_what_waits_first(site: Site, probe: Probe) -> None:
    link = site.running()
    queue = probe.reports_queue(site.instance_id)
    for _ in range(50):
        site.ping()
    link.stop(20)
    assert not link.alive()
    assert unsent(site.journal) == 0
    assert probe.waiting(queue) == 50


def test_stop_does_not_wait_for_reports_that_nobody_reads(site: Site) -> None:
    link = site.running()
    site.ping()
    link.stop(20)
    assert not link.alive()
    assert unsent(site.journal) == 1


def test_a_link_without_a_broker_goes_on_and_can_be_stopped(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = settings_for(site.server, url=f"amqp://agent@127.0.0.1:{free_port()}/backup")
    link = site.link(settings=nowhere)
    poll("it is said", lambda: "can't be reached" in caplog.text, 10)
    assert link.alive()
    assert not link.consuming.is_set()
    link.wake()
    link.stop(30)
    assert not link.alive()
    assert caplog.text.count("can't be reached") == 1


def test_a_link_that_was_never_started_stops(site: Site) -> None:
    link = BrokerLink(settings_for(site.server), site.instance_id, lambda *_: ACK, site.journal)
    link.wake()
    link.stop(1)
    link.wake()
    assert not link.alive()


def test_a_deleted_queue_is_made_again(site: Site, probe: Probe) -> None:
    link = site.running()
    probe.channel.queue_delete(site.queue)
    poll("the loss is seen", lambda: not link.consuming.is_set(), 10)
    assert link.consuming.wait(10)
    task = ping()
    probe.send(site.instance_id, wire.encode_task(task))
    poll("a task comes through", lambda: _is_in(site.journal, task), 10)


def test_an_existing_queue_is_taken_as_it_is(site: Site, probe: Probe) -> None:
    probe.channel.queue_declare(site.queue, durable=True, arguments={"x-max-priority": 3})
    probe.channel.exchange_declare(wire.TASK_EXCHANGE, "direct", durable=True)
    site.running()
    task = ping()
    probe.send(site.instance_id, wire.encode_task(task))
    poll("a task comes through", lambda: _is_in(site.journal, task), 10)


@pytest.mark.parametrize("kind", ["quorum", "classic"])
def test_the_queue_is_what_the_contract_says(
    site: Site, rabbitmq: RabbitMQ, probe: Probe, kind: str
) -> None:
    link = site.link(settings=settings_for(rabbitmq, queue_type=kind))
    assert link.consuming.wait(20)
    arguments = {
        "x-queue-type": kind,
        "x-single-active-consumer": True,
        "x-dead-letter-exchange": wire.DEAD,
    }
    # RabbitMQ refuses a declaration that differs from the existing queue.
    probe.channel.queue_declare(site.queue, durable=True, arguments=arguments)
    for exchange, form in (
        (wire.TASK_EXCHANGE, "direct"),
        (wire.REPORT_EXCHANGE, "topic"),
        (wire.DEAD, "fanout"),
    ):
        probe.channel.exchange_declare(exchange, form, durable=True)
    task = ping()
    probe.send(site.instance_id, wire.encode_task(task))
    poll("a task comes through", lambda: _is_in(site.journal, task), 10)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_ends_the_link_visibly(site: Site, probe: Probe) -> None:
    def on_message(_body: bytes, _redelivered: bool) -> Verdict:
        raise ZeroDivisionError

    link = site.running(on_message)
    probe.send(site.instance_id, b"one")
    poll("the thread ends", lambda: not link.alive(), 10)
    assert not link.consuming.is_set()
    poll("the task is back", lambda: probe.waiting(site.queue) == 1, 10)


def test_pauses_double_up_to_the_longest_with_jitter() -> None:
    pauses = Pauses(first=1.0, longest=30.0)
    for failures, most in enumerate([1, 2, 4, 8, 16, 30, 30, 30]):
        seen = {pauses.after(failures) for _ in range(200)}
        assert most / 2 <= min(seen) < max(seen) <= most
        assert len(seen) > 100
    assert pauses.after(10**9) <= 30
