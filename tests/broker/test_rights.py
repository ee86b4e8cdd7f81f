"""Tests of the least rights, as script/broker-definitions gives them, on a real RabbitMQ.

Two instances share the broker. The password on one instance's machine must be useless against the
other instance.
"""

import json
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from uuid import uuid4

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from agent.broker import wire
from agent.broker.amqp import ACCESS_REFUSED, BrokerSettings
from agent.broker.client import ControlClient
from agent.broker.link import BrokerLink
from agent.broker.pace import Pauses
from agent.broker.probe import Probe as SelfTestProbe
from agent.broker.rights import Rights, agent_rights, control_rights, operator_rights
from agent.errors import BrokerDenied
from agent.journal import Journal
from agent.model import PingTask, Report, TaskStatus, utc_now
from tests.broker.probe import QUICK, Keeper, draft, probing, settings_for
from tests.house.source import CHECKOUT
from tests.stack.process import poll
from tests.stack.rabbitmq import RabbitMQ

PASSWORD = "of-one-machine"
SCRIPT = CHECKOUT / "script" / "broker-definitions"


class Place(NamedTuple):
    """A broker with the definitions of the instances `mine` and `other`, and of a control plane."""

    server: RabbitMQ
    mine: str
    other: str

    def settings(self, user: str, **more: Any) -> BrokerSettings:
        return settings_for(self.server, url=self.server.url_of(user), password=PASSWORD, **more)

    def agent(self) -> BrokerSettings:
        return self.settings(f"agent-{self.mine}", rights=agent_rights(self.mine))

    def operator(self) -> BrokerSettings:
        return self.settings(f"operator-{self.mine}", rights=operator_rights(self.mine))


def definitions(folder: Path, *arguments: str) -> dict[str, Any]:
    """Run the script and return the JSON that it prints. Each password file holds PASSWORD."""
    password = folder / "password"
    password.write_text(PASSWORD + "\n")
    files = [str(password)] * (2 if arguments[0] == "instance" else 1)
    done = subprocess.run(
        [SCRIPT, *arguments, *files],
        env={**os.environ, "QUEUE_TYPE": "classic"},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def place(rabbitmq: RabbitMQ, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("definitions")
    one = Place(rabbitmq, str(uuid4()), str(uuid4()))
    parts = [definitions(folder, "instance", instance) for instance in (one.mine, one.other)]
    parts.append(definitions(folder, "control"))
    merged = {key: [x for part in parts for x in part.get(key, [])] for key in parts[0]}
    rabbitmq.define(json.dumps(merged))
    return one


@pytest.fixture
def linked(place: Place, tmp_path: Path) -> Iterator[tuple[BrokerLink, Journal]]:
    """Yield an agent's link, which consumes with the least rights, and its journal.

    It checks the broker every 0.2 seconds.
    """
    with ExitStack() as cleanup:
        journal = Journal(tmp_path / "journal.sqlite", place.mine, str(uuid4()))
        cleanup.callback(journal.close)
        pauses = QUICK._replace(check=0.2)
        link = BrokerLink(place.agent(), place.mine, Keeper(journal), journal, pauses)
        cleanup.callback(link.stop, 0.5)
        link.start()
        assert link.consuming.wait(20)
        yield link, journal


def test_the_script_gives_the_rights_that_the_messages_name(tmp_path: Path) -> None:
    instance = str(uuid4())
    parts = (definitions(tmp_path, "instance", instance), definitions(tmp_path, "control"))
    expected = {
        f"agent-{instance}": agent_rights(instance),
        f"operator-{instance}": operator_rights(instance),
        "backup-control": control_rights(),
    }
    found = {}
    for part in parts:
        for one, topic in zip(part["permissions"], part["topic_permissions"], strict=True):
            assert topic["exchange"] == wire.REPORT_EXCHANGE
            topics = (topic["write"], topic["read"])
            found[one["user"]] = Rights(one["configure"], one["write"], one["read"], *topics)
    assert found == expected


@pytest.mark.parametrize("user", ["operator", "control"])
def test_a_task_goes_its_whole_way_with_the_least_rights(
    place: Place,
    linked: tuple[BrokerLink, Journal],
    caplog: pytest.LogCaptureFixture,
    user: str,
) -> None:
    link, journal = linked
    settings = place.operator() if user == "operator" else place.settings("backup-control")
    task = PingTask(task_id=str(uuid4()))
    with ControlClient(settings) as client:
        client.subscribe(place.mine)
        assert client.send_task(place.mine, task) == 1
        told = client.reports(task.task_id, idle_seconds=20)
        assert next(told).status is TaskStatus.ACCEPTED
        journal.report(draft(task, TaskStatus.DONE))
        link.wake()
        assert next(told).status is TaskStatus.DONE
    assert link.trouble == ""
    assert "broker_denied" not in caplog.text


def test_what_is_no_task_is_buried_with_the_least_rights(
    place: Place, linked: tuple[BrokerLink, Journal]
) -> None:
    connection = pika.BlockingConnection(place.server.parameters())
    channel = connection.channel()
    channel.queue_purge(wire.DEAD)
    channel.basic_publish(wire.TASK_EXCHANGE, place.mine, b"junk")
    poll("it is buried", lambda: channel.basic_get(wire.DEAD, auto_ack=True)[2] == b"junk", 10)
    connection.close()


Attempt = Callable[[BlockingChannel, Place], object]


def _queue(instance: str) -> str:
    return wire.task_queue(instance)


def _dead_letters_to(exchange: str, key: str) -> dict[str, str]:
    return {"x-dead-letter-exchange": exchange, "x-dead-letter-routing-key": key}


AGENT_MAY_NOT: dict[str, Attempt] = {
    "take the other's tasks": lambda c, p: c.basic_consume(_queue(p.other), lambda *_: None),
    "look into the other's tasks": lambda c, p: c.basic_get(_queue(p.other)),
    "purge the other's tasks": lambda c, p: c.queue_purge(_queue(p.other)),
    "delete the other's queue": lambda c, p: c.queue_delete(_queue(p.other)),
    "bind the other's queue": lambda c, p: c.queue_bind(_queue(p.other), wire.REPORT_EXCHANGE, "#"),
    "unbind the other's queue": lambda c, p: c.queue_unbind(
        _queue(p.other), wire.TASK_EXCHANGE, p.other
    ),
    "delete its own queue": lambda c, p: c.queue_delete(_queue(p.mine)),
    "bind its own queue": lambda c, p: c.queue_bind(_queue(p.mine), wire.TASK_EXCHANGE, p.other),
    "send tasks": lambda c, p: c.basic_publish(wire.TASK_EXCHANGE, p.other, b"{}"),
    "send tasks to itself": lambda c, p: c.basic_publish(wire.TASK_EXCHANGE, p.mine, b"{}"),
    "send by the default exchange": lambda c, p: c.basic_publish("", _queue(p.other), b"{}"),
    "send by the other's exchange": lambda c, p: c.basic_publish(
        wire.own_exchange(p.other), "", b"{}"
    ),
    "send by another exchange": lambda c, p: c.basic_publish("amq.direct", p.other, b"{}"),
    "report for the other": lambda c, p: c.basic_publish(
        wire.REPORT_EXCHANGE, f"{p.other}.agent.ping.DONE", b"{}"
    ),
    "read dead letters": lambda c, p: c.basic_get(wire.DEAD),
    "make a queue": lambda c, p: c.queue_declare("", exclusive=True),
    "make an exchange": lambda c, p: c.exchange_declare(f"x.{p.mine}", "fanout"),
    "bind an exchange": lambda c, p: c.exchange_bind(wire.DEAD, wire.REPORT_EXCHANGE, "#"),
    "delete an exchange": lambda c, p: c.exchange_delete(wire.TASK_EXCHANGE),
}

OPERATOR_MAY_NOT: dict[str, Attempt] = {
    "take its agent's tasks": lambda c, p: c.basic_get(_queue(p.mine)),
    "send to all": lambda c, p: c.basic_publish(wire.TASK_EXCHANGE, p.other, b"{}"),
    "send to the other": lambda c, p: c.basic_publish(wire.own_exchange(p.other), "", b"{}"),
    "report": lambda c, p: c.basic_publish(
        wire.REPORT_EXCHANGE, f"{p.mine}.agent.ping.DONE", b"{}"
    ),
    "follow the other": lambda c, p: c.queue_bind(
        _private(c, p), wire.REPORT_EXCHANGE, wire.reports_of(p.other)
    ),
    "follow all": lambda c, p: c.queue_bind(_private(c, p), wire.REPORT_EXCHANGE, "#"),
    "copy all tasks": lambda c, p: c.queue_bind(_private(c, p), wire.TASK_EXCHANGE, p.other),
    # RabbitMQ checks no topic permission for dead letters that it publishes.
    "report by dead letters": lambda c, p: c.queue_declare(
        wire.client_queue(p.mine),
        arguments=_dead_letters_to(wire.REPORT_EXCHANGE, f"{p.other}.agent.ping.DONE"),
    ),
    "send tasks by dead letters": lambda c, p: c.queue_declare(
        wire.client_queue(p.mine), arguments=_dead_letters_to("", _queue(p.other))
    ),
}

# The control plane may send all tasks. It still can't report as an agent or take an agent's tasks.
CONTROL_MAY_NOT: dict[str, Attempt] = {
    "take tasks": lambda c, p: c.basic_consume(_queue(p.mine), lambda *_: None),
    "look into tasks": lambda c, p: c.basic_get(_queue(p.mine)),
    "purge tasks": lambda c, p: c.queue_purge(_queue(p.mine)),
    "delete a queue": lambda c, p: c.queue_delete(_queue(p.mine)),
    "unbind a queue": lambda c, p: c.queue_unbind(_queue(p.mine), wire.TASK_EXCHANGE, p.mine),
    "copy all tasks": lambda c, p: c.queue_bind(_private(c, p), wire.TASK_EXCHANGE, p.mine),
    "send by the default exchange": lambda c, p: c.basic_publish("", _queue(p.mine), b"{}"),
    "report": lambda c, p: c.basic_publish(
        wire.REPORT_EXCHANGE, f"{p.mine}.agent.ping.DONE", b"{}"
    ),
    "report by dead letters": lambda c, p: c.queue_declare(
        wire.client_queue(p.mine),
        arguments=_dead_letters_to(wire.REPORT_EXCHANGE, f"{p.mine}.agent.ping.DONE"),
    ),
    "bury": lambda c, p: c.basic_publish(wire.DEAD, "", b"{}"),
    "delete dead letters' queue": lambda c, p: c.queue_delete(wire.DEAD),
    "delete an exchange": lambda c, p: c.exchange_delete(wire.TASK_EXCHANGE),
}


def _private(channel: BlockingChannel, place: Place) -> str:
    name = wire.client_queue(place.mine)
    channel.queue_declare(name, exclusive=True)
    return name


@pytest.mark.parametrize(
    ("user", "attempts"),
    [
        ("agent-{}", AGENT_MAY_NOT),
        ("operator-{}", OPERATOR_MAY_NOT),
        ("backup-control", CONTROL_MAY_NOT),
    ],
    ids=["agent", "operator", "control"],
)
def test_nobody_can_do_what_the_rights_do_not_give(
    place: Place, user: str, attempts: dict[str, Attempt]
) -> None:
    login = place.server.parameters(user.format(place.mine), PASSWORD)
    connection = pika.BlockingConnection(login)
    answers = {}
    for name, attempt in attempts.items():
        channel = connection.channel()
        channel.confirm_delivery()
        try:
            attempt(channel, place)
            answers[name] = 0
        except ChannelClosedByBroker as error:
            answers[name] = error.reply_code
    connection.close()
    assert answers == dict.fromkeys(attempts, ACCESS_REFUSED)


@pytest.mark.parametrize("header", ["CC", "BCC"])
def test_a_report_under_another_key_is_not_taken_for_the_others(
    place: Place, tmp_path: Path, header: str
) -> None:
    """RabbitMQ also routes by these headers, and checks no topic permission for them."""
    task = PingTask(task_id=str(uuid4()))

    def report(status: TaskStatus) -> Report:
        return Report(
            task_id=task.task_id,
            type=task.type,
            status=status,
            agent_run_id=str(uuid4()),
            seq=1,
            at=utc_now(),
            instance_id=place.other,
        )

    forged, real = report(TaskStatus.DONE), report(TaskStatus.FAILED)
    with ControlClient(place.settings("backup-control")) as client:
        client.subscribe(place.other)
        for told, user, key in (
            (forged, place.mine, f"{place.mine}.agent.ping.DONE"),
            (real, place.other, wire.routing_key(real)),
        ):
            login = place.server.parameters(f"agent-{user}", PASSWORD)
            connection = pika.BlockingConnection(login)
            headers = {header: [wire.routing_key(told)]} if told is forged else None
            connection.channel().basic_publish(
                wire.REPORT_EXCHANGE,
                key,
                wire.encode_report(told),
                pika.BasicProperties(headers=headers),
            )
            connection.close()
        assert list(client.reports(task.task_id, idle_seconds=20)) == [real]


def test_the_hint_is_the_commands_that_help(place: Place, tmp_path: Path) -> None:
    """The user may only log in at first. Then the commands of the hint are run."""
    user, instance = f"new-{uuid4()}", place.mine
    place.server.control("add_user", user, PASSWORD)
    place.server.control("set_permissions", "-p", "backup", user, "^$", "^$", "^$")
    settings = place.settings(user, rights=agent_rights(instance))
    journal = Journal(tmp_path / "journal.sqlite", instance, str(uuid4()))
    link = BrokerLink(settings, instance, Keeper(journal), journal, QUICK)
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("agent.broker.link")
    logger.addHandler(handler)
    link.start()
    try:
        denied = "broker_denied: RabbitMQ at"
        poll("it is said", lambda: any(line.startswith(denied) for line in said), 20)
        [hint] = {line.partition("; ")[2] for line in said if line.startswith(denied)}
        for command in hint.split("; ")[:2]:
            words = [word.strip("'") for word in command.split()]
            assert words[0] == "rabbitmqctl"
            place.server.control(*words[1:])
        assert link.consuming.wait(20)
    finally:
        logger.removeHandler(handler)
        link.stop(0.5)
        journal.close()


def test_an_agent_without_a_queue_says_that_it_may_not_make_one(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    instance = str(uuid4())
    journal = Journal(tmp_path / "journal.sqlite", instance, str(uuid4()))
    link = BrokerLink(place.agent(), instance, Keeper(journal), journal, QUICK)
    link.start()
    missing = f"the queue backup.tasks.{instance} is missing and can't be created"
    poll("it is said", lambda: missing in caplog.text, 20)
    assert "script/broker-definitions" in caplog.text
    assert not link.consuming.is_set()
    link.stop(0.5)
    journal.close()


def test_an_exchange_that_is_gone_is_noticed_and_reported(
    place: Place, linked: tuple[BrokerLink, Journal], caplog: pytest.LogCaptureFixture
) -> None:
    link, _journal = linked
    connection = pika.BlockingConnection(place.server.parameters())
    channel = connection.channel()
    channel.exchange_delete(wire.TASK_EXCHANGE)
    try:
        missing = f"the exchange {wire.TASK_EXCHANGE} is missing and can't be created"
        poll("it is noticed", lambda: missing in link.trouble, 10)
        poll("it is logged", lambda: missing in caplog.text, 10)
        assert link.consuming.is_set()
    finally:
        connection.close()
        place.server.bind_tasks()
    poll("it is well again", lambda: link.trouble == "", 10)


def test_two_troubles_that_last_are_logged_once_each(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each check finds that an exchange was deleted, and each try of a report is returned."""
    journal = Counted(tmp_path / "journal.sqlite", place.other, str(uuid4()))
    settings = place.settings(f"agent-{place.other}", rights=agent_rights(place.other))
    pauses = QUICK._replace(check=0.1)
    link = BrokerLink(settings, place.other, Keeper(journal), journal, pauses)
    link.start()
    try:
        assert link.consuming.wait(20)
        with pika.BlockingConnection(place.server.parameters()) as connection:
            connection.channel().exchange_delete(wire.TASK_EXCHANGE)
        task = PingTask(task_id=str(uuid4()))
        journal.accept(task, draft(task, TaskStatus.ACCEPTED))
        link.wake()
        poll("both are noticed", lambda: bool(link.trouble) and "no queue" in caplog.text, 10)
        before = journal.looks
        poll("the report is tried again", lambda: journal.looks > before + 10, 20)
    finally:
        link.stop(0.5)
        journal.close()
        place.server.bind_tasks()
    assert caplog.text.count("is missing and can't be created") == 1
    assert caplog.text.count("no queue takes messages") == 1


@pytest.mark.parametrize("lost", ["exchange", "right"])
def test_reports_that_the_broker_refuses_cost_no_connection(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture, lost: str
) -> None:
    """The link still takes tasks, and names the right or the exchange that its reports lack."""
    caplog.set_level(logging.INFO, "agent.broker")
    lose, restore, said = REFUSALS[lost]
    journal = Counted(tmp_path / "journal.sqlite", place.other, str(uuid4()))
    settings = place.settings(f"agent-{place.other}", rights=agent_rights(place.other))
    pauses = QUICK._replace(check=0.2)
    link = BrokerLink(settings, place.other, Keeper(journal), journal, pauses)
    lose(place)
    try:
        link.start()
        task = PingTask(task_id=str(uuid4()))
        journal.accept(task, draft(task, TaskStatus.ACCEPTED))
        poll("it is tried again", lambda: journal.looks > 10, 20)
        assert link.consuming.is_set()
        assert f"no report can be sent: {settings.where} refuses: " in link.trouble
        assert said in link.trouble
        restore(place)
        with probing(place.server) as probe:
            queue = probe.reports_queue(place.other)
            assert probe.report(queue).task_id == task.task_id
            probe.channel.queue_delete(queue)
        poll("it is well again", lambda: link.trouble == "", 10)
    finally:
        restore(place)
        link.stop(0.5)
        journal.close()
    assert caplog.text.count("connected to RabbitMQ") == 1
    assert caplog.text.count("no report can be sent") == 1
    hint = {"exchange": "script/broker-definitions", "right": "rabbitmqctl set_topic_permissions"}
    assert hint[lost] in caplog.text


def _delete_reports(place: Place) -> None:
    with probing(place.server) as probe:
        probe.channel.exchange_delete(wire.REPORT_EXCHANGE)


def _make_reports(place: Place) -> None:
    with probing(place.server) as probe:
        probe.channel.exchange_declare(wire.REPORT_EXCHANGE, "topic", durable=True)


def _set_topics(place: Place, topics: str) -> None:
    user = f"agent-{place.other}"
    arguments = ("-p", "backup", user, wire.REPORT_EXCHANGE, topics, "^$")
    place.server.control("set_topic_permissions", *arguments)


REFUSALS: dict[str, tuple[Callable[[Place], None], Callable[[Place], None], str]] = {
    "exchange": (_delete_reports, _make_reports, "NOT_FOUND - no exchange 'backup.reports'"),
    "right": (
        lambda place: _set_topics(place, "^$"),
        lambda place: _set_topics(place, agent_rights(place.other).publish),
        "access to topic",  # RabbitMQ 3.10 says this. 4.0 adds that it is for writing.
    ),
}


class Recorded(Pauses):
    """Pauses that record the count of failures with which each pause was requested."""

    asked: ClassVar[list[int]] = []

    def after(self, failures: int) -> float:
        self.asked.append(failures)
        return super().after(failures)


@pytest.mark.parametrize(("longest", "expected"), [(30.0, [0, 1, 2, 3]), (0.0, [0, 0, 0, 0])])
def test_a_connection_counts_as_a_success_once_it_has_lasted(
    place: Place, tmp_path: Path, longest: float, expected: list[int]
) -> None:
    """An agent without the right to take its own tasks is disconnected as soon as it connects."""
    user = f"new-{uuid4()}"
    place.server.control("add_user", user, PASSWORD)
    place.server.control("set_permissions", "-p", "backup", user, "^$", ".*", "^$")
    journal = Journal(tmp_path / "journal.sqlite", place.mine, str(uuid4()))
    Recorded.asked.clear()
    pauses = Recorded(first=0.05, longest=longest)
    link = BrokerLink(place.settings(user), place.mine, Keeper(journal), journal, pauses)
    link.start()
    try:
        poll("it connects anew", lambda: len(Recorded.asked) > 3, 20)
    finally:
        link.stop(0.5)
        journal.close()
    assert Recorded.asked[:4] == expected


class Counted(Journal):
    """A journal that counts the requests for its next report."""

    looks = 0

    def next_report(self) -> Report | None:
        self.looks += 1
        return super().next_report()


def test_the_self_tests_probe_needs_no_more_rights(
    place: Place, linked: tuple[BrokerLink, Journal]
) -> None:
    with SelfTestProbe(place.agent()) as probe:
        assert probe.observe(place.mine) == ([], 1, None)
        assert probe.round_trip() is None
        assert probe.returns_unroutable() is None
        assert probe.has_readers(place.mine) is False


def test_a_denied_command_says_which_rights_it_needs(place: Place) -> None:
    """An operator follows another instance, and an agent's user sends a task. Neither may do so."""
    operator = f"operator-{place.mine}"
    with ControlClient(place.operator()) as client, pytest.raises(BrokerDenied) as caught:
        client.subscribe(place.other)
    assert f"rabbitmqctl set_permissions -p backup {operator}" in caught.value.hint
    agent = place.settings(f"agent-{place.mine}")
    with ControlClient(agent) as client, pytest.raises(BrokerDenied) as caught:
        client.send_task(place.mine, PingTask(task_id=str(uuid4())))
    assert "set [broker] control_url" in caught.value.hint


def test_one_who_may_not_send_tasks_is_denied_where_instances_have_no_way_of_their_own(
    place: Place,
) -> None:
    """This is the case if an agent with more rights has created all queues and exchanges."""
    user, instance = f"new-{uuid4()}", str(uuid4())
    place.server.control("add_user", user, PASSWORD)
    place.server.control("set_permissions", "-p", "backup", user, "^$", r"^backup\.own\.", "^$")
    with probing(place.server) as probe:
        probe.channel.queue_declare(_queue(instance), durable=True)
        with ControlClient(place.settings(user)) as client, pytest.raises(BrokerDenied) as caught:
            client.send_task(instance, PingTask(task_id=str(uuid4())))
        probe.channel.queue_delete(_queue(instance))
    assert f"access to exchange '{wire.TASK_EXCHANGE}'" in str(caught.value)
