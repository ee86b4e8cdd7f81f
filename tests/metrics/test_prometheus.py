"""A real Prometheus scrapes a daemon that makes backups."""

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen
from uuid import uuid4

import pytest

from agent import __version__
from agent.model import BackupRequest, CreateTask, Limits
from tests.metrics.prometheus import Prometheus, promtool
from tests.metrics.samples import samples
from tests.stack.agent import Agent
from tests.stack.mariadb import MariaDB
from tests.stack.process import free_port, poll
from tests.stack.rabbitmq import RabbitMQ
from tests.stack.swift import SwiftServer


def scrape(port: int) -> str:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text: bytes = answer.read()
    return text.decode()


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def textfile(tmp_path: Path) -> Path:
    return tmp_path / "node-exporter.prom"


@pytest.fixture
def agent(
    tmp_path: Path,
    rabbitmq: RabbitMQ,
    swift: SwiftServer,
    mariadb: MariaDB,
    port: int,
    textfile: Path,
) -> Iterator[Agent]:
    settings = {"metrics": {"listen": f"127.0.0.1:{port}", "textfile": textfile}}
    made = Agent(tmp_path / "agent", rabbitmq, swift, mariadb, settings)
    made.write()
    yield made
    made.stop()


@pytest.fixture
def prometheus(tmp_path: Path, port: int) -> Iterator[Prometheus]:
    server = Prometheus(tmp_path / "prometheus", f"127.0.0.1:{port}")
    server.start()
    yield server
    server.stop()


def test_prometheus_sees_a_backup(
    agent: Agent, prometheus: Prometheus, port: int, textfile: Path
) -> None:
    began = time.time()
    agent.start()
    assert prometheus.wait_for("backup_agent_consuming == 1") == [1]
    assert prometheus.query("backup_agent_last_success_timestamp_seconds") == [0]
    agent.create("scraped")

    done = 'backup_agent_task_total{type="backup.create",status="DONE"} == 1'
    assert prometheus.wait_for(done) == [1]
    assert prometheus.query(f'backup_agent_info{{version="{__version__}"}}') == [1]
    [age] = prometheus.query("time() - backup_agent_last_success_timestamp_seconds")
    assert -1 <= age < time.time() - began + 1
    [raw] = prometheus.query("backup_agent_last_backup_raw_bytes")
    assert raw > 40 << 20
    for stage in ("read", "deflate", "seal", "send"):
        assert prometheus.query(f'backup_agent_stage_seconds_total{{stage="{stage}"}} > 0')
    sizes = {
        stage: prometheus.query(f'backup_agent_stage_bytes_total{{stage="{stage}"}}')
        for stage in ("read", "deflate", "seal", "send", "write")
    }
    [stored] = prometheus.query("backup_agent_last_backup_stored_bytes")
    assert sizes["read"] == [raw]
    assert sizes["seal"] == sizes["send"] == [stored]
    assert 0 < sizes["deflate"][0] < stored
    assert sizes["write"] == [0]
    prometheus.wait_for("backup_agent_outbox_reports == 0")
    assert prometheus.query("backup_agent_journal_tasks") == [0]

    text = scrape(port)
    checked = promtool("check", "metrics", text=text)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    _the_file_agrees(agent, textfile, samples(text))


def test_a_killed_agent_resets_no_counter(agent: Agent, prometheus: Prometheus, port: int) -> None:
    """Prometheus takes a counter that decreases for one that began at 0 again."""
    agent.start()
    request = BackupRequest(id=str(uuid4()), name="killed")
    limits = Limits(bytes_per_second=8 << 20)
    agent.send(CreateTask(task_id=str(uuid4()), backup=request, limits=limits))
    read = 'backup_agent_stage_bytes_total{stage="read"}'
    prometheus.wait_for(f"{read} > 0")
    before = samples(scrape(port))
    agent.kill()
    killed = time.time()
    agent.start()
    prometheus.wait_for(f"backup_agent_start_timestamp_seconds > {killed}")
    after = samples(scrape(port))
    stages = {name for name in before if "_stage_" in name}
    assert {name for name in stages if after[name] < before[name]} == set()
    assert prometheus.query(f"resets({read}[5m])") == [0]


def _the_file_agrees(agent: Agent, textfile: Path, scraped: dict[str, float]) -> None:
    """Compare the file with a scrape, while the daemon runs, after its end, and in its next run."""
    # The task's end wakes the writer, which would else write every 30 s. The broker has not
    # confirmed the last report at that moment.
    scraped = {
        name: value
        for name, value in scraped.items()
        if "outbox" not in name and "written" not in name
    }

    def differing() -> set[str]:
        written = samples(textfile.read_text())
        return {name for name in scraped if written[name] != scraped[name]}

    poll("the file has the backup", lambda: not differing(), 5)
    agent.stop()
    assert differing() == {"backup_agent_consuming"}
    assert samples(textfile.read_text())["backup_agent_consuming"] == 0
    assert list(textfile.parent.glob("*.partial")) == []
    agent.start()
    assert differing() <= {"backup_agent_consuming", "backup_agent_start_timestamp_seconds"}
