"""Tests of the operator's client on a real RabbitMQ.

They send tasks, receive reports, and check that refusals are clear.
"""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from agent.broker import wire
from agent.broker.client import ControlClient
from agent.broker.link import BrokerLink
from agent.errors import (
    BrokerDenied,
    BrokerUnreachable,
    InstanceNotServed,
    Internal,
    ReplyTimeout,
)
from agent.journal import Journal
from agent.model import PingTask, Report, TaskStatus
from tests.broker.probe import QUICK, Keeper, draft, probing, settings_for
from tests.journal.looks import unsent
from tests.stack.process import free_port, poll
from tests.stack.rabbitmq import RabbitMQ


def ping() -> PingTask:
    return PingTask(task_id=str(uuid4()))


class Agent:
    """An instance with a journal, and a link that is not yet started."""

    def __init__(self, server: RabbitMQ, folder: Path):
        self.instance_id = str(uuid4())
        self.journal = Journal(folder / "journal.sqlite", self.instance_id, str(uuid4()))
        keeper = Keeper(self.journal)
        self.link = BrokerLink(settings_for(server), self.instance_id, keeper, self.journal, QUICK)

    def report(self, task: PingTask, status: TaskStatus) -> None:
        self.journal.report(draft(task, status))
        self.link.wake()


@pytest.fixture
def agent(rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[Agent]:
    with ExitStack() as cleanup:
        agent = Agent(rabbitmq, tmp_path)
        cleanup.callback(agent.journal.close)
        agent.link.start()
        cleanup.callback(agent.link.stop, 0.5)
        assert agent.link.consuming.wait(20)
        yield agent


@pytest.fixture
def client(rabbitmq: RabbitMQ) -> Iterator[ControlClient]:
    with ControlClient(settings_for(rabbitmq)) as client:
        yield client


def test_a_task_is_followed_to_its_end(agent: Agent, client: ControlClient) -> None:
    client.subscribe(agent.instance_id)
    task, other = ping(), ping()
    client.send_task(agent.instance_id, other)
    client.send_task(agent.instance_id, task)
    told: list[Report] = []
    for report in client.reports(task.task_id, idle_seconds=20):
        told.append(report)
        if report.status is TaskStatus.ACCEPTED:
            assert agent.journal.claim() == other
            assert agent.journal.claim() == task
            agent.report(other, TaskStatus.DONE)
            agent.report(task, TaskStatus.RUNNING)
            agent.report(task, TaskStatus.FAILED)
    assert [report.status for report in told] == [
        TaskStatus.ACCEPTED,
        TaskStatus.RUNNING,
        TaskStatus.FAILED,
    ]
    assert {report.task_id for report in told} == {task.task_id}


def test_no_report_is_missed_that_comes_before_one_reads(
    agent: Agent, client: ControlClient
) -> None:
    client.subscribe(agent.instance_id)
    task = ping()
    client.send_task(agent.instance_id, task)
    poll("it is taken", lambda: agent.journal.status(task.task_id) is not None, 10)
    agent.report(task, TaskStatus.DONE)
    poll("all is published", lambda: unsent(agent.journal) == 0, 10)
    told = [report.status for report in client.reports(task.task_id, idle_seconds=10)]
    assert told == [TaskStatus.ACCEPTED, TaskStatus.DONE]


def test_what_is_no_report_is_passed_over(
    agent: Agent, client: ControlClient, rabbitmq: RabbitMQ
) -> None:
    client.subscribe(agent.instance_id)
    task = ping()
    with probing(rabbitmq) as probe:
        key = f"{agent.instance_id}.agent.ping.DONE"
        probe.channel.basic_publish(wire.REPORT_EXCHANGE, key, b"no report", mandatory=True)
    agent.journal.accept(task, draft(task, TaskStatus.DONE))
    agent.link.wake()
    told = [report.status for report in client.reports(task.task_id, idle_seconds=10)]
    assert told == [TaskStatus.DONE]


def test_silence_is_told_after_the_time_given(agent: Agent, client: ControlClient) -> None:
    client.subscribe(agent.instance_id)
    task = ping()
    client.send_task(agent.instance_id, task)
    begin = time.monotonic()
    with pytest.raises(ReplyTimeout, match=r"0\.3 s"):
        list(client.reports(task.task_id, idle_seconds=0.3))
    assert 0.3 <= time.monotonic() - begin < 10


def test_an_instance_without_a_queue_is_told_at_once(client: ControlClient) -> None:
    nobody = str(uuid4())
    begin = time.monotonic()
    with pytest.raises(InstanceNotServed, match=nobody):
        client.send_task(nobody, ping())
    with pytest.raises(InstanceNotServed, match=nobody):
        client.subscribe(nobody)
    assert time.monotonic() - begin < 5


def test_a_queue_that_is_not_bound_is_told(
    agent: Agent, client: ControlClient, rabbitmq: RabbitMQ
) -> None:
    queue = wire.task_queue(agent.instance_id)
    with probing(rabbitmq) as probe:
        probe.channel.queue_unbind(queue, wire.TASK_EXCHANGE, agent.instance_id)
    with pytest.raises(InstanceNotServed, match="isn't bound"):
        client.send_task(agent.instance_id, ping())


def test_a_task_waits_for_an_agent_that_is_away(
    agent: Agent, client: ControlClient, rabbitmq: RabbitMQ
) -> None:
    agent.link.stop(1)
    task = ping()
    client.send_task(agent.instance_id, task)
    with probing(rabbitmq) as probe:
        _method, properties, body = probe.take(wire.task_queue(agent.instance_id))
    assert wire.decode_task(body) == task
    assert properties.delivery_mode == 2


def test_a_wrong_password_is_told_quickly(rabbitmq: RabbitMQ) -> None:
    begin = time.monotonic()
    with (
        pytest.raises(BrokerDenied, match="refuses the user agent") as caught,
        ControlClient(settings_for(rabbitmq, password="wrong-secret")),
    ):
        pass
    assert time.monotonic() - begin < 5
    assert "wrong-secret" not in str(caught.value) + repr(caught.value.__cause__)


def test_there_is_no_guest(rabbitmq: RabbitMQ) -> None:
    url = f"amqp://guest@127.0.0.1:{rabbitmq.port}/backup"
    with (
        pytest.raises(BrokerDenied, match="refuses the user guest"),
        ControlClient(settings_for(rabbitmq, url=url, password="guest")),
    ):
        pass


def test_a_wrong_virtual_host_is_told_quickly(rabbitmq: RabbitMQ) -> None:
    url = f"amqp://agent@127.0.0.1:{rabbitmq.port}/nowhere"
    begin = time.monotonic()
    with (
        pytest.raises(BrokerDenied, match="refuses the virtual host nowhere to the user agent"),
        ControlClient(settings_for(rabbitmq, url=url)),
    ):
        pass
    assert time.monotonic() - begin < 5


def test_no_broker_is_told_quickly(rabbitmq: RabbitMQ) -> None:
    port = free_port()
    begin = time.monotonic()
    with (
        pytest.raises(BrokerUnreachable, match=f"127.0.0.1:{port} .*Connection refused"),
        ControlClient(settings_for(rabbitmq, url=f"amqp://agent@127.0.0.1:{port}/backup")),
    ):
        pass
    assert time.monotonic() - begin < 5


def test_a_name_that_does_not_resolve_is_told(rabbitmq: RabbitMQ) -> None:
    with (
        pytest.raises(BrokerUnreachable, match=r"no-such-host\.invalid"),
        ControlClient(settings_for(rabbitmq, url="amqp://agent@no-such-host.invalid/backup")),
    ):
        pass


def test_a_port_that_never_answers_is_told_in_time(rabbitmq: RabbitMQ) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"amqp://agent@127.0.0.1:{silent.getsockname()[1]}/backup"
        begin = time.monotonic()
        with (
            pytest.raises(BrokerUnreachable, match="no answer in time"),
            ControlClient(settings_for(rabbitmq, url=url, connect_seconds=0.3)),
        ):
            pass
        assert time.monotonic() - begin < 5


def test_reports_need_a_subscription(client: ControlClient) -> None:
    with pytest.raises(Internal):
        list(client.reports(str(uuid4()), idle_seconds=1))
