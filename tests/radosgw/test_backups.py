"""Backups by task with the real radosgw as the store, also killed, frozen or changed by others."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.crash_points import VARIABLE, Point
from agent.model import BackupRequest, CancelTask, CreateTask, DeleteTask, Limits, RestoreTask, Task
from tests.e2e.conftest import with_daemon
from tests.e2e.objects import Objects
from tests.faults.ledger import Ledger
from tests.faults.rig import change, told
from tests.stack.agent import Agent, Tables
from tests.stack.mariadb import SMALL_SERVER, MariaDB
from tests.stack.process import poll
from tests.stack.rabbitmq import RabbitMQ
from tests.stack.radosgw import Radosgw

MIB = 1 << 20
SECONDS = 90.0
_OVERRIDES: Tables = {
    "pipeline": {"segment_bytes": MIB, "connections": 2},
    "store": {"timeout_seconds": 2, "attempts": 6},
}


@pytest.fixture(scope="module")
def agent_session(
    scratch: Path, rabbitmq: RabbitMQ, radosgw: Radosgw, database: MariaDB
) -> Iterator[Agent]:
    agent = Agent(scratch / "radosgw-agent", rabbitmq, radosgw, database, _OVERRIDES)
    agent.write()
    yield agent
    agent.stop()


@pytest.fixture
def agent(agent_session: Agent) -> Agent:
    return with_daemon(agent_session)


@pytest.fixture
def ledger(agent: Agent) -> Iterator[Ledger]:
    ledger = Ledger(agent)
    yield ledger
    ledger.close()


@pytest.fixture
def objects(agent: Agent) -> Iterator[Objects]:
    objects = Objects(agent)
    yield objects
    objects.close()


def create(parent: str | None = None, *, slow: bool = False) -> CreateTask:
    """Return a create task. A slow backup takes about 5 s."""
    request = BackupRequest(id=str(uuid.uuid4()), name="on radosgw", parent_id=parent)
    limits = Limits(bytes_per_second=3 * MIB) if slow else Limits()
    return CreateTask(task_id=str(uuid.uuid4()), backup=request, limits=limits)


def ended(agent: Agent, ledger: Ledger, task: Task) -> dict[str, Any]:
    """Send a task and return its final report."""
    agent.send(task)
    return end_of(ledger, task)


def end_of(ledger: Ledger, task: Task) -> dict[str, Any]:
    ledger.wait_for_ends([task.task_id], SECONDS)
    ledger.check([task.task_id])
    found = ledger.final(task.task_id)
    assert found
    return found


def restored(agent: Agent, ledger: Ledger, backup_id: str) -> dict[str, int]:
    """Restore a backup by task and return the checksums of its tables."""
    target = agent.folder / "restore" / str(uuid.uuid4())
    task = RestoreTask(task_id=str(uuid.uuid4()), backup_id=backup_id, target=str(target))
    assert told(ended(agent, ledger, task)) == "DONE"
    server = MariaDB(agent.folder / target.name, target, options=SMALL_SERVER)
    server.start()
    try:
        return server.checksums()
    finally:
        server.stop()


def stored(objects: Objects, backup_id: str) -> list[str]:
    """Return the names of all stored objects of a backup."""
    containers = (objects.container, objects.segments)
    return [name for container in containers for name in objects.names(container, backup_id)]


@contextmanager
def under_way(agent: Agent, objects: Objects) -> Iterator[CreateTask]:
    """Yield a backup that has stored some segments, and delete it at the end."""
    task = create(slow=True)
    agent.send(task)
    poll("segments are stored", lambda: len(objects.segment_names(task.backup.id)) > 1, 30)
    yield task
    delete = DeleteTask(task_id=str(uuid.uuid4()), backup_id=task.backup.id)
    with Ledger(agent) as ledger:
        assert told(ended(agent, ledger, delete)) == "DONE"
    assert stored(objects, task.backup.id) == []


def test_a_chain_is_made_restored_and_deleted(
    agent: Agent, ledger: Ledger, objects: Objects, database: MariaDB
) -> None:
    full = create()
    content = change(database)
    assert told(ended(agent, ledger, full)) == "DONE"
    child = create(full.backup.id)
    changed = change(database)
    assert told(ended(agent, ledger, child)) == "DONE"
    assert restored(agent, ledger, full.backup.id) == content
    assert restored(agent, ledger, child.backup.id) == changed

    listed = json.loads(agent.cli("backup-list", "--json").stdout)
    assert [(row["id"], row["status"], row["record_state"]) for row in listed] == [
        (task.backup.id, "COMPLETED", "ok") for task in (full, child)
    ]
    record = objects.record(child.backup.id)
    name = record["locationRef"].rpartition("/")[2]
    assert objects.etag(objects.container, name).strip('"') == record["stored"]["slo_etag"]
    size = record["stored"]["stored_bytes"]
    assert len(objects.get(objects.container, name)) == size
    collected = agent.cli("gc", "--json")
    assert (collected.returncode, json.loads(collected.stdout)["orphans"]) == (0, [])

    delete = DeleteTask(task_id=str(uuid.uuid4()), backup_id=full.backup.id)
    assert told(ended(agent, ledger, delete)) == "DONE"
    for task in (full, child):
        assert stored(objects, task.backup.id) == []


def test_the_self_test_passes_with_a_trial(agent: Agent, objects: Objects) -> None:
    done = agent.cli("self-test", "--full", "--json")
    results = json.loads(done.stdout)["results"]
    assert [one for one in results if one["verdict"] in ("FAIL", "SKIP")] == []
    ours = [one for one in results if one["group"] in ("store", "trial")]
    assert {one["verdict"] for one in ours} == {"PASS"}, ours
    assert done.returncode == 0
    assert not objects.names(objects.segments)


@pytest.fixture
def few_segments(radosgw: Radosgw) -> Iterator[int]:
    """Configure a gateway that joins at most three segments. Yield that number."""
    radosgw.configure(rgw_max_slo_entries=3)
    yield 3
    radosgw.configure()


def test_a_database_of_more_segments_than_may_be_joined_gets_larger_ones(
    few_segments: int, agent: Agent, ledger: Ledger, objects: Objects, database: MariaDB
) -> None:
    content = change(database)
    task = create()
    assert told(ended(agent, ledger, task)) == "DONE"
    record = objects.record(task.backup.id)
    count, size = record["stored"]["segment_count"], record["stored"]["stored_bytes"]
    # the database has more segments of the configured size than may be joined
    assert 1 <= count <= few_segments < size / MIB
    assert not [name for name in objects.names(objects.segments) if "/slo-" in name]
    assert restored(agent, ledger, task.backup.id) == content


def test_a_gateway_that_is_killed_amid_a_backup_costs_time(
    radosgw: Radosgw, agent: Agent, ledger: Ledger, objects: Objects, database: MariaDB
) -> None:
    content = change(database)
    with under_way(agent, objects) as task:
        radosgw.kill_gateway()
        radosgw.start_gateway()
        assert told(end_of(ledger, task)) == "DONE"
        assert restored(agent, ledger, task.backup.id) == content


def retries(agent: Agent) -> int:
    return agent.log.read_text().count("; retry in ")


def test_an_osd_that_is_silent_for_a_while_costs_time(
    radosgw: Radosgw, agent: Agent, ledger: Ledger, objects: Objects, database: MariaDB
) -> None:
    content = change(database)
    with under_way(agent, objects) as task:
        before = retries(agent)
        radosgw.freeze_osd()
        poll("the agent tries again", lambda: retries(agent) > before, 30)
        radosgw.thaw_osd()
        assert told(end_of(ledger, task)) == "DONE"
        assert restored(agent, ledger, task.backup.id) == content


def test_a_cancel_ends_a_backup_whose_store_is_silent(
    radosgw: Radosgw, agent: Agent, ledger: Ledger, objects: Objects
) -> None:
    with under_way(agent, objects) as task:
        before = retries(agent)
        radosgw.freeze_osd()
        poll("the agent tries again", lambda: retries(agent) > before, 30)
        agent.send(CancelTask(task_id=str(uuid.uuid4()), cancels=task.task_id))
        radosgw.thaw_osd()
        assert told(end_of(ledger, task)).startswith("CANCELLED")
        assert [name for name in stored(objects, task.backup.id) if ".json" not in name] == []


@pytest.mark.parametrize("body", [bytes(MIB), b"short"], ids=["same size", "other size"])
def test_a_segment_that_somebody_changes_meanwhile_fails_the_backup(
    agent: Agent, ledger: Ledger, objects: Objects, body: bytes
) -> None:
    """The gateway accepts a manifest with any MD5 in it, so the agent must check them itself."""
    with under_way(agent, objects) as task:
        objects.put(objects.segments, objects.segment_names(task.backup.id)[0], body)
        final = end_of(ledger, task)
        assert told(final) == "FAILED store_mismatch"
        assert final["backup"]["status"] == "FAILED"
        assert stored(objects, task.backup.id) == [f"{task.backup.id}.json"]


@pytest.mark.parametrize("changed", [False, True], ids=["as stored", "changed"])
def test_a_commit_that_was_cut_off_is_brought_to_its_end_if_all_is_as_stored(
    agent: Agent, ledger: Ledger, objects: Objects, database: MariaDB, changed: bool
) -> None:
    content, task = change(database), create()
    agent.stop()
    agent.start({VARIABLE: Point.RECORD_JOURNALLED})
    agent.send(task)
    poll("the agent is dead", lambda: not agent.running(), 60)
    if changed:
        objects.put(objects.segments, objects.segment_names(task.backup.id)[0], bytes(MIB))
    agent.start()
    final = end_of(ledger, task)
    if changed:
        assert final["status"] == "FAILED"
        assert f"{task.backup.id}.xbstream.gz.enc" not in objects.names(objects.container)
    else:
        assert told(final) == "DONE"
        assert restored(agent, ledger, task.backup.id) == content
