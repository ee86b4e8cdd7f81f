"""The end of a backup, if the store or the agent fails at that point."""

import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.model import BackupRequest, CreateTask, Limits, PingTask
from tests.e2e.conftest import with_daemon
from tests.e2e.objects import Objects
from tests.e2e.reports import Reports
from tests.stack.agent import Agent
from tests.stack.process import ServerProcess, poll
from tests.stack.swift import SwiftServer


@pytest.fixture(scope="module")
def hasty_session(
    agent_session: Agent, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Agent]:
    """Yield a separate agent that gives up on the store after two attempts."""
    overrides: dict[str, dict[str, object]] = {
        "pipeline": {"segment_bytes": 1 << 20},
        "store": {"attempts": 2},
    }
    servers = (agent_session.rabbitmq, agent_session.swift, agent_session.mariadb)
    own = Agent(tmp_path_factory.mktemp("commit") / "agent", *servers, overrides)
    yield own
    own.stop()


@pytest.fixture
def hasty(hasty_session: Agent, swift: SwiftServer) -> Agent:
    """Return the agent of `hasty_session` with its daemon running."""
    return with_daemon(hasty_session)


def begin(agent: Agent) -> CreateTask:
    """Send a create task, wait until it stores segments, and return it.

    Its record is written by then.
    """
    task = CreateTask(
        task_id=str(uuid.uuid4()),
        backup=BackupRequest(id=str(uuid.uuid4()), name="cut"),
        limits=Limits(bytes_per_second=32 << 20),
    )
    agent.send(task)
    objects = Objects(agent)
    poll("segments are stored", lambda: bool(objects.segment_names(task.backup.id)), 60)
    objects.close()
    return task


def wake(agent: Agent) -> None:
    """Make the worker try the store at once, before its pause of 5 seconds has ended."""
    agent.send(PingTask(task_id=str(uuid.uuid4())))


def wait_for_stall(swift: SwiftServer, name: str) -> None:
    def hit() -> bool:
        return any(name in line and " stall" in line for line in swift.requests())

    poll(f"a request of {name} hangs", hit, 60)


def kill_at_put(agent: Agent, swift: SwiftServer, name: str) -> None:
    """Kill the agent while its PUT of that object is under way and unanswered."""
    swift.inject([{"method": "PUT", "match": name, "times": 99, "action": "stall", "seconds": 60}])
    wait_for_stall(swift, name)
    agent.kill()
    swift.clear_faults()


def assert_whole(agent: Agent, backup_id: str, target: Path) -> None:
    objects = Objects(agent)
    record = objects.record(backup_id)
    assert record["status"] == "COMPLETED"
    assert record["stored"]["segment_size"] == 1 << 20
    assert len(objects.segment_names(backup_id)) == record["stored"]["segment_count"]
    assert f"{backup_id}.xbstream.gz.enc" in objects.names(objects.container)
    objects.close()
    done = agent.cli("restore", "--local", backup_id, target)
    assert done.returncode == 0, done.stderr


def test_a_lost_answer_to_the_last_write_is_still_a_completed_backup(
    hasty: Agent, swift: SwiftServer, tmp_path: Path
) -> None:
    with Reports(hasty) as reports:
        task = begin(hasty)
        record = f"{task.backup.id}.json"
        swift.inject([{"method": "PUT", "match": record, "times": 99, "action": "wrong_etag"}])
        reports.wait_for(task.task_id, "DONE")
        assert "FAILED" not in reports.statuses(task.task_id)
    swift.clear_faults()
    assert_whole(hasty, task.backup.id, tmp_path / "back")


def test_a_store_that_fails_at_the_last_write_delays_the_report_and_loses_nothing(
    hasty: Agent, swift: SwiftServer, tmp_path: Path
) -> None:
    with Reports(hasty) as reports:
        task = begin(hasty)
        record = f"{task.backup.id}.json"
        swift.inject([{"method": "PUT", "match": record, "times": 999, "status": 503}])
        waits = f"task {task.task_id} waits for the store"
        poll("the agent waits", lambda: waits in hasty.log.read_text(), 60)
        assert "FAILED" not in reports.statuses(task.task_id)
        swift.clear_faults()
        wake(hasty)
        reports.wait_for(task.task_id, "DONE")
    assert_whole(hasty, task.backup.id, tmp_path / "back")


@pytest.mark.parametrize("at", ["xbstream.gz.enc", "json"])
def test_a_crash_during_the_commit_is_made_good_at_the_next_start(
    hasty: Agent, swift: SwiftServer, tmp_path: Path, at: str
) -> None:
    with Reports(hasty) as reports:
        task = begin(hasty)
        name = f"{task.backup.id}.{at}"
        kill_at_put(hasty, swift, name)
        hasty.start()
        reports.wait_for(task.task_id, "DONE")
        assert "FAILED" not in reports.statuses(task.task_id)
    assert_whole(hasty, task.backup.id, tmp_path / "back")


def test_a_backup_given_up_after_its_object_was_published_leaves_no_object(
    hasty: Agent, swift: SwiftServer
) -> None:
    with Reports(hasty) as reports:
        task = begin(hasty)
        name = f"{task.backup.id}.xbstream"
        swift.inject([{"method": "PUT", "match": name, "times": 99, "action": "wrong_etag"}])
        failed = reports.wait_for(task.task_id, "FAILED")
        assert failed["error"]["code"] == "store_mismatch"
        assert failed["backup"]["status"] == "FAILED"
    objects = Objects(hasty)
    assert objects.names(objects.container, task.backup.id) == [f"{task.backup.id}.json"]
    assert objects.names(objects.segments, task.backup.id) == []
    objects.close()


QUOTA = {"status": 413, "body": "Upload exceeds quota."}


def assert_cleaned_up(agent: Agent, backup_id: str, code: str) -> None:
    objects = Objects(agent)
    record = objects.record(backup_id)
    assert (record["status"], record["error"]["code"]) == ("FAILED", code)
    assert objects.names(objects.segments, backup_id) == []
    assert objects.names(objects.container, backup_id) == [f"{backup_id}.json"]
    objects.close()


@pytest.mark.parametrize("refusal", [QUOTA, {"status": 507}, {"status": 422}])
def test_a_last_write_that_is_refused_for_good_is_cleaned_up_at_once(
    hasty: Agent, swift: SwiftServer, refusal: dict[str, object]
) -> None:
    """The FAILED record is refused as well, until the backup's own bytes are deleted."""
    with Reports(hasty) as reports:
        task = begin(hasty)
        times = 3 if refusal["status"] == 422 else 2
        match = f"{task.backup.id}.json"
        swift.inject([{"method": "PUT", "match": match, "times": times, **refusal}])
        failed = reports.wait_for(task.task_id, "FAILED")
    assert failed["backup"]["status"] == "FAILED"
    assert_cleaned_up(hasty, task.backup.id, failed["error"]["code"])


def test_a_last_write_that_is_refused_after_one_without_an_answer_is_not_taken_for_undone(
    hasty: Agent, swift: SwiftServer, tmp_path: Path
) -> None:
    with Reports(hasty) as reports:
        task = begin(hasty)
        put = {"method": "PUT", "match": f"{task.backup.id}.json"}
        swift.inject([{**put, "action": "mute"}, {**put, "times": 1, **QUOTA}])
        reports.wait_for(task.task_id, "DONE")
        assert "FAILED" not in reports.statuses(task.task_id)
    swift.clear_faults()
    assert_whole(hasty, task.backup.id, tmp_path / "back")


def test_a_quota_of_swift_that_stays_full_is_reported_and_cleaned_up_when_there_is_room(
    hasty: Agent,
) -> None:
    """This is Swift's own middleware. The container takes no record, not even the FAILED one."""
    objects = Objects(hasty)
    with Reports(hasty) as reports:
        task = begin(hasty)
        objects.quota(objects.container, "1")
        try:
            failed = reports.wait_for(task.task_id, "FAILED")
            assert failed["error"]["code"] == "store_full"
            assert failed["backup"]["status"] == "FAILED"
            assert f"delete backup {task.backup.id}" in failed["error"]["hint"]
            assert objects.names(objects.segments, task.backup.id) == []
            assert objects.record(task.backup.id)["status"] == "BUILDING"
        finally:
            objects.quota(objects.container, "")
        wake(hasty)

        def settled() -> bool:
            return bool(objects.record(task.backup.id)["status"] == "FAILED")

        poll("the record says FAILED", settled, 30)
        assert reports.statuses(task.task_id).count("FAILED") == 1
    objects.close()


def test_a_backup_that_fails_with_its_store_is_cleaned_up_when_that_is_back(
    hasty: Agent, swift: SwiftServer
) -> None:
    with Reports(hasty) as reports:
        task = begin(hasty)
        swift.inject([{"match": ".", "times": 9999, "status": 503}])
        failed = reports.wait_for(task.task_id, "FAILED")
        assert failed["error"]["code"] == "store_busy"
        swift.clear_faults()
        objects = Objects(hasty)
        poll(
            "it is cleaned up",
            lambda: not objects.names(objects.segments, task.backup.id),
            60,
        )
        record = objects.record(task.backup.id)
        objects.close()
        assert (record["status"], record["error"]["code"]) == ("FAILED", "store_busy")


def test_a_write_that_may_still_reach_the_store_keeps_the_bytes(
    hasty: Agent, swift: SwiftServer
) -> None:
    """The backup can't be completed any more, but a write that would complete it is under way."""
    with Reports(hasty) as reports:
        task = begin(hasty)
        name = f"{task.backup.id}.json"
        kill_at_put(hasty, swift, name)
        objects = Objects(hasty)
        names = objects.segment_names(task.backup.id)
        objects.put(objects.segments, names[0], b"damaged")
        hasty.start()
        assert reports.wait_for(task.task_id, "FAILED")["backup"]["status"] == "FAILED"
    assert objects.segment_names(task.backup.id) == names
    objects.close()


def test_a_store_that_is_down_at_the_start_is_waited_for(hasty: Agent, swift: SwiftServer) -> None:
    with Reports(hasty) as reports:
        task = begin(hasty)
        hasty.kill()
        swift.inject([{"match": ".", "times": 9999, "status": 503}])
        hasty.start()
        says = f"task {task.task_id} is not cleaned up"
        poll("it says so", lambda: says in hasty.log.read_text(), 30)
        assert "FAILED" not in reports.statuses(task.task_id)
        swift.clear_faults()
        wake(hasty)
        failed = reports.wait_for(task.task_id, "FAILED")
        assert failed["error"]["code"] == "interrupted"
        assert failed["backup"]["status"] == "FAILED"


PATIENCE_OF_2_SECONDS = """
import sys
from agent import daemon
from agent.cli.main import main
daemon._WORKER_SECONDS = 2.0
sys.exit(main(sys.argv[1:]))
"""


def test_a_store_that_says_nothing_does_not_hold_up_the_end(
    hasty: Agent, swift: SwiftServer, tmp_path: Path
) -> None:
    hasty.stop()
    daemon = ServerProcess(
        [sys.executable, "-c", PATIENCE_OF_2_SECONDS, "--config", str(hasty.config), "run"],
        tmp_path / "daemon.log",
        dict(os.environ),
    )
    try:
        with Reports(hasty) as reports:
            task = begin(hasty)
            stall = {"match": task.backup.id, "times": 999, "action": "stall", "seconds": 20}
            swift.inject([stall])
            wait_for_stall(swift, task.backup.id)
            daemon.stop(seconds=15)
            assert daemon.returncode == 1
            assert "did not end in 2.0 s" in daemon.log.read_text()
            swift.clear_faults()
            hasty.start()
            assert reports.wait_for(task.task_id, "FAILED")["backup"]["status"] == "FAILED"
    finally:
        daemon.stop()
