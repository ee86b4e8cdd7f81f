"""The journal has no space left while a task runs, and the agent must end meanwhile.

An agent that goes on is tested in tests/faults/disk.py.
"""

import time
import uuid
from collections.abc import Iterator
from functools import partial

import pytest

from agent.broker import wire
from agent.model import BackupRequest, CreateTask, Limits
from tests.e2e.conftest import with_daemon
from tests.e2e.objects import Objects
from tests.e2e.reports import Reports
from tests.stack.agent import Agent
from tests.stack.disk import SmallDisk
from tests.stack.process import poll
from tests.stack.proxy import Proxy, proxied
from tests.stack.rabbitmq import RabbitMQ
from tests.stack.swift import SwiftServer

HOLDS = "no task goes on until the journal can be used"


@pytest.fixture(scope="module")
def proxy(rabbitmq: RabbitMQ) -> Iterator[Proxy]:
    with proxied(rabbitmq.port) as one:
        yield one


@pytest.fixture(scope="module")
def cramped_session(
    agent_session: Agent, proxy: Proxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Agent, SmallDisk]]:
    """Yield an agent and the small disk that is its state folder.

    The agent's connections to the broker go through `proxy`, which can cut them.
    """
    url = agent_session.rabbitmq.url.replace(str(agent_session.rabbitmq.port), str(proxy.port))
    overrides: dict[str, dict[str, object]] = {
        "pipeline": {"segment_bytes": 1 << 20},
        "agent": {"progress_seconds": 0.2},
        "broker": {"url": url, "queue_type": "quorum"},
    }
    servers = (agent_session.rabbitmq, agent_session.swift, agent_session.mariadb)
    agent = Agent(tmp_path_factory.mktemp("full") / "agent", *servers, overrides)
    disk = SmallDisk(agent.folder / "state")
    disk.mount()
    try:
        yield agent, disk
    finally:
        disk.free()
        agent.stop()
        disk.unmount()


@pytest.fixture
def cramped(cramped_session: tuple[Agent, SmallDisk]) -> Iterator[tuple[Agent, SmallDisk]]:
    """Yield the agent and the disk of `cramped_session`, with the daemon running."""
    agent, disk = cramped_session
    with_daemon(agent)
    yield agent, disk
    disk.free()


def begin(agent: Agent) -> CreateTask:
    """Send a create task, wait until it stores segments, and return it."""
    task = CreateTask(
        task_id=str(uuid.uuid4()),
        backup=BackupRequest(id=str(uuid.uuid4()), name="cramped"),
        limits=Limits(bytes_per_second=24 << 20),
    )
    agent.send(task)
    objects = Objects(agent)
    poll("segments are stored", lambda: bool(objects.segment_names(task.backup.id)), 60)
    objects.close()
    return task


def expected(agent: Agent, task: CreateTask) -> str:
    """Return the status that the task must end with, DONE or FAILED.

    Assert that the store holds all of the backup or nothing. Both are possible, because the journal
    takes the finished record only if it has pages left.
    """
    objects = Objects(agent)
    status = objects.record(task.backup.id)["status"]
    segments = objects.names(objects.segments, f"{task.backup.id}/")
    objects.close()
    assert (status, bool(segments)) in (("COMPLETED", True), ("FAILED", False))
    return "DONE" if segments else "FAILED"


def assert_ended_once(agent: Agent, reports: Reports, task: CreateTask, how: str) -> None:
    final = reports.wait_for(task.task_id, how)
    assert how == "DONE" or final["error"]["code"] in ("journal_failed", "interrupted")
    assert agent.create("next")["status"] == "COMPLETED"
    finals = {"DONE", "FAILED", "CANCELLED"}
    assert [one for one in reports.statuses(task.task_id) if one in finals] == [how]


def test_an_agent_whose_journal_is_full_ends_in_time(
    cramped: tuple[Agent, SmallDisk], swift: SwiftServer
) -> None:
    agent, disk = cramped
    with Reports(agent) as reports:
        task = begin(agent)
        disk.fill()
        poll("the worker waits", lambda: HOLDS in agent.log.read_text(), 60)
        said = agent.log.read_text()
        assert "journal.sqlite can't be written: no space is left" in said
        assert said.count(f"the progress of task {task.task_id} can't be reported") == 1
        begun = time.monotonic()
        assert agent.stop() == 0
        assert time.monotonic() - begun < 20
        how = expected(agent, task)
        disk.free()
        agent.start()
        assert_ended_once(agent, reports, task, how)


def test_a_task_that_comes_meanwhile_is_done_once_whatever_becomes_of_the_connection(
    cramped: tuple[Agent, SmallDisk], proxy: Proxy
) -> None:
    """RabbitMQ gives up a message that comes back more often than the queue's policy allows."""
    agent, disk = cramped
    queue = wire.task_queue(agent.instance_id)
    policy = ("--apply-to", "queues", "impatient", f"^{queue}$", '{"delivery-limit": 1}')
    agent.rabbitmq.control("set_policy", "-p", "backup", *policy)
    task = CreateTask(
        task_id=str(uuid.uuid4()), backup=BackupRequest(id=str(uuid.uuid4()), name="patient")
    )
    seen = agent.log.read_text().count(f"not consuming {queue}")
    with Reports(agent) as reports:
        disk.fill()
        agent.send(task)
        stopped = f"not consuming {queue}"
        poll("it is held", lambda: agent.log.read_text().count(stopped) > seen, 60)
        for _ in range(4):
            lost = agent.log.read_text().count(f"connected to {_where(proxy)}")
            proxy.cut()
            poll("it is back", partial(_connected, agent, proxy, lost + 1), 60)
        disk.free()
        final = reports.wait_for(task.task_id, "DONE")
        assert final["backup"]["status"] == "COMPLETED"
        ends = {"DONE", "FAILED", "CANCELLED"} & set(reports.statuses(task.task_id))
        assert ends == {"DONE"}
        assert reports.statuses(task.task_id).count("ACCEPTED") == 1
    assert agent.create("next")["status"] == "COMPLETED"


def _where(proxy: Proxy) -> str:
    return f"RabbitMQ at 127.0.0.1:{proxy.port}"


def _connected(agent: Agent, proxy: Proxy, times: int) -> bool:
    return agent.log.read_text().count(f"connected to {_where(proxy)}") >= times
