"""Cancel waiting and running tasks: within seconds, with one answer each, and nothing left."""

import json
import signal
import time
import uuid
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from agent.model import (
    BackupRequest,
    CancelTask,
    CreateTask,
    DeleteTask,
    Limits,
    PingTask,
    RestoreTask,
)
from tests.e2e.conftest import with_daemon
from tests.e2e.objects import Objects
from tests.e2e.reports import Reports
from tests.engine.scripts import patient, preparing
from tests.stack.agent import Agent, Tables
from tests.stack.process import poll
from tests.stack.swift import SwiftServer

# The promise is 5 seconds. The rest is for a machine that does other work meanwhile.
SECONDS = 8.0


@pytest.fixture(scope="module")
def own_session(agent_session: Agent, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """Yield an agent with many segments per backup, and with a prepare that takes 10 minutes."""
    folder = tmp_path_factory.mktemp("cancel")
    program = patient(folder / "patient", "trap '' INT; sleep 600")
    overrides: Tables = {"engine": {"program": program}, "pipeline": {"segment_bytes": 1 << 20}}
    servers = (agent_session.rabbitmq, agent_session.swift, agent_session.mariadb)
    own = Agent(folder / "agent", *servers, overrides)
    yield own
    own.stop()


@pytest.fixture
def own(own_session: Agent, swift: SwiftServer) -> Agent:
    """Return the agent of `own_session` with its daemon running."""
    return with_daemon(own_session)


@pytest.fixture
def reports(own: Agent) -> Iterator[Reports]:
    with Reports(own) as reports:
        yield reports


@pytest.fixture
def objects(own: Agent) -> Iterator[Objects]:
    objects = Objects(own)
    yield objects
    objects.close()


def create(mebibytes_per_second: int = 4) -> CreateTask:
    request = BackupRequest(id=str(uuid.uuid4()), name="to be cancelled")
    limits = Limits(bytes_per_second=mebibytes_per_second << 20)
    return CreateTask(task_id=request.id, backup=request, limits=limits)


def cancel_of(task_id: str) -> CancelTask:
    return CancelTask(task_id=str(uuid.uuid4()), cancels=task_id)


def begin(own: Agent, objects: Objects, mebibytes_per_second: int = 4) -> CreateTask:
    """Send a create task, wait until its first segments are stored, and return it."""
    task = create(mebibytes_per_second)
    own.send(task)
    poll("segments are stored", lambda: len(objects.segment_names(task.backup.id)) > 1, 60)
    return task


def end(own: Agent, reports: Reports, task_id: str) -> dict[str, Any]:
    """Cancel a task and return its final report, which must come in time.

    Assert that the task ends CANCELLED, and the cancel DONE.
    """
    cancel = cancel_of(task_id)
    own.send(cancel)
    sent = time.monotonic()
    final = reports.wait_for(task_id, "CANCELLED")
    took = time.monotonic() - sent
    print(f"cancelled after {took:.2f} s")
    assert took < SECONDS
    assert final["error"]["code"] == "cancelled"
    reports.wait_for(cancel.task_id, "DONE")
    assert reports.statuses(cancel.task_id) == ["ACCEPTED", "DONE"]
    assert {"DONE", "FAILED"}.isdisjoint(reports.statuses(task_id))
    return final


def left_of(objects: Objects, backup_id: str) -> list[str]:
    """Return the names of a backup's objects in the store, without its record."""
    found = objects.names(objects.segments, f"{backup_id}/")
    return found + [n for n in objects.names(objects.container, backup_id) if "json" not in n]


def assert_gone(objects: Objects, backup_id: str) -> None:
    assert objects.record(backup_id)["status"] == "CANCELLED"
    assert left_of(objects, backup_id) == []


def engine_of(own: Agent) -> psutil.Process:
    children = psutil.Process(own.daemon.pid).children(recursive=True)
    (engine,) = (child for child in children if child.name().startswith("mariadb-backup"))
    return engine


def test_a_running_backup_and_those_that_wait(
    own: Agent, reports: Reports, objects: Objects
) -> None:
    running, waiting = begin(own, objects), create()
    own.send(waiting)
    reports.wait_for(waiting.task_id, "ACCEPTED")
    final = end(own, reports, waiting.task_id)
    assert "backup" not in final
    assert objects.names(objects.container, waiting.backup.id) == []
    done = own.cli("status", "--json")
    tasks = [(task["task_id"], task["status"]) for task in json.loads(done.stdout)["tasks"]]
    assert tasks == [(running.task_id, "RUNNING")]
    engine = engine_of(own)
    final = end(own, reports, running.task_id)
    assert final["backup"]["status"] == "CANCELLED"
    assert not engine.is_running()
    assert_gone(objects, running.backup.id)
    assert own.create("next")["status"] == "COMPLETED"


def test_by_the_command_line(own: Agent, reports: Reports, objects: Objects) -> None:
    task = begin(own, objects)
    done = own.cli("cancel", "--wait", task.task_id)
    assert (done.returncode, done.stdout) == (0, f"task {task.task_id} is cancelled\n")
    reports.wait_for(task.task_id, "CANCELLED")
    again = own.cli("cancel", "--wait", "--instance", own.instance_id, task.task_id)
    assert again.returncode == 0
    unknown = own.cli("cancel", "--wait", "--json", str(uuid.uuid4()))
    assert unknown.returncode == 1
    assert "backup-agent: task_unknown: " in unknown.stderr
    assert json.loads(unknown.stdout)["status"] == "FAILED"


def test_an_engine_that_is_stopped_and_a_store_that_is_stuck(
    own: Agent, reports: Reports, objects: Objects, swift: SwiftServer
) -> None:
    task = begin(own, objects)
    swift.inject([{"match": task.backup.id, "times": 999, "action": "stall", "seconds": 5}])
    poll("the store is stuck", lambda: "stall" in swift.requests()[-1], 30)
    engine_of(own).send_signal(signal.SIGSTOP)
    end(own, reports, task.task_id)
    swift.clear_faults()
    # any task makes an idle agent try the store again
    own.send(PingTask(task_id=str(uuid.uuid4())))
    poll("it is cleaned up", lambda: not left_of(objects, task.backup.id), 30)
    assert_gone(objects, task.backup.id)


def test_past_the_point_of_no_return_it_is_too_late(
    own: Agent, reports: Reports, objects: Objects, swift: SwiftServer
) -> None:
    task = begin(own, objects, 32)
    record = f"{task.backup.id}.json"
    swift.inject([{"method": "PUT", "match": record, "action": "stall", "seconds": 2}])
    hangs = f"{record} stall"
    poll("the last write is under way", lambda: hangs in "".join(swift.requests()[-5:]), 60)
    for late in ("is already being completed", "it is DONE"):
        cancel = cancel_of(task.task_id)
        own.send(cancel)
        answer = reports.wait_for(cancel.task_id, "FAILED")
        assert answer["error"]["code"] == "too_late"
        assert late in answer["error"]["message"]
        if "DONE" not in reports.statuses(task.task_id):
            reports.wait_for(task.task_id, "DONE")
    assert objects.record(task.backup.id)["status"] == "COMPLETED"
    assert own.cli("backup-show", task.backup.id).returncode == 0


def test_a_restore_whose_engine_ignores_it(own: Agent, reports: Reports) -> None:
    backup_id = own.create("whole")["id"]
    folder = own.folder / "restore" / "there"
    folder.mkdir()
    task = RestoreTask(task_id=str(uuid.uuid4()), backup_id=backup_id, target=str(folder))
    own.send(task)
    poll("it prepares", lambda: bool(preparing(folder)), 60)
    end(own, reports, task.task_id)
    assert list(folder.parent.iterdir()) == [folder]
    assert list(folder.iterdir()) == []


def test_a_restore_in_the_middle_of_a_download(
    own: Agent, reports: Reports, swift: SwiftServer
) -> None:
    backup_id = own.create("whole")["id"]
    segments = f"_segments/{backup_id}/.*[1-9]$"
    swift.inject(
        [{"method": "GET", "match": segments, "times": 999, "action": "stall", "seconds": 60}]
    )
    folder = own.folder / "restore" / "fetched"
    task = RestoreTask(task_id=str(uuid.uuid4()), backup_id=backup_id, target=str(folder))
    own.send(task)
    poll("it fetches", lambda: "stall" in swift.requests()[-1], 60)
    end(own, reports, task.task_id)
    assert list(folder.parent.glob("*fetched*")) == []


def test_a_crash_before_anything_was_stopped(
    own: Agent, reports: Reports, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.stop()
    monkeypatch.setenv("BACKUP_AGENT_CRASH_AT", "cancel-journalled")
    own.start()
    monkeypatch.delenv("BACKUP_AGENT_CRASH_AT")
    task = begin(own, objects)
    waiting = create()
    own.send(waiting)
    cancel = cancel_of(task.task_id)
    own.send(cancel)
    poll("the agent has died", lambda: not own.running(), 30)
    own.kill()
    own.start()
    assert reports.wait_for(task.task_id, "CANCELLED")["error"]["code"] == "cancelled"
    reports.wait_for(cancel.task_id, "DONE")
    end(own, reports, waiting.task_id)
    assert_gone(objects, task.backup.id)
    assert reports.statuses(task.task_id).count("CANCELLED") == 1


def test_a_delete_that_has_begun(
    own: Agent, reports: Reports, objects: Objects, swift: SwiftServer
) -> None:
    backup_id = own.create("to be deleted")["id"]
    slow = {"method": "DELETE", "match": backup_id, "action": "stall", "seconds": 2}
    swift.inject([slow])
    task = DeleteTask(task_id=str(uuid.uuid4()), backup_id=backup_id)
    own.send(task)
    poll("it removes", lambda: "DELETE" in swift.requests()[-1], 30)
    cancel = cancel_of(task.task_id)
    own.send(cancel)
    assert reports.wait_for(cancel.task_id, "FAILED")["error"]["code"] == "too_late"
    reports.wait_for(task.task_id, "DONE")
    assert objects.names(objects.container, backup_id) == []


def test_a_server_that_answers_nothing(
    own: Agent, reports: Reports, objects: Objects, swift: SwiftServer
) -> None:
    """The server is suspended, so it doesn't answer when the backup requests its identity."""
    server = psutil.Process(int((own.mariadb.folder / "server.pid").read_text()))
    task = create()
    try:
        server.suspend()
        own.send(task)
        begins = f"{task.task_id} (backup.create) begins"
        poll("it runs", lambda: begins in own.log.read_text(), 30)
        # the agent connects to the store first
        poll("it asks the server", lambda: "/info" in swift.requests()[-1], 30)
        end(own, reports, task.task_id)
    finally:
        server.resume()
    assert objects.names(objects.container, task.backup.id) == []
