"""Tests on a broker with TLS and a short consumer timeout.

They cover certificates, deliveries that are held too long, and a frozen node.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from agent.broker import wire
from agent.broker.amqp import BrokerSettings
from agent.broker.client import ControlClient
from agent.broker.intake import ACK, HOLD, Verdict
from agent.broker.link import BrokerLink
from agent.broker.session import Session
from agent.broker.topology import Upkeep
from agent.errors import BrokerSilent, BrokerUntrusted
from agent.journal import Journal
from agent.model import PingTask, TaskStatus
from tests.broker.probe import QUICK, Keeper, draft, probing, settings_for
from tests.conftest import need
from tests.journal.looks import unsent
from tests.stack.certificate import self_signed
from tests.stack.process import poll
from tests.stack.rabbitmq import SERVER, RabbitMQ


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return self_signed(tmp_path_factory.mktemp("tls") / "node.pem")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[RabbitMQ]:
    """Yield a node that speaks TLS and takes back a delivery that is held for a second."""
    need("epmd", SERVER)
    folder = tmp_path_factory.mktemp("rabbitmq")
    server = RabbitMQ(folder, consumer_timeout_ms=1000, channel_tick_ms=200, tls=certificate)
    try:
        server.start()
        family = [psutil.Process(pid) for pid in server.pids()]
        family += [child for process in family for child in process.children(recursive=True)]
        yield server
    finally:
        server.stop()
    assert len(family) >= 3  # The node, its helpers and epmd.
    assert not any(process.is_running() for process in family)


@pytest.fixture
def instance_id() -> str:
    return str(uuid4())


@pytest.fixture
def journal(tmp_path: Path, instance_id: str) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.sqlite", instance_id, str(uuid4()))
    yield journal
    journal.close()


@contextmanager
def frozen(server: RabbitMQ) -> Iterator[None]:
    """Freeze the node with SIGSTOP. Connections stay open and get no answer."""
    node = server.pids()[0]
    os.kill(node, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(node, signal.SIGCONT)


@contextmanager
def linked(
    settings: BrokerSettings,
    instance_id: str,
    on_message: Callable[[bytes, bool], Verdict],
    journal: Journal,
) -> Iterator[BrokerLink]:
    """Yield a link that consumes, and stop it at the end."""
    link = BrokerLink(settings, instance_id, on_message, journal, QUICK)
    link.start()
    try:
        assert link.consuming.wait(20)
        yield link
    finally:
        link.stop(1)
    assert not link.alive()


def ping() -> PingTask:
    return PingTask(task_id=str(uuid4()))


def test_tasks_and_reports_go_over_tls(
    broker: RabbitMQ, certificate: Path, journal: Journal, instance_id: str
) -> None:
    settings = settings_for(broker, url=broker.tls_url, ca_file=certificate)
    task = ping()
    with (
        linked(settings, instance_id, Keeper(journal), journal),
        ControlClient(settings) as client,
    ):
        client.subscribe(instance_id)
        client.send_task(instance_id, task)
        report = next(client.reports(task.task_id, idle_seconds=20))
    assert report.status is TaskStatus.ACCEPTED


def test_a_certificate_of_another_authority_is_refused(broker: RabbitMQ, tmp_path: Path) -> None:
    other = self_signed(tmp_path / "other.pem")
    with (
        pytest.raises(BrokerUntrusted, match=r"self-signed") as caught,
        ControlClient(settings_for(broker, url=broker.tls_url, ca_file=other)),
    ):
        pass
    assert "ca_file" in caught.value.hint


def test_a_certificate_nobody_vouches_for_is_refused(broker: RabbitMQ) -> None:
    with (
        pytest.raises(BrokerUntrusted, match="self-signed"),
        ControlClient(settings_for(broker, url=broker.tls_url)),
    ):
        pass


def test_a_task_held_too_long_comes_back(
    broker: RabbitMQ, journal: Journal, instance_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    full = threading.Event()
    full.set()
    kept: list[bytes] = []

    def on_message(body: bytes, _redelivered: bool) -> Verdict:
        if full.is_set():
            return HOLD
        kept.append(body)
        return ACK

    with (
        linked(settings_for(broker), instance_id, on_message, journal) as link,
        probing(broker) as probe,
    ):
        probe.send(instance_id, b"one")
        poll("RabbitMQ closed the channel", lambda: "acknowledgement" in caplog.text, 20)
        full.clear()
        poll("the task is kept", lambda: kept == [b"one"], 20)
        assert link.consuming.wait(20)
        link.stop(1)
        assert probe.waiting(wire.task_queue(instance_id)) == 0


def test_a_frozen_broker_delays_nobody_for_ever(
    broker: RabbitMQ, journal: Journal, instance_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(broker, answer_seconds=0.5, connect_seconds=0.5)
    with (
        linked(settings, instance_id, Keeper(journal), journal) as link,
        ControlClient(settings) as client,
    ):
        task = ping()
        with frozen(broker):
            with pytest.raises(BrokerSilent, match=r"within 0\.5 s"):
                client.send_task(instance_id, ping())
            journal.accept(task, draft(task, TaskStatus.ACCEPTED))
            link.wake()
            poll("the link gives up", lambda: not link.consuming.is_set(), 20)
            assert unsent(journal) == 1
        assert link.consuming.wait(20)
        poll("nothing is lost", lambda: "no queue takes" in caplog.text, 20)
    assert "broker_silent: RabbitMQ at" in caplog.text


def test_a_dead_letter_outlives_a_broker_that_is_slow_to_make_its_place_again(
    broker: RabbitMQ, journal: Journal, instance_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(broker, answer_seconds=0.5, connect_seconds=0.5)
    slow, repair = threading.Event(), Upkeep.repair

    async def freezing(self: Upkeep, session: Session) -> None:
        freeze = nullcontext() if slow.is_set() else frozen(broker)
        slow.set()
        with freeze:
            await repair(self, session)

    keeper = Keeper(journal)
    with linked(settings, instance_id, keeper, journal) as link, probing(broker) as probe:
        probe.channel.queue_purge(wire.DEAD)
        probe.channel.exchange_delete(wire.DEAD)
        monkeypatch.setattr(Upkeep, "repair", freezing)
        probe.send(instance_id, b"junk")
        assert slow.wait(20)
        assert probe.take(wire.DEAD)[2] == b"junk"
        assert link.consuming.wait(20)
    assert keeper.bodies == [b"junk"] * 2


def test_a_frozen_broker_does_not_hold_up_the_stop(
    broker: RabbitMQ, journal: Journal, instance_id: str
) -> None:
    with linked(settings_for(broker), instance_id, Keeper(journal), journal) as link:
        task = ping()
        with frozen(broker):
            journal.accept(task, draft(task, TaskStatus.ACCEPTED))
            begin = time.monotonic()
            link.stop(0.5)
            assert time.monotonic() - begin < 6
            assert not link.alive()
    assert unsent(journal) == 1


def test_nothing_is_left_of_a_node_whose_test_run_is_killed(tmp_path: Path) -> None:
    source = (
        "import sys, time; from pathlib import Path; from tests.stack.rabbitmq import RabbitMQ\n"
        "server = RabbitMQ(Path(sys.argv[1])); server.launch()\n"
        "print(*server.pids(), flush=True); time.sleep(60)\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", source, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with run:
        assert run.stdout is not None
        family = [psutil.Process(int(pid)) for pid in run.stdout.readline().split()]
        assert len(family) == 2
        poll("the node has helpers", lambda: bool(family[0].children()), 20)
        family += family[0].children(recursive=True)
        run.kill()
    psutil.wait_procs(family, timeout=20)
    assert not any(process.is_running() for process in family)
