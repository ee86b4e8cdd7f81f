"""Tests of the daemon's supervision of a real link.

It reports readiness when the link consumes, and sends no heartbeat when the link is stuck.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from agent.broker.intake import ACK, Verdict
from agent.broker.link import BrokerLink
from agent.daemon import Supervision
from agent.journal import Journal
from agent.machine.systemd import Notifier
from tests.broker.probe import QUICK, probing, settings_for
from tests.stack.certificate import HOUR, Authority
from tests.stack.notified import Listener
from tests.stack.process import free_port, poll
from tests.stack.rabbitmq import RabbitMQ
from tests.stack.tls_relay import relayed

ALIVE = "WATCHDOG=1"
WAITING = "EXTEND_TIMEOUT_USEC=60000000"


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    with Listener(tmp_path / "notify") as one:
        yield one


@contextmanager
def supervised(
    address: Path,
    server: RabbitMQ,
    on_message: Callable[[bytes, bool], Verdict] = lambda *_: ACK,
    **settings: Any,
) -> Iterator[BrokerLink]:
    """Yield a running link, supervised by a thread, with a watchdog of half a second."""
    instance_id = str(uuid4())
    journal = Journal(address.parent / "journal.sqlite", instance_id, str(uuid4()))
    link = BrokerLink(settings_for(server, **settings), instance_id, on_message, journal, QUICK)
    notifier = Notifier({"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "500000"})
    supervision = Supervision(notifier, link, f"backup.tasks.{instance_id}")
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            supervision.check()

    looking = threading.Thread(target=look)
    link.start()
    looking.start()
    try:
        yield link
    finally:
        ended.set()
        looking.join()
        link.stop(0.5)
        journal.close()


def test_ready_when_it_consumes_and_alive_from_then_on(
    rabbitmq: RabbitMQ, listener: Listener
) -> None:
    with supervised(listener.address, rabbitmq) as link:
        listener.wait_for(ALIVE, 2)
        assert link.consuming.is_set()
    ready = listener.messages.index("READY=1")
    assert listener.messages[ready - 1].startswith("STATUS=consuming backup.tasks.")
    assert ALIVE not in listener.messages[:ready]
    assert WAITING not in listener.messages[ready:]
    assert listener.count("READY=1") == 1


def test_a_broker_that_is_away_is_waited_for(rabbitmq: RabbitMQ, listener: Listener) -> None:
    url = f"amqp://agent@127.0.0.1:{free_port()}/backup"
    with supervised(listener.address, rabbitmq, url=url):
        listener.wait_for(WAITING, 3)
    assert set(listener.messages) == {WAITING}


def test_a_refused_certificate_is_shown_once(
    rabbitmq: RabbitMQ, listener: Listener, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    old = authority.issue("old", valid=(-2 * HOUR, -HOUR))
    with relayed(rabbitmq.port, old) as relay:
        url = f"amqps://agent@127.0.0.1:{relay.port}/backup"
        with supervised(listener.address, rabbitmq, url=url, ca_file=authority.file):
            listener.wait_for(WAITING, 3)
            poll("it tries again", lambda: relay.greetings > 2, 10)
    [status] = [text for text in listener.messages if text.startswith("STATUS=")]
    assert status.startswith("STATUS=not consuming backup.tasks.")
    assert status.endswith("has expired")


def test_a_loop_that_is_stuck_ends_the_signs(rabbitmq: RabbitMQ, listener: Listener) -> None:
    entered, release = threading.Event(), threading.Event()

    def stuck(_body: bytes, _redelivered: bool) -> Verdict:
        entered.set()
        release.wait(60)
        return ACK

    with supervised(listener.address, rabbitmq, stuck) as link:
        listener.wait_for("READY=1")
        with probing(rabbitmq) as probe:
            probe.send(link._instance_id, b"{}")
            assert entered.wait(20)
        beats, before = link.beats, listener.count(ALIVE)
        # Longer than four watchdog intervals. One heartbeat may have been on its way.
        assert not release.wait(2.2)
        assert link.beats == beats
        assert listener.count(ALIVE) <= before + 1
        release.set()
        poll("the signs go on", lambda: listener.count(ALIVE) > before + 1, 10)


def test_a_manager_that_listens_late_misses_nothing(rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    with supervised(tmp_path / "notify", rabbitmq) as link:
        assert link.consuming.wait(20)
        beats = link.beats
        poll("a second has passed", lambda: link.beats > beats + 1, 10)
        with Listener(tmp_path / "notify") as listener:
            listener.wait_for(ALIVE)
    assert listener.messages[:2] == ["READY=1", ALIVE]
    assert listener.count("READY=1") == 1
