"""The settings of [metrics] in a daemon, in commands without one, and in the self-test."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from threading import Event, Thread, Timer
from typing import cast

import pytest

from agent import wiring
from agent.config.reading import load
from agent.config.settings import MetricsSection
from agent.machine.lock import only_agent
from agent.metrics.server import MetricsServer
from agent.selftest import exporting
from agent.selftest.check import Verdict
from agent.selftest.exporting import metrics as check
from agent.tasks.executor import Executor
from agent.wiring import AgentRun
from tests.metrics.samples import samples
from tests.stack.agent import Agent
from tests.stack.mariadb import MariaDB
from tests.stack.process import free_port
from tests.stack.rabbitmq import RabbitMQ
from tests.stack.swift import SwiftServer

_TOTAL = "backup_agent_task_total"


@pytest.fixture
def agent(
    tmp_path: Path, rabbitmq: RabbitMQ, swift: SwiftServer, mariadb: MariaDB
) -> Iterator[Agent]:
    made = Agent(tmp_path / "agent", rabbitmq, swift, mariadb, {"metrics": {}})
    made.write()
    yield made
    made.stop()


def configure(agent: Agent, **keys: object) -> None:
    agent.overrides["metrics"] = keys
    agent.write()


def taken(port: int) -> MetricsServer:
    return MetricsServer("127.0.0.1", port, lambda: b"# TYPE a gauge\nbackup_agent_info{} 1\n")


def test_a_daemon_that_cannot_export_works_without(agent: Agent, tmp_path: Path) -> None:
    port = free_port()
    textfile = tmp_path / "none" / "a.prom"
    configure(agent, listen=f"127.0.0.1:{port}", textfile=textfile)
    other = taken(port)
    try:
        agent.start()
        assert agent.create("unseen")["status"] == "COMPLETED"
    finally:
        other.close()
    log = agent.log.read_text()
    assert log.count(f"[metrics] listen: can't listen on port {port}") == 1
    assert log.count("[metrics] textfile: can't write") == 1
    textfile.parent.mkdir()
    assert agent.stop() == 0
    assert samples(textfile.read_text())["backup_agent_consuming"] == 0


def test_a_daemon_refuses_wrong_settings(agent: Agent) -> None:
    for keys, why in (
        ({"listen": "0.0.0.0:9399"}, "is not a loopback address"),
        ({"textfile": "/a/b.txt"}, "must end in .prom"),
    ):
        configure(agent, **keys)
        done = agent.cli("run")
        assert done.returncode == 2
        assert "config_invalid" in done.stderr
        assert why in done.stderr


def test_commands_of_cron_add_up_in_the_file(agent: Agent, tmp_path: Path) -> None:
    """There is no daemon: each command is a process of its own."""
    textfile = tmp_path / "node" / "a.prom"
    configure(agent, textfile=textfile)
    create = ("backup-create", "--local", "--json", "a")
    done = agent.cli(*create)
    # the directory is missing, which spoils no backup
    assert done.returncode == 0, done.stderr
    assert "[metrics] textfile: can't write" in done.stderr
    textfile.parent.mkdir()
    failed = agent.cli(*create, "--parent", json.loads(done.stdout)["id"][:-4] + "0000")
    assert failed.returncode == 1
    assert "textfile" not in failed.stderr
    found = samples(textfile.read_text())
    assert found[f'{_TOTAL}{{code="",status="DONE",type="backup.create"}}'] == 1
    assert found[f'{_TOTAL}{{code="parent_unknown",status="FAILED",type="backup.create"}}'] == 1
    assert found['backup_agent_stage_bytes_total{stage="read"}'] > 40 << 20
    assert found["backup_agent_last_success_timestamp_seconds"] > 0
    assert found["backup_agent_consuming"] == 0


def test_the_library_is_loaded_only_for_metrics() -> None:
    program = "import sys, agent.cli.main; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def outcome(agent: Agent) -> tuple[Verdict, str]:
    said = check(load(agent.config, {}))
    return said.verdict, said.found + said.cure


def test_the_self_test_checks_the_port(agent: Agent) -> None:
    assert outcome(agent)[0] is Verdict.PASS
    port = free_port()
    configure(agent, listen=f"127.0.0.1:{port}")
    assert outcome(agent) == (Verdict.PASS, f"port {port} is free")
    other = taken(port)
    try:
        verdict, said = outcome(agent)
        assert verdict is Verdict.FAIL
        assert f"another program listens on port {port}" in said
        with only_agent(agent.folder / "state" / "lock"):
            assert outcome(agent) == (
                Verdict.PASS,
                f"the running agent answers on port {port}",
            )
    finally:
        other.close()
    with only_agent(agent.folder / "state" / "lock"):
        assert outcome(agent)[0] is Verdict.WARN


def test_the_self_test_does_not_wait_for_a_program_that_drips(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_SECONDS", 0.5)
    ended = Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            while not ended.wait(0.1):
                connection.sendall(b"a")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        configure(agent, listen=f"127.0.0.1:{port}")
        dripping = Thread(target=drip, args=(listener,))
        dripping.start()
        # it ends even if the self-test waits for its end
        limit = Timer(8, ended.set)
        limit.start()
        began = time.monotonic()
        verdict, said = outcome(agent)
        took = time.monotonic() - began
        ended.set()
        limit.cancel()
        dripping.join()
    assert verdict is Verdict.FAIL
    assert f"another program listens on port {port}" in said
    assert took < 5


def test_a_file_of_a_command_says_when_the_command_began(agent: Agent, tmp_path: Path) -> None:
    configure(agent, textfile=tmp_path / "a.prom")
    config = load(agent.config, {})
    with closing(wiring.journal(config)) as journal:
        run = AgentRun(journal, cast(Executor, None), lambda _text: None, 1_800_000_000.5)
        wiring.write_metrics(config, run)
    found = samples((tmp_path / "a.prom").read_text())
    assert found["backup_agent_start_timestamp_seconds"] == 1_800_000_000.5


def test_the_self_test_checks_the_file(agent: Agent, tmp_path: Path) -> None:
    file = tmp_path / "node" / "a.prom"
    configure(agent, textfile=file)
    verdict, said = outcome(agent)
    assert verdict is Verdict.FAIL
    assert f"ReadWritePaths={file.parent}" in said
    file.parent.mkdir()
    assert outcome(agent) == (Verdict.PASS, f"{file.parent} can be written to")
    file.touch()
    assert outcome(agent) == (Verdict.PASS, f"{file} is up to date")


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("127.0.0.1:9399", ("127.0.0.1", 9399)),
        ("127.1.2.3:1", ("127.1.2.3", 1)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_loopback_addresses(listen: str, address: tuple[str, int]) -> None:
    assert MetricsSection(listen=listen).address == address


@pytest.mark.parametrize(
    "listen",
    [
        *("0.0.0.0:9399", "[::]:9399", "10.0.0.5:9399", "[2001:db8::1]:9399", ":9399", "9399"),
        *("localhost:9399", "example.com:9399", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536"),
        *("::1:9399", "[127.0.0.1]:9399", "127.0.0.1:+1", "127.0.0.1: 1", "127.0.0.1:1_0", "[::1"),
        *("", "127.0.0.1:٣", "127.0.0.1:-1", "[::ffff:10.0.0.5]:9399", "http://127.0.0.1:9399"),
    ],
)
def test_other_addresses_are_refused(listen: str) -> None:
    with pytest.raises(ValueError, match="is not a loopback address with a port"):
        MetricsSection(listen=listen)


def test_a_file_that_nothing_reads_is_refused() -> None:
    for path, why in (("/a/b.txt", "must end in .prom"), ("b.prom", "must be an absolute path")):
        with pytest.raises(ValueError, match=why):
            MetricsSection.model_validate({"textfile": path})
