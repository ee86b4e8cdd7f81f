"""A full and an incremental backup by task, and a restore of the chain to an equal database."""

import json
import uuid
from pathlib import Path

from agent import wiring
from agent.broker.client import ControlClient
from agent.config.reading import load
from agent.model import BackupRequest, CreateTask, Report, TaskStatus
from tests.e2e.objects import Objects
from tests.stack.agent import Agent
from tests.stack.mariadb import MariaDB, checksums_of


def follow(agent: Agent, name: str, parent: str | None = None) -> list[Report]:
    """Send one create task and return all reports about it."""
    request = BackupRequest(id=str(uuid.uuid4()), name=name, parent_id=parent)
    task = CreateTask(task_id=str(uuid.uuid4()), backup=request)
    with ControlClient(wiring.broker(load(agent.config))) as client:
        client.subscribe(agent.instance_id)
        client.send_task(agent.instance_id, task)
        return list(client.reports(task.task_id, idle_seconds=60))


def test_a_chain_comes_back_as_an_equal_database(
    agent: Agent, mariadb: MariaDB, tmp_path: Path
) -> None:
    full = follow(agent, "base")
    mariadb.query(
        "CREATE SCHEMA chain; CREATE TABLE chain.added AS SELECT * FROM shop.orders LIMIT 5000;"
        "CREATE TABLE chain.`odd näme` (id INT PRIMARY KEY) PARTITION BY HASH(id) PARTITIONS 3;"
        "INSERT INTO chain.`odd näme` VALUES (1), (2), (3)"
    )
    mariadb.checkpoint()
    assert full[-1].backup is not None, full[-1].error
    incremental = follow(agent, "inc.001", full[-1].backup.id)
    last = incremental[-1].backup
    assert last is not None, incremental[-1].error
    before = mariadb.checksums()

    done = agent.cli("restore", "--local", last.id, tmp_path / "back")
    assert done.returncode == 0, done.stderr
    assert checksums_of(tmp_path / "back", tmp_path / "server") == before

    for reports in (full, incremental):
        statuses = [report.status for report in reports]
        assert statuses[0] is TaskStatus.ACCEPTED
        assert set(statuses[1:-1]) == {TaskStatus.RUNNING}
        assert statuses[-1] is TaskStatus.DONE
        seqs = [report.seq for report in reports]
        assert seqs == sorted(set(seqs))
        sizes = reports[-1].sizes
        assert sizes is not None
        assert sizes["raw_bytes"] > sizes["compressed_bytes"] > 0
        assert sizes["stored_bytes"] > sizes["compressed_bytes"]
    assert full[-1].backup.size is not None
    assert full[-1].backup.size >= 0.01


def test_the_incremental_continues_its_parent(agent: Agent, mariadb: MariaDB) -> None:
    # this test makes its own parent, because the size of an incremental depends on the changes
    # that other tests have made since its parent
    base = agent.create("parent")["id"]
    mariadb.query("CREATE SCHEMA moved; CREATE TABLE moved.t AS SELECT 1 AS a")
    mariadb.checkpoint()
    child = agent.create("child", "--parent", base)["id"]
    objects = Objects(agent)
    parent_record, record = objects.record(base), objects.record(child)
    objects.close()
    assert record["from_lsn"] == parent_record["to_lsn"]
    assert record["to_lsn"] > record["from_lsn"]
    assert record["stored"]["raw_bytes"] < parent_record["stored"]["raw_bytes"] / 4
    assert parent_record["binlog"]["position"] > 0
    assert record["lineage"] == parent_record["lineage"]


def test_a_restore_by_task_stays_under_the_configured_root(
    agent: Agent, base: str, tmp_path: Path
) -> None:
    outside = agent.cli("restore", base, tmp_path / "elsewhere", "--wait")
    assert outside.returncode == 1
    assert "target_refused" in outside.stderr
    assert not (tmp_path / "elsewhere").exists()
    crafty = agent.cli("restore", base, agent.folder / "restore/../../x", "--wait")
    assert "target_refused" in crafty.stderr

    inside = agent.folder / "restore" / "one"
    done = agent.cli("restore", base, inside, "--wait", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "DONE"
    assert (inside / "ibdata1").exists()


def test_list_and_show_agree_with_the_records(agent: Agent, base: str) -> None:
    listed = json.loads(agent.cli("backup-list", "--json").stdout)
    shown = json.loads(agent.cli("backup-show", base, "--json").stdout)
    row = next(row for row in listed if row["id"] == base)
    assert row["status"] == shown["status"] == "COMPLETED"
    assert row["record_state"] == "ok"
    assert shown["locationRef"].endswith(f"{base}.xbstream.gz.enc")
    assert shown["stored"]["segment_count"] >= 1
    table = agent.cli("backup-list").stdout
    assert f"| {base} | {agent.instance_id} | base" in table
