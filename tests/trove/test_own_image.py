"""Trove with its own backup image: the stack is real, and this is what a drop-in must match."""

import json

import pytest

from tests.stack.process import poll
from tests.stack.trove.instance import Instance
from tests.stack.trove.stack import TroveStack


def change(instance: Instance, schema: str) -> None:
    """Add rows, and move the checkpoint, so that an incremental has something to store."""
    instance.sql(
        f"CREATE SCHEMA IF NOT EXISTS {schema};"
        f"CREATE TABLE IF NOT EXISTS {schema}.log (id INT AUTO_INCREMENT PRIMARY KEY, t TEXT);"
        f"INSERT INTO {schema}.log (t) SELECT MD5(seq) FROM {schema}.seq_1_to_2000;"
        "SET GLOBAL innodb_log_checkpoint_now = ON"
    )


def test_a_chain_is_made_shown_restored_and_deleted(
    trove_stack: TroveStack, source: Instance
) -> None:
    before = trove_stack.objects()
    full = trove_stack.backup("full", source)
    change(source, "chain")
    incremental = trove_stack.backup("incremental", source, full["id"])
    listed = trove_stack.openstack("database", "backup", "list", "-f", "json")
    rows = {row["ID"]: row for row in json.loads(listed.stdout)}
    assert rows[incremental["id"]]["Parent ID"] == full["id"]
    assert {rows[one["id"]]["Status"] for one in (full, incremental)} == {"COMPLETED"}
    shown = trove_stack.client("backup-show", incremental["id"])
    assert incremental["locationRef"] in shown.stdout
    restored = trove_stack.create_instance("restored", incremental["id"])
    assert restored.checksums() == source.checksums()
    assert "chain.log" in restored.checksums()
    trove_stack.delete_instance(restored.id)
    trove_stack.delete_backup(full["id"])
    assert trove_stack.objects() == before


def test_the_container_gets_no_more_than_dockers_environment_and_its_volumes(
    trove_stack: TroveStack, source: Instance
) -> None:
    trove_stack.delete_backup(trove_stack.backup("plain", source)["id"])
    specification = source.container_specifications("db_backup")[-1]
    assert specification["command"][:3] == ["python3", "main.py", "--backup"]
    assert set(specification["environment"]) == {"PATH", "HOSTNAME", "HOME"}
    assert specification["user"] == [0, 0]
    assert sorted(specification["binds"]) == [
        ["/etc/mysql", "/etc/mysql", "ro"],
        ["/tmp", "/tmp", "rw"],
        ["/var/lib/mysql", "/var/lib/mysql", "rw"],
        ["/var/lib/mysqld", "/var/run/mysqld", "ro"],
    ]


def test_a_damaged_backup_restores_into_an_empty_instance(
    trove_stack: TroveStack, source: Instance
) -> None:
    """Trove's image exits with 0 after a failed restore, so Trove calls the instance healthy."""
    full = trove_stack.backup("lost", source)
    trove_stack.swift.inject(
        [{"match": f"{full['id']}.xbstream.gz", "method": "GET", "status": 404, "times": 1000}]
    )
    empty = trove_stack.create_instance("empty", full["id"])
    assert empty.checksums() == {}
    trove_stack.swift.clear_faults()
    trove_stack.delete_instance(empty.id)
    trove_stack.delete_backup(full["id"])


def test_docker_stop_ends_a_backup(trove_stack: TroveStack, source: Instance) -> None:
    trove_stack.swift.inject(
        [{"match": "_00000000", "method": "PUT", "action": "stall", "seconds": 60}]
    )
    backup_id = trove_stack.create_backup("stopped", source)
    poll("the backup runs", lambda: bool(source.processes("--backup-id=" + backup_id)), 30)
    source.docker("POST", "/containers/db_backup/stop?t=10")
    assert trove_stack.wait_backup(backup_id)["status"] == "FAILED"
    container = source.container("db_backup")
    assert container is not None
    assert container["State"]["ExitCode"] == 143
    trove_stack.delete_backup(backup_id)


def test_an_instance_is_gone_with_its_processes(trove_stack: TroveStack) -> None:
    instance = trove_stack.create_instance("short")
    [server] = instance.processes("mariadbd --defaults-file")
    trove_stack.delete_instance(instance.id)
    assert not server.is_running()
    with pytest.raises(OSError, match="No such file"):
        instance.datadir.stat()
