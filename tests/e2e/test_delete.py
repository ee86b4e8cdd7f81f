"""Deletes through the broker, and deletes of backups that are being made at that moment."""

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent import wiring
from agent.config.reading import load
from agent.model import (
    BackupRequest,
    BackupStatus,
    CreateTask,
    DeleteTask,
    Limits,
    Record,
)
from agent.operations.delete.family import DeleteOperation
from agent.pipeline.meter import Meter
from agent.records.catalogue import Catalogue
from agent.stop import Stop
from agent.store.protocol import Store
from tests.e2e.conftest import with_daemon
from tests.e2e.objects import Objects
from tests.e2e.reports import Reports, doomed
from tests.engine.scripts import script
from tests.operations.stored import place
from tests.records.made import completed
from tests.stack.agent import Agent
from tests.stack.process import poll
from tests.stack.swift import SwiftServer


@pytest.fixture(scope="module")
def own_session(agent_session: Agent, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """Yield an agent with incrementals that take 10 minutes and with two attempts at the store."""
    folder = tmp_path_factory.mktemp("delete")
    patient = script(
        folder / "patient",
        "if any('incremental' in word for word in sys.argv):\n    time.sleep(600)\n"
        "os.execvp('mariadb-backup', ['mariadb-backup', *sys.argv[1:]])",
    )
    overrides: dict[str, dict[str, object]] = {
        "engine": {"program": patient},
        "store": {"attempts": 2},
    }
    servers = (agent_session.rabbitmq, agent_session.swift, agent_session.mariadb)
    own = Agent(folder / "agent", *servers, overrides)
    yield own
    own.stop()


@pytest.fixture
def own(own_session: Agent, swift: SwiftServer) -> Agent:
    """Return the agent of `own_session` with its daemon running."""
    return with_daemon(own_session)


@pytest.fixture
def objects(own: Agent) -> Iterator[Objects]:
    objects = Objects(own)
    yield objects
    objects.close()


@pytest.fixture
def store(own: Agent) -> Iterator[Store]:
    store = wiring.store(load(own.config))
    store.open()
    yield store
    store.close()


def left_of(objects: Objects, *ids: str) -> list[str]:
    return [
        name
        for container in (objects.container, objects.segments)
        for name in objects.names(container)
        if name.startswith(ids)
    ]


def wait_for_record(objects: Objects, backup_id: str, status: str) -> None:
    """Wait until the record of a backup has this status.

    The backup begins only then, although reports of progress may come earlier.
    """

    def there() -> bool:
        name = f"{backup_id}.json"
        found = name in objects.names(objects.container, name)
        return found and objects.record(backup_id)["status"] == status

    poll(f"backup {backup_id} is {status}", there, 60)


def by_task(agent: Agent, backup_id: str) -> None:
    done = agent.cli("backup-delete", "--wait", backup_id)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def by_another_process(agent: Agent, backup_id: str) -> None:
    done = agent.cli("backup-delete", "--local", backup_id)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("delete", "whole_chain"),
    [(by_task, True), (by_task, False), (by_another_process, True)],
)
def test_a_running_incremental_is_cancelled_when_it_or_its_parent_is_deleted(
    own: Agent, objects: Objects, delete: Callable[[Agent, str], None], whole_chain: bool
) -> None:
    base = own.create("base")["id"]
    request = BackupRequest(id=str(uuid.uuid4()), name="inc", parent_id=base)
    create = CreateTask(task_id=str(uuid.uuid4()), backup=request)
    with Reports(own) as reports:
        own.send(create)
        wait_for_record(objects, request.id, "BUILDING")
        delete(own, base if whole_chain else request.id)
        ended = reports.wait_for(create.task_id, "CANCELLED")
        assert ended["error"]["code"] == "cancelled"
        assert ended["backup"]["status"] == "CANCELLED"
        assert "FAILED" not in reports.statuses(create.task_id)
    assert left_of(objects, request.id) == []
    assert bool(left_of(objects, base)) is not whole_chain


def test_a_crash_while_a_cancelled_backup_is_cleaned_up(
    own: Agent, objects: Objects, swift: SwiftServer
) -> None:
    base = own.create("base")["id"]
    request = BackupRequest(id=str(uuid.uuid4()), name="inc", parent_id=base)
    create = CreateTask(task_id=str(uuid.uuid4()), backup=request)
    delete = DeleteTask(task_id=str(uuid.uuid4()), backup_id=base)
    with Reports(own) as reports:
        own.send(create)
        wait_for_record(objects, request.id, "BUILDING")
        reached = stalled(swift, "DELETE", request.id)
        own.send(delete)
        poll("the cleaning hangs", reached, 30)
        own.kill()
        swift.clear_faults()
        own.start()
        assert reports.wait_for(create.task_id, "CANCELLED")["backup"]["status"] == "CANCELLED"
        reports.wait_for(delete.task_id, "DONE")
        assert reports.statuses(create.task_id).count("CANCELLED") == 1
    assert left_of(objects, base, request.id) == []


def test_a_delete_past_the_point_of_no_return_leaves_the_backup_completed_and_deletes_it(
    own: Agent, objects: Objects, swift: SwiftServer
) -> None:
    request = BackupRequest(id=str(uuid.uuid4()), name="late")
    limits = Limits(bytes_per_second=32 << 20)
    create = CreateTask(task_id=str(uuid.uuid4()), backup=request, limits=limits)
    delete = DeleteTask(task_id=str(uuid.uuid4()), backup_id=request.id)
    with Reports(own) as reports:
        own.send(create)
        wait_for_record(objects, request.id, "BUILDING")
        reached = stalled(swift, "PUT", f"{request.id}.json", seconds=2)
        poll("the last write is under way", reached, 30)
        own.send(delete)
        reports.wait_for(delete.task_id, "ACCEPTED")
        assert "DONE" not in reports.statuses(create.task_id)
        assert reports.wait_for(create.task_id, "DONE")["backup"]["status"] == "COMPLETED"
        reports.wait_for(delete.task_id, "DONE")
    assert left_of(objects, request.id) == []


def test_a_last_write_that_the_store_takes_after_a_delete_completes_nothing(
    own: Agent, objects: Objects, store: Store, swift: SwiftServer
) -> None:
    request = BackupRequest(id=str(uuid.uuid4()), name="too late")
    limits = Limits(bytes_per_second=32 << 20)
    create = CreateTask(task_id=str(uuid.uuid4()), backup=request, limits=limits)
    catalogue = Catalogue(store, wiring.keyring(load(own.config)))
    impatient = DeleteOperation(
        store,
        catalogue,
        connections=2,
        meter=Meter(),
        stop=Stop(),
        on_begin=lambda _record: None,
        patience_seconds=0.0,
    )
    with Reports(own) as reports:
        own.send(create)
        wait_for_record(objects, request.id, "BUILDING")
        reached = stalled(swift, "PUT", f"{request.id}.json", seconds=3)
        poll("the last write is under way", reached, 30)
        impatient.run(request.id)
        assert left_of(objects, request.id) == []
        ended = reports.wait_for(create.task_id, "CANCELLED")
        assert "deleted while it was completed" in ended["error"]["message"]
        assert "DONE" not in reports.statuses(create.task_id)
    assert left_of(objects, request.id) == [f"{request.id}.json"]
    assert catalogue.need(request.id).status is BackupStatus.CANCELLED


def test_nothing_is_made_or_restored_on_a_chain_that_is_being_deleted(
    own: Agent, objects: Objects, store: Store, tmp_path: Path
) -> None:
    base = own.create("base")["id"]
    Catalogue(store, wiring.keyring(load(own.config))).condemn(base)
    made = own.cli("backup-create", own.instance_id, "inc", "--wait", "--json", "--parent", base)
    assert made.returncode == 1
    assert f"parent_unusable: the parent can't be used: backup {base} is DELETING" in made.stderr
    assert left_of(objects, json.loads(made.stdout)["task_id"]) == []
    restored = own.cli("restore", "--local", base, tmp_path / "back")
    assert restored.returncode == 1
    assert f"backup_unusable: backup {base} is DELETING" in restored.stderr
    assert not (tmp_path / "back").exists()
    by_task(own, base)
    assert left_of(objects, base) == []


def placed(agent: Agent, store: Store) -> tuple[Record, Record]:
    """Store a full backup and an incremental of an instance that has lost its VM.

    Return their records.
    """
    base = completed()
    child = completed(base)
    place(store, wiring.keyring(load(agent.config)), base, child)
    return base, child


def stalled(swift: SwiftServer, method: str, match: str, seconds: int = 600) -> Callable[[], bool]:
    """Stall the next matching request, and return a function that tells if it has come."""
    seen = len(swift.requests())
    swift.inject([{"method": method, "match": match, "action": "stall", "seconds": seconds}])
    return lambda: any(" stall" in line for line in swift.requests()[seen:])


@pytest.mark.parametrize("at", ["segment", "record"])
def test_a_delete_that_a_crash_cut_off_is_completed_and_reported_once(
    own: Agent, objects: Objects, store: Store, swift: SwiftServer, at: str
) -> None:
    base, child = placed(own, store)
    match = f"_segments/{child.id}/" if at == "segment" else f"{base.id}.json"
    task = DeleteTask(task_id=str(uuid.uuid4()), backup_id=base.id)
    with Reports(own) as reports:
        reached = stalled(swift, "DELETE", match)
        own.send(task)
        poll("the delete hangs", reached, 30)
        own.kill()
        swift.clear_faults()
        if at == "record":
            # the request reached the store in the end, so no record is left
            objects.delete(objects.container, f"{base.id}.json")
        own.start()
        final = reports.wait_for(task.task_id, "DONE")
        assert (final["backup"]["id"], final["backup"]["status"]) == (base.id, "DELETING")
        later = doomed()
        own.send(later)
        reports.wait_for(later.task_id, "FAILED")
        assert reports.statuses(task.task_id).count("DONE") == 1
        assert "FAILED" not in reports.statuses(task.task_id)
    assert left_of(objects, base.id, child.id) == []


def test_a_delete_that_sigterm_cut_off_is_continued_at_the_next_start(
    own: Agent, objects: Objects, store: Store, swift: SwiftServer
) -> None:
    base, child = placed(own, store)
    task = DeleteTask(task_id=str(uuid.uuid4()), backup_id=base.id)
    with Reports(own) as reports:
        slow = {"method": "DELETE", "match": "_segments/", "times": 99, "action": "stall"}
        swift.inject([slow | {"seconds": 3}])
        own.send(task)
        wait_for_record(objects, base.id, "DELETING")
        assert own.stop() == 0
        assert f"{base.id}.json" in objects.names(objects.container)
        swift.clear_faults()
        own.start()
        reports.wait_for(task.task_id, "DONE")
        assert "FAILED" not in reports.statuses(task.task_id)
    assert left_of(objects, base.id, child.id) == []


def test_a_store_that_fails_during_a_delete_is_waited_for_and_holds_nothing_up(
    own: Agent, objects: Objects, store: Store, swift: SwiftServer
) -> None:
    base, child = placed(own, store)
    task = DeleteTask(task_id=str(uuid.uuid4()), backup_id=base.id)
    later = doomed()
    with Reports(own) as reports:
        swift.inject([{"method": "DELETE", "match": child.id, "times": 9999, "status": 503}])
        own.send(task)
        reports.wait_for(task.task_id, "RUNNING")
        own.send(later)
        reports.wait_for(later.task_id, "FAILED")
        assert not {"DONE", "FAILED"} & set(reports.statuses(task.task_id))
        swift.clear_faults()
        reports.wait_for(task.task_id, "DONE")
    assert left_of(objects, base.id, child.id) == []


def test_deleting_what_is_not_there_fails(own: Agent) -> None:
    done = own.cli("backup-delete", "--wait", "--json", str(uuid.uuid4()))
    assert done.returncode == 1
    assert "backup-agent: backup_unknown: " in done.stderr
    assert json.loads(done.stdout)["status"] == "FAILED"
