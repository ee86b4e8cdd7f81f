"""A delete while another process writes the same record a moment too late, and on a full disk."""

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from uuid import uuid4

import pytest

from agent.errors import KeyNotHere, StoreFull
from agent.machine.host import free_bytes
from agent.model import BackupStatus, ErrorInfo, ListRef, Record
from agent.operations.backup.abandon import abandon_record
from agent.operations.rekey import Rekey, RekeyOutcome
from agent.operations.resources import BackupResources
from agent.records.catalogue import Catalogue
from agent.records.object_names import list_name, record_name, segment_name
from agent.records.presence import missing
from agent.store.directory.store import DirectoryStore
from agent.store.protocol import Container, StoredObject
from tests.operations.stored import finished, held, place
from tests.operations.test_delete import AtCall, deletion
from tests.records.made import completed, keyring, record, stored

KEYS = keyring()


def test_a_record_that_rekey_writes_after_a_delete_is_no_good_one(folder: DirectoryStore) -> None:
    base = completed(stored=stored(lists=(ListRef(count=2, sha256="0" * 64),)), cipher="none")
    place(folder, KEYS, base)

    def delete() -> None:
        deletion(folder).run(base.id)

    # The calls are a listing, two reads of the record, and then the write.
    late = AtCall(folder, 4, delete)
    catalogue = Catalogue(late, KEYS)
    [rekeyed] = Rekey(catalogue, KEYS, "k1").run(connections=1)
    assert rekeyed.outcome is RekeyOutcome.LEFT
    assert held(folder).of(base.id) == [record_name(base.id)]
    assert Catalogue(folder, KEYS).need(base.id).status is BackupStatus.DELETING
    deletion(folder).run(base.id)
    assert held(folder) == ({}, {})


def test_a_segment_list_that_was_lost_condemns_nothing(folder: DirectoryStore) -> None:
    base = completed(stored=stored(lists=(ListRef(count=2, sha256="0" * 64),)), cipher="none")
    place(folder, KEYS, base)
    folder.delete(Container.SEGMENTS, list_name(base.id, base.attempt, 0))
    catalogue = Catalogue(folder, KEYS)
    [rekeyed] = Rekey(catalogue, KEYS, "k1").run(connections=1)
    assert rekeyed.outcome is RekeyOutcome.DONE
    assert catalogue.need(base.id).status is BackupStatus.COMPLETED


def test_objects_out_of_reach_condemn_nothing_while_they_are_listed(folder: DirectoryStore) -> None:
    base = completed(stored=stored(lists=(ListRef(count=2, sha256="0" * 64),)), cipher="none")
    place(folder, KEYS, base)
    for name in (list_name, segment_name):
        folder.delete(Container.SEGMENTS, name(base.id, base.attempt, 0))
    assert Catalogue(folder, KEYS).verify_or_condemn(base)
    assert Catalogue(folder, KEYS).need(base.id).status is BackupStatus.COMPLETED


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Yield the mount point of a filesystem of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def by_the_agent(store: DirectoryStore, backup: Record) -> None:
    finished(store, KEYS, backup)


def by_an_older_agent(store: DirectoryStore, backup: Record) -> None:
    place(store, KEYS, backup)


def filled(
    folder: Path,
    *records: Record,
    put_backup: Callable[[DirectoryStore, Record], None] = by_an_older_agent,
) -> DirectoryStore:
    """Return a store with these backups and no room for another file."""
    store = DirectoryStore(folder / "store", "database_backups_x")
    store.open()
    for one in records:
        put_backup(store, one)
    (folder / "other").write_bytes(bytes(free_bytes(folder)))
    with pytest.raises(StoreFull):
        store.put(Container.OBJECTS, "one", [memoryview(b"more")])
    return store


@pytest.mark.parametrize("put_backup", [by_the_agent, by_an_older_agent])
def test_a_delete_on_a_disk_without_room_for_its_mark(
    small: Path, put_backup: Callable[[DirectoryStore, Record], None]
) -> None:
    base = completed()
    store = filled(small, base, completed(base), put_backup=put_backup)
    deletion(store).run(base.id)
    assert held(store) == ({}, {})


class Marked(DirectoryStore):
    """A store that has no room for any record."""

    def put(self, container: Container, name: str, parts: Sequence[memoryview]) -> str:
        if container is Container.OBJECTS:
            raise StoreFull(f"put {name}: no space left on device")
        return super().put(container, name, parts)


def test_a_delete_that_finds_no_room_costs_the_deepest_backup_and_names_it(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store", "database_backups_x")
    base = finished(store, KEYS, completed())
    child = finished(store, KEYS, completed(base, to_lsn=200))
    making = record(parent_id=child.id, from_lsn=200)
    place(store, KEYS, making)
    full = Marked(tmp_path / "store", "database_backups_x")
    with pytest.raises(StoreFull, match=f"backup {child.id} has lost a segment") as caught:
        deletion(full).run(base.id)
    assert "repeat the delete" in caught.value.hint
    assert missing(store, base) is None
    assert segment_name(child.id, child.attempt, 0) in (missing(store, child) or "")
    assert segment_name(making.id, making.attempt, 0) in held(store).segments
    deletion(store, at_rest=[making.attempt]).run(base.id)
    assert held(store) == ({}, {})


def test_a_store_that_joins_segments_loses_none_for_a_mark(
    folder: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quota of Swift counts each container for itself."""
    base = finished(folder, KEYS, completed())
    before = held(folder).segments
    full = Marked(folder._root, "database_backups_x")
    monkeypatch.setattr(Marked, "joiner", full)
    with pytest.raises(StoreFull) as caught:
        deletion(full).run(base.id)
    assert "lost a segment" not in str(caught.value)
    assert held(folder).segments == before


def test_a_failed_backup_on_a_disk_without_room_for_saying_so(small: Path) -> None:
    making = record()
    store = filled(small, making)
    catalogue = Catalogue(store, KEYS)
    parts = SimpleNamespace(store=store, catalogue=catalogue, path=SimpleNamespace(connections=2))
    full = ErrorInfo(code="store_full", message="it is", hint="")
    abandon_record(cast(BackupResources, parts), making, full)
    assert catalogue.need(making.id).status is BackupStatus.FAILED
    assert held(store).segments == {}


class Behind(DirectoryStore):
    """A store with a listing that does not show some objects yet."""

    hidden: frozenset[str] = frozenset()

    def list(self, container: Container, prefix: str = "") -> Iterator[StoredObject]:
        rows = super().list(container, prefix)
        return (row for row in rows if row.name.removesuffix(".json") not in self.hidden)


def test_children_that_only_the_journal_knows_go_with_their_parent(tmp_path: Path) -> None:
    store = Behind(tmp_path / "store", "database_backups_x")
    store.open()
    base, other = completed(), completed()
    child = completed(base, to_lsn=200)
    grandchild = completed(child, to_lsn=300)
    listed = completed(grandchild, to_lsn=400)
    place(store, KEYS, base, child, grandchild, listed, other)
    store.hidden = frozenset({child.id, grandchild.id})
    known = {child.id: base.id, grandchild.id: child.id, str(uuid4()): base.id, other.id: "x"}
    operation = deletion(store, parents=lambda: known)
    operation.run(base.id)
    store.hidden = frozenset()
    assert {row.name[:36] for row in store.list(Container.OBJECTS)} == {other.id}
    assert [kin.id for kin in operation.deleted] == [
        listed.id,
        grandchild.id,
        child.id,
        base.id,
    ]


def test_a_child_of_another_key_with_the_same_id_refuses_the_delete(
    folder: DirectoryStore,
) -> None:
    """If it were taken for a damaged record, it would lose its parent."""
    namesake, base = keyring("k1", fill=9), completed()
    child = completed(base, keys=namesake.wrap_all(bytes(32)))
    place(folder, KEYS, base)
    place(folder, namesake, child)
    before = held(folder)
    with pytest.raises(KeyNotHere, match=child.id):
        deletion(folder).run(base.id)
    assert held(folder) == before
