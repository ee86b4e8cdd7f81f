"""Trove with this project's image in place of its own."""

import json
from collections.abc import Iterator

import pytest

from tests.stack.process import StackError, poll
from tests.stack.trove.instance import Instance
from tests.stack.trove.stack import TroveStack
from tests.trove.test_own_image import change


@pytest.fixture
def trove(trove_stack: TroveStack) -> Iterator[TroveStack]:
    """Yield Trove with this project's image. Nothing of a test may be left in the container."""
    trove_stack.use_image("drop-in")
    before = trove_stack.objects()
    yield trove_stack
    trove_stack.swift.clear_faults()
    assert trove_stack.objects() == before


def names(trove: TroveStack) -> list[str]:
    return [str(row["name"]) for row in trove.objects()]


def completed(trove: TroveStack, name: str) -> str:
    """Wait until the newest backup of that name is COMPLETED, and return its id."""
    [found] = [one for one in trove.api.backups() if one["name"] == name]
    assert trove.wait_backup(found["id"])["status"] == "COMPLETED"
    return str(found["id"])


def test_the_five_commands_of_the_manual(trove: TroveStack, source: Instance) -> None:
    made = trove.client("backup-create", source.id, "base")
    assert made.returncode == 0, made.stderr
    base = completed(trove, "base")
    change(source, "five")
    trove.client("backup-create", source.id, "inc.001", "--parent", base)
    first = completed(trove, "inc.001")
    change(source, "five")
    trove.client("backup-create", source.id, "inc.002", "--parent", first)
    second = completed(trove, "inc.002")
    listed = trove.client("backup-list").stdout
    assert all(one in listed for one in (base, first, second))
    limited = trove.client("backup-list-instance", "--limit", "2", source.id).stdout
    assert limited.count("COMPLETED") == 2
    shown = trove.client("backup-show", second).stdout
    assert "COMPLETED" in shown
    assert f"{second}.xbstream.gz" in shown
    trove.client("backup-delete", base)
    poll("all are deleted", lambda: not trove.api.backups(), 60)
    assert names(trove) == []


def test_the_same_with_the_client_of_openstack(trove: TroveStack, source: Instance) -> None:
    command = ("database", "backup")
    made = trove.openstack(*command, "create", "base", "--instance", source.id, "-f", "json")
    assert made.returncode == 0, made.stderr
    base = completed(trove, "base")
    change(source, "client")
    trove.openstack(*command, "create", "child", "--instance", source.id, "--parent", base)
    child = completed(trove, "child")
    rows = json.loads(trove.openstack(*command, "list", "-f", "json").stdout)
    assert {row["ID"] for row in rows} == {base, child}
    shown = json.loads(trove.openstack(*command, "show", child, "-f", "json").stdout)
    assert (shown["status"], shown["parent_id"]) == ("COMPLETED", base)
    assert shown["size"] > 0
    trove.openstack(*command, "delete", base)
    poll("all are deleted", lambda: not trove.api.backups(), 60)


def test_a_chain_is_restored_into_an_instance(trove: TroveStack, source: Instance) -> None:
    full = trove.backup("full", source)
    change(source, "chain")
    incremental = trove.backup("incremental", source, full["id"])
    restored = trove.create_instance("restored", incremental["id"])
    assert restored.checksums() == source.checksums()
    trove.delete_instance(restored.id)
    trove.delete_backup(full["id"])


def test_troves_own_image_restores_a_chain_of_this_one(trove: TroveStack, source: Instance) -> None:
    full = trove.backup("full", source)
    change(source, "back")
    incremental = trove.backup("incremental", source, full["id"])
    trove.use_image("trove")
    restored = trove.create_instance("restored-by-trove", incremental["id"])
    assert restored.checksums() == source.checksums()
    trove.delete_instance(restored.id)
    trove.delete_backup(full["id"])


def test_troves_own_image_goes_on_with_a_chain_of_this_one(
    trove: TroveStack, source: Instance
) -> None:
    full = trove.backup("full", source)
    trove.use_image("trove")
    change(source, "onwards")
    incremental = trove.backup("incremental", source, full["id"])
    restored = trove.create_instance("restored-by-trove", incremental["id"])
    assert restored.checksums() == source.checksums()
    trove.delete_instance(restored.id)
    trove.delete_backup(full["id"])


def test_this_image_goes_on_with_a_chain_that_trove_began(
    trove: TroveStack, source: Instance
) -> None:
    change(source, "earlier")  # without a table nothing shows that the parent is of this instance
    trove.use_image("trove")
    full = trove.backup("full", source)
    trove.use_image("drop-in")
    change(source, "forth")
    incremental = trove.backup("incremental", source, full["id"])
    restored = trove.create_instance("restored-of-both", incremental["id"])
    assert restored.checksums() == source.checksums()
    trove.delete_instance(restored.id)
    trove.delete_backup(full["id"])


def test_ten_backups_in_a_row(trove: TroveStack, source: Instance) -> None:
    made = [trove.backup(f"row {number}", source)["id"] for number in range(10)]
    for one in made:
        trove.delete_backup(one)


# --- failures ----------------------------------------------------------------------------------


def failed(trove: TroveStack, source: Instance, parent: str | None = None) -> str:
    """Make a backup that must fail, and return the last line of its container's output.

    The guest agent's log must have that line.
    """
    backup_id = trove.create_backup("failing", source, parent)
    assert trove.wait_backup(backup_id)["status"] == "FAILED"
    last = source.container_logs("db_backup")[-1].read_text().splitlines()[-1]
    assert last in source.guest_log.read_text()
    trove.delete_backup(backup_id)
    return last


def test_a_failure_of_the_engine(trove: TroveStack, source: Instance) -> None:
    source.sql("CREATE SCHEMA xtrabackup_checkpoints")
    try:
        assert "FAILED datadir_unfit" in failed(trove, source)
    finally:
        source.sql("DROP SCHEMA xtrabackup_checkpoints")


def test_a_token_that_swift_refuses(trove: TroveStack, source: Instance) -> None:
    trove.swift.inject([{"match": "/0000000", "method": "PUT", "status": 401, "times": 1000}])
    last = failed(trove, source)
    trove.swift.clear_faults()
    assert "FAILED token_expired" in last


def test_a_quota_of_the_container(trove: TroveStack, source: Instance) -> None:
    trove.delete_backup(trove.backup("first", source)["id"])
    trove.container_quota("database_backups", 1000)
    try:
        assert "FAILED store_full" in failed(trove, source)
    finally:
        trove.container_quota("database_backups", None)


def test_the_bytes_of_the_parent_are_gone(trove: TroveStack, source: Instance) -> None:
    full = trove.backup("full", source)
    trove.delete_objects("database_backups", f"{full['id']}/")
    assert "FAILED parent_unusable" in failed(trove, source, full["id"])
    trove.delete_backup(full["id"])


def test_another_checksum_of_the_parent(trove: TroveStack, source: Instance) -> None:
    full = trove.backup("full", source)
    row = f"WHERE id = '{full['id']}'"
    [(checksum,)] = trove.mariadb.query(f"SELECT checksum FROM trove.backups {row}")
    trove.mariadb.query(f"UPDATE trove.backups SET checksum = '{'0' * 32}' {row}")
    last = failed(trove, source, full["id"])
    trove.mariadb.query(f"UPDATE trove.backups SET checksum = '{checksum}' {row}")
    assert "FAILED parent_unusable" in last
    assert "replaced or changed" in last
    trove.delete_backup(full["id"])


@pytest.mark.parametrize("what", ["segments", "parent"])
def test_a_damaged_chain_makes_the_instance_fail(
    trove: TroveStack, source: Instance, what: str
) -> None:
    """With Trove's own image the instance becomes HEALTHY, and empty."""
    full = trove.backup("full", source)
    change(source, "damaged")
    incremental = trove.backup("incremental", source, full["id"])
    lost = incremental if what == "segments" else full
    trove.delete_objects("database_backups", f"{lost['id']}{'/' if what == 'segments' else ''}")
    instance = trove.create_instance("damaged", incremental["id"], wait=False)
    with pytest.raises(StackError, match="ERROR"):
        trove.wait_instance(instance.id)
    trove.delete_instance(instance.id)
    trove.delete_backup(full["id"])


def test_a_killed_container_leaves_nothing_for_long(trove: TroveStack, source: Instance) -> None:
    """The next backup of the instance removes what a killed one left."""
    rule = {"match": "/0000000", "method": "PUT", "action": "stall", "seconds": 60, "times": 99}
    trove.swift.inject([rule])
    backup_id = trove.create_backup("killed", source)
    poll("the marker is stored", lambda: "unfinished" in "".join(names(trove)), 60)
    source.docker("POST", "/containers/db_backup/kill")
    assert trove.wait_backup(backup_id)["status"] == "FAILED"
    trove.swift.clear_faults()
    assert names(trove)
    trove.delete_backup(trove.backup("next", source)["id"])
    trove.delete_backup(backup_id)
