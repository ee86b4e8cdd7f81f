"""The stack starts completely, writes a usable configuration, and leaves nothing behind."""

import os
import signal
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest

from agent.config.reading import load
from tests.conftest import need
from tests.stack.fixtures_swift import need_swift
from tests.stack.process import poll, port_answers
from tests.stack.rabbitmq import SERVER, USER
from tests.stack.stack import Stack


def _private(path: str) -> bool:
    return stat.S_IMODE(Path(path).stat().st_mode) == 0o600


def _ports(stack: Stack) -> list[int]:
    return [stack.rabbitmq.port, stack.swift.port, stack.mariadb.port]


def _check_configuration(stack: Stack) -> None:
    assert load(stack.agent_toml()).agent.instance_id == stack.instance_id
    config = tomllib.loads(stack.agent_toml().read_text())
    assert config["broker"]["url"] == stack.rabbitmq.url
    secrets = [
        str(stack.agent_toml()),
        config["broker"]["password_file"],
        config["store"]["key_file"],
        config["database"]["password_file"],
        f"{config['keys']['folder']}/{config['keys']['active']}.key",
    ]
    assert all(_private(path) for path in secrets)
    assert Path(secrets[1]).read_text().strip() == stack.rabbitmq.password
    master_key = Path(secrets[4]).read_text()
    stack.agent_toml()
    assert Path(secrets[4]).read_text() == master_key


def _check_control(stack: Stack) -> None:
    argv = [str(stack.rabbitmq.control_script()), "--quiet", "list_users"]
    done = subprocess.run(argv, capture_output=True, text=True, env={}, timeout=60, check=True)
    assert USER in done.stdout


def _use_until_sigterm(stack: Stack) -> None:
    with stack:
        assert all(port_answers(port) for port in _ports(stack))
        assert stack.mariadb.query("SELECT 1") == [(1,)]
        _check_configuration(stack)
        _check_control(stack)
        os.kill(os.getpid(), signal.SIGTERM)
        poll("SIGTERM has ended the block", lambda: False, 10)


def test_sigterm_ends_every_server(tmp_path: Path) -> None:
    need("mariadbd", "epmd", SERVER)
    need_swift()
    stack = Stack(tmp_path / "stack")
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
        _use_until_sigterm(stack)
    assert not any(port_answers(port) for port in _ports(stack))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_server_that_does_not_start_takes_the_others_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("mariadbd", "epmd", SERVER)
    need_swift()
    stack = Stack(tmp_path / "stack")

    def broken() -> None:
        stack.swift.wait_ready()
        assert port_answers(stack.swift.port)
        raise RuntimeError("no database today")

    monkeypatch.setattr(stack.mariadb, "install", broken)
    with pytest.raises(RuntimeError, match="no database today"):
        stack.__enter__()
    assert not port_answers(stack.swift.port)
    assert stack.rabbitmq.pids() == []
