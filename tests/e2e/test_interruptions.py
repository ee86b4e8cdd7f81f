"""A backup that is interrupted by SIGTERM or SIGKILL, and other work of the daemon meanwhile.

The effects of a lost broker are tested in tests/faults/broker.py.
"""

import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from agent.model import BackupRequest, CreateTask, Limits, PingTask
from tests.e2e.conftest import with_daemon
from tests.e2e.objects import Objects
from tests.e2e.reports import Reports, doomed
from tests.engine.scripts import patient, preparing
from tests.stack.agent import Agent
from tests.stack.process import poll
from tests.stack.swift import SwiftServer


@pytest.fixture(scope="module")
def slow_session(agent_session: Agent, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """Yield a separate agent with small segments.

    A `slow_backup` takes seconds.
    """
    overrides: dict[str, dict[str, object]] = {"pipeline": {"segment_bytes": 1 << 20}}
    servers = (agent_session.rabbitmq, agent_session.swift, agent_session.mariadb)
    own = Agent(tmp_path_factory.mktemp("slow") / "agent", *servers, overrides)
    yield own
    own.stop()


@pytest.fixture
def slow(slow_session: Agent, swift: SwiftServer) -> Agent:
    """Return the agent of `slow_session` with its daemon running."""
    return with_daemon(slow_session)


def slow_backup(mebibytes_per_second: int = 4) -> CreateTask:
    request = BackupRequest(id=str(uuid.uuid4()), name="slow")
    limits = Limits(bytes_per_second=mebibytes_per_second << 20)
    return CreateTask(task_id=str(uuid.uuid4()), backup=request, limits=limits)


def wait_for_segments(agent: Agent, backup_id: str) -> None:
    objects = Objects(agent)
    poll("segments are stored", lambda: len(objects.segment_names(backup_id)) > 1, 60)
    objects.close()


def engines_of(pid: int) -> list[psutil.Process]:
    children = psutil.Process(pid).children(recursive=True)
    return [child for child in children if child.name().startswith("mariadb-backup")]


def assert_failed_and_clean(agent: Agent, backup_id: str) -> None:
    objects = Objects(agent)
    record = objects.record(backup_id)
    assert record["status"] == "FAILED"
    assert record["error"]["code"] == "interrupted"
    assert objects.names(objects.segments, f"{backup_id}/") == []
    objects.close()


def test_sigterm_ends_a_running_backup_cleanly(slow: Agent) -> None:
    task = slow_backup()
    with Reports(slow) as reports:
        slow.send(task)
        wait_for_segments(slow, task.backup.id)
        engines = engines_of(slow.daemon.pid)
        assert engines
        assert slow.stop() == 0
        final = reports.wait_for(task.task_id, "FAILED")
        assert final["error"]["code"] == "interrupted"
        assert reports.statuses(task.task_id)[:2] == ["ACCEPTED", "RUNNING"]
    assert not any(engine.is_running() for engine in engines)
    assert list((slow.folder / "state" / "scratch").iterdir()) == []
    assert_failed_and_clean(slow, task.backup.id)


def test_after_a_crash_the_task_is_reported_and_its_segments_are_gone(slow: Agent) -> None:
    task = slow_backup()
    with Reports(slow) as reports:
        slow.send(task)
        wait_for_segments(slow, task.backup.id)
        engines = engines_of(slow.daemon.pid)
        slow.kill()
        slow.start()
        final = reports.wait_for(task.task_id, "FAILED")
        assert final["error"]["code"] == "interrupted"
        assert final["backup"]["status"] == "FAILED"
        assert reports.statuses(task.task_id).count("FAILED") == 1
    psutil.wait_procs(engines, timeout=20)
    assert not any(engine.is_running() for engine in engines)
    assert_failed_and_clean(slow, task.backup.id)
    assert slow.create("next")["status"] == "COMPLETED"


def test_a_second_task_waits_while_one_runs(slow: Agent) -> None:
    first, second, ping = slow_backup(20), doomed(), PingTask(task_id=str(uuid.uuid4()))
    with Reports(slow) as reports:
        slow.send(first)
        slow.send(second)
        slow.send(ping)
        reports.wait_for(second.task_id, "ACCEPTED")
        # a ping waits for no other task
        reports.wait_for(ping.task_id, "DONE")
        assert "DONE" not in reports.statuses(first.task_id)
        assert reports.statuses(ping.task_id) == ["ACCEPTED", "DONE"]
        reports.wait_for(first.task_id, "DONE", seconds=120)
        assert reports.statuses(second.task_id) == ["ACCEPTED"]
        reports.wait_for(second.task_id, "FAILED")
        running = [r for r in reports.seen if r["task_id"] == first.task_id and "progress" in r]
        assert len(running) >= 2
        assert running[-1]["progress"]["raw_bytes"] > running[0]["progress"]["raw_bytes"]
        assert running[-1]["progress"]["seconds_left"] is not None
        assert 0 < running[-1]["progress"]["percent"] < 100


def test_the_same_task_twice_is_done_once_and_answered_twice(agent: Agent) -> None:
    request = BackupRequest(id=str(uuid.uuid4()), name="once")
    task = CreateTask(task_id=str(uuid.uuid4()), backup=request)
    with Reports(agent) as reports:
        agent.send(task)
        first = reports.wait_for(task.task_id, "DONE")
        agent.send(task)
        again = reports.wait_for(task.task_id, "DONE")
        assert again["seq"] > first["seq"]
        assert again["backup"] == first["backup"]
        assert reports.statuses(task.task_id).count("ACCEPTED") == 1


def test_a_second_daemon_is_refused_and_the_first_goes_on(slow: Agent) -> None:
    task = slow_backup(16)
    with Reports(slow) as reports:
        slow.send(task)
        wait_for_segments(slow, task.backup.id)
        done = slow.cli("run")
        assert done.returncode == 1
        assert "another agent runs already" in done.stderr
        assert (
            reports.wait_for(task.task_id, "DONE", seconds=120)["backup"]["status"] == "COMPLETED"
        )


def test_a_task_that_nobody_takes_at_the_moment(slow: Agent) -> None:
    slow.stop()
    asked = slow.cli("backup-create", slow.instance_id, "later")
    assert asked.returncode == 0
    assert "no agent takes tasks" in asked.stderr
    slow.start()
    assert slow.create("now")["status"] == "COMPLETED"


def test_an_interrupted_restore_leaves_nothing(agent: Agent, base: str, tmp_path: Path) -> None:
    target = tmp_path / "back"
    restore = agent.spawn("restore", "--local", base, target)
    poll("the restore writes", lambda: target.exists() and any(target.iterdir()), 30)
    restore.stop(signal.SIGTERM, 10)
    assert restore.returncode == 1
    assert "interrupted: " in restore.log.read_text()
    assert not target.exists()


def test_a_restore_interrupted_while_it_prepares_says_so(
    agent: Agent, base: str, tmp_path: Path
) -> None:
    """The message is the agent's own, not the output of the program that was killed for it."""
    program = patient(tmp_path / "patient", "echo preparing >&2; exec sleep 60")
    own = Agent(
        agent.folder, agent.rabbitmq, agent.swift, agent.mariadb, {"engine": {"program": program}}
    )
    own.tenant_id, own.instance_id = agent.tenant_id, agent.instance_id
    config = agent.config.read_text()
    own.write()
    try:
        restore = own.spawn("restore", "--local", base, tmp_path / "back")
        poll("it prepares", lambda: bool(preparing(tmp_path / "back")), 30)
        restore.stop(signal.SIGTERM, 10)
    finally:
        agent.config.write_text(config)
    assert restore.returncode == 1
    assert "backup-agent: interrupted: the restore was interrupted" in restore.log.read_text()
    assert not (tmp_path / "back").exists()


def test_a_restore_that_memory_does_not_hold_is_refused_before_it_begins(
    agent: Agent,
    swift: SwiftServer,
    base: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BACKUP_AGENT_PIPELINE__MEMORY_BYTES", str(24 << 20))
    monkeypatch.setenv("BACKUP_AGENT_PIPELINE__SEGMENT_BYTES", str(1 << 20))
    earlier = len(swift.requests())
    done = agent.cli("restore", "--local", base, tmp_path / "back")
    assert done.returncode == 2
    assert "too large for this machine" in done.stderr
    assert "raise [pipeline] memory_bytes" in done.stderr
    segments = f"_segments/{base}/"
    assert not any(segments in line for line in swift.requests()[earlier:])
    assert not (tmp_path / "back").exists()
    monkeypatch.setenv("BACKUP_AGENT_PIPELINE__MEMORY_BYTES", str(48 << 20))
    done = agent.cli("restore", "--local", base, tmp_path / "back")
    assert done.returncode == 0, done.stderr
