"""A service manager is notified when the daemon is ready to take tasks, and when it stops."""

import os
from pathlib import Path

import pytest

from tests.stack.agent import Agent
from tests.stack.mariadb import MariaDB
from tests.stack.notified import Listener
from tests.stack.rabbitmq import RabbitMQ
from tests.stack.swift import SwiftServer


def test_from_ready_to_stopping(
    tmp_path: Path,
    rabbitmq: RabbitMQ,
    swift: SwiftServer,
    mariadb: MariaDB,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = Agent(tmp_path, rabbitmq, swift, mariadb)
    with Listener(tmp_path / "notify") as listener:
        monkeypatch.setitem(os.environ, "NOTIFY_SOCKET", str(listener.address))
        agent.start()
        listener.wait_for("READY=1")
        assert agent.stop() == 0
    told = [message for message in listener.messages if not message.startswith("EXTEND_")]
    assert told == [
        f"STATUS=connecting to RabbitMQ at 127.0.0.1:{rabbitmq.port}",
        f"STATUS=consuming backup.tasks.{agent.instance_id}",
        "READY=1",
        *["WATCHDOG=1"] * told.count("WATCHDOG=1"),
        "STATUS=ending: the running task is interrupted and cleaned up",
        "STOPPING=1",
    ]
