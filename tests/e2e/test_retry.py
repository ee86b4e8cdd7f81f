"""An agent that is killed: its running or unfinished work, and the tasks that begin again."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from agent.model import BackupRequest, CreateTask, Limits, RestoreTask, Task
from tests.e2e.conftest import with_daemon
from tests.e2e.objects import Objects
from tests.e2e.reports import Reports
from tests.engine.scripts import patient, preparing
from tests.stack.agent import Agent
from tests.stack.process import poll
from tests.stack.swift import SwiftServer

# A prepare that waits, and doesn't end when its pipes are closed.
_FOR_EVER = "trap '' PIPE; while :; do sleep 1; done"


class Site:
    """An agent with prepares that hang as long as the file `wait` exists."""

    def __init__(self, agent: Agent, folder: Path) -> None:
        self.agent = agent
        self.wait = folder / "wait"


@pytest.fixture(scope="module")
def site_session(agent_session: Agent, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("retry")
    overrides: dict[str, dict[str, object]] = {
        "engine": {
            "program": patient(folder / "patient", _FOR_EVER, f"[ -e '{folder / 'wait'}' ]")
        },
        "pipeline": {"segment_bytes": 1 << 20},
    }
    servers = (agent_session.rabbitmq, agent_session.swift, agent_session.mariadb)
    own = Agent(folder / "agent", *servers, overrides)
    yield Site(own, folder)
    own.stop()


@pytest.fixture
def site(site_session: Site, swift: SwiftServer) -> Site:
    with_daemon(site_session.agent)
    return site_session


@pytest.fixture(scope="module")
def kept(site_session: Site) -> str:
    """Return the id of a COMPLETED backup of the site's agent."""
    return str(with_daemon(site_session.agent).create("kept")["id"])


@pytest.fixture
def foreign() -> Iterator["subprocess.Popen[bytes]"]:
    """Yield a process of this user that is named mariadb-backup and marked as another agent's."""
    child = subprocess.Popen(
        ["mariadb-backup", "-c", "import time; time.sleep(600)"],
        executable=sys.executable,
        env={**os.environ, "BACKUP_AGENT_CHILD_OF": "/elsewhere"},
    )
    yield child
    child.kill()
    child.wait()


def runs(process: psutil.Process) -> bool:
    """Return True if the process runs and is no zombie.

    A process that has ended may stay a zombie here, because no process collects its exit status.
    """
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def steps(reports: Reports, task: Task) -> list[str]:
    """Return the reported statuses of a task, without reports of progress."""
    told = [report for report in reports.seen if report["task_id"] == task.task_id]
    return [report["status"] for report in told if "progress" not in report]


def restore(site: Site, backup_id: str, *, retry: bool) -> RestoreTask:
    """Send a restore task, wait until it hangs in its prepare, and return it."""
    site.wait.touch()
    target = site.agent.folder / "restore" / uuid.uuid4().hex
    task = RestoreTask(
        task_id=str(uuid.uuid4()), backup_id=backup_id, target=str(target), retry=retry
    )
    site.agent.send(task)
    poll("it prepares", lambda: bool(preparing(target)), 60)
    return task


def test_what_a_killed_agent_leaves_running_is_ended_and_its_folder_removed(
    site: Site, kept: str, foreign: "subprocess.Popen[bytes]"
) -> None:
    agent = site.agent
    with Reports(agent) as reports:
        task = restore(site, kept, retry=False)
        target = Path(task.target)
        [number] = preparing(target)
        left = psutil.Process(number)
        agent.kill()
        assert left.is_running()
        assert [path.name for path in target.iterdir()] == [f".backup-agent-restore-{task.task_id}"]
        (target / "ibdata1").write_text("somebody's")
        agent.start()
        final = reports.wait_for(task.task_id, "FAILED")
        assert final["error"]["code"] == "interrupted"
        assert not runs(left)
        assert steps(reports, task) == ["ACCEPTED", "RUNNING", "FAILED"]
    assert [path.name for path in target.iterdir()] == ["ibdata1"]
    assert foreign.poll() is None
    assert "killed processes that a killed agent had left: " in agent.log.read_text()


def test_a_restore_that_asks_for_it_is_done_after_a_crash(site: Site, kept: str) -> None:
    agent = site.agent
    with Reports(agent) as reports:
        task = restore(site, kept, retry=True)
        agent.kill()
        site.wait.unlink()
        agent.start()
        reports.wait_for(task.task_id, "DONE", seconds=120)
        assert steps(reports, task) == ["ACCEPTED", "RUNNING", "RUNNING", "DONE"]
    names = {path.name for path in Path(task.target).iterdir()}
    assert "ibdata1" in names
    assert not any(name.startswith(".") for name in names)


def test_a_local_restore_that_was_killed_says_what_to_do(
    site: Site, kept: str, tmp_path: Path
) -> None:
    site.wait.touch()
    spawned = site.agent.spawn("restore", "--local", kept, tmp_path / "back")
    poll("it prepares", lambda: bool(preparing(tmp_path / "back")), 60)
    [left] = preparing(tmp_path / "back")
    spawned.stop(9)
    psutil.Process(left).kill()
    site.wait.unlink()
    refused = site.agent.cli("restore", "--local", kept, tmp_path / "back")
    assert refused.returncode == 1
    (folder,) = (tmp_path / "back").iterdir()
    assert f"was interrupted and left {folder}" in refused.stderr
    assert "if no restore runs there, remove that directory" in refused.stderr


@pytest.fixture
def other(site: Site, tmp_path: Path) -> Agent:
    """Return an agent of the same datadir with its own state folder."""
    agent = site.agent
    other = Agent(tmp_path / "other", agent.rabbitmq, agent.swift, agent.mariadb)
    other.write()
    return other


def assert_excluded(other: Agent) -> None:
    refused = other.cli("backup-create", other.instance_id, "second", "--local")
    assert refused.returncode == 1
    assert "instance_busy: process " in refused.stderr


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_backup_that_asks_for_it_is_made_after_all(site: Site, other: Agent, how: str) -> None:
    """While the backup is made, another agent of the same datadir can't make one."""
    agent = site.agent
    request = BackupRequest(id=str(uuid.uuid4()), name="again")
    limits = Limits(bytes_per_second=32 << 20)
    task = CreateTask(task_id=str(uuid.uuid4()), backup=request, limits=limits, retry=True)
    objects = Objects(agent)
    with Reports(agent) as reports:
        agent.send(task)
        poll("segments are stored", lambda: len(objects.segment_names(request.id)) > 1, 60)
        attempt = objects.record(request.id)["attempt"]
        if how == "kill":
            # suspend the agent, so that its backup doesn't end before the other begins
            agent.daemon.send(signal.SIGSTOP)
            assert_excluded(other)
        getattr(agent, how)()
        agent.start()
        reports.wait_for(task.task_id, "DONE", seconds=120)
        assert steps(reports, task) == ["ACCEPTED", "RUNNING", "RUNNING", "DONE"]
    record = objects.record(request.id)
    assert record["status"] == "COMPLETED"
    assert record["attempt"] != attempt
    assert not objects.names(objects.segments, f"{request.id}/{attempt}/")
    objects.close()
