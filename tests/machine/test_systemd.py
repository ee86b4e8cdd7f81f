"""Tests of the messages to the service manager, on real datagram sockets."""

import logging
import os
import socket
import uuid
from pathlib import Path

import pytest

from agent.machine.systemd import Notifier
from tests.stack.notified import Listener


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_each_message(kind: str, tmp_path: Path) -> None:
    address = tmp_path / "notify" if kind == "path" else f"@backup-agent-{uuid.uuid4()}"
    with Listener(address) as listener:
        notifier = Notifier({"NOTIFY_SOCKET": str(address)})
        assert notifier.say_status("one\nREADY=1")
        assert notifier.extend(1.5)
        assert notifier.say_ready()
        assert notifier.say_alive()
        assert notifier.say_stopping()
        listener.wait_for("STOPPING=1")
    assert listener.messages == [
        "STATUS=one READY=1",
        "EXTEND_TIMEOUT_USEC=1500000",
        "READY=1",
        "WATCHDOG=1",
        "STOPPING=1",
    ]


def test_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier({})
    assert not notifier.say_ready()
    assert notifier.watchdog_seconds is None
    assert caplog.records == []


def test_a_socket_that_is_gone_is_complained_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    with caplog.at_level(logging.WARNING):
        assert not notifier.say_ready()
        assert not notifier.say_alive()
    assert len(caplog.records) == 1
    with Listener(tmp_path / "gone") as listener:
        assert notifier.say_ready()
        listener.wait_for("READY=1")


def test_a_full_socket_does_not_hold_the_caller(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "deaf")})
        told = [notifier.say_alive() for _ in range(5)]
        for _ in range(10_000):
            if not notifier.say_alive():
                break
        else:
            pytest.fail("the socket takes whatever comes")
    assert all(told)


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid() + 1)}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdogs_time(environment: dict[str, str], seconds: float | None) -> None:
    assert Notifier(environment).watchdog_seconds == seconds
