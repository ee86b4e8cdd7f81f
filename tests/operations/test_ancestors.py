"""A parent backup that has a record, but not its bytes."""

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest
from swiftclient import client

from agent.errors import ParentUnusable, StoreNotFound
from agent.model import Record
from agent.operations.backup.chain import check_stored
from agent.operations.backup.commit import publish
from agent.operations.resources import BackupResources
from agent.records.catalogue import Catalogue
from agent.records.manifest import Manifest
from agent.records.object_names import list_name, object_name, segment_name
from agent.records.part_names import AttemptNames
from agent.records.presence import missing
from agent.store.directory.store import DirectoryStore
from agent.store.protocol import Container, Store
from agent.store.swift.store import SwiftStore
from tests.operations.stored import finished, put
from tests.operations.test_delete import AtCall
from tests.records.made import completed, keyring, record

KEYS = keyring()
Harm = Callable[[Store, Record], None]


def parts(store: Store, connections: int = 2) -> BackupResources:
    made = SimpleNamespace(
        store=store,
        catalogue=Catalogue(store, KEYS),
        path=SimpleNamespace(connections=connections),
    )
    return cast(BackupResources, made)


def without_object(store: Store, one: Record) -> None:
    store.delete(Container.OBJECTS, object_name(one.id, sealed=one.sealed))


def without_first(store: Store, one: Record) -> None:
    store.delete(Container.SEGMENTS, segment_name(one.id, one.attempt, 0))


def without_last(store: Store, one: Record) -> None:
    store.delete(Container.SEGMENTS, segment_name(one.id, one.attempt, 2))


def without_list(store: Store, one: Record) -> None:
    store.delete(Container.SEGMENTS, list_name(one.id, one.attempt, 0))


def other_list(store: Store, one: Record) -> None:
    put(store, Container.SEGMENTS, list_name(one.id, one.attempt, 0), b"1 " + b"0" * 32 + b"\n")


def other_bytes(store: Store, one: Record) -> None:
    name = segment_name(one.id, one.attempt, 2)
    put(store, Container.SEGMENTS, name, b"x" * len(store.get(Container.SEGMENTS, name, 1000)))


def other_object(store: Store, one: Record) -> None:
    put(store, Container.OBJECTS, object_name(one.id, sealed=one.sealed), b"of somebody else")


SEGMENT_HARMS = [without_first, without_last, without_list, other_list, other_bytes]
# Only a store that joins segments has the object.
OBJECT_HARMS = [without_object, other_object]


@pytest.mark.parametrize(
    ("kind", "cipher", "harms"),
    [
        ("swift", "AES256_GCM_HKDF_1MB", [*OBJECT_HARMS, without_last, other_bytes]),
        ("folder", "AES256_GCM_HKDF_1MB", SEGMENT_HARMS),
        ("folder", "none", SEGMENT_HARMS),
    ],
)
def test_what_is_lost_or_changed_of_any_ancestor_refuses_an_incremental(
    store: SwiftStore, folder: DirectoryStore, kind: str, cipher: str, harms: list[Harm]
) -> None:
    there: Store = store if kind == "swift" else folder
    for harm in harms:
        full = finished(there, KEYS, completed(cipher=cipher))
        chain = [full, finished(there, KEYS, completed(full, to_lsn=200, cipher=cipher))]
        check_stored(parts(there), chain)
        for one in chain:
            # The harmed one leaves the chain, so that the second is the only one that is harmed.
            harm(there, one)
            with pytest.raises(ParentUnusable, match=one.id):
                check_stored(parts(there), chain)
            chain = [two for two in chain if two is not one]
        check_stored(parts(there), chain)


def test_a_segment_of_a_folder_that_was_cut_short(folder: DirectoryStore) -> None:
    """The attribute with its ETag still has the value of the whole segment."""
    one = finished(folder, KEYS, completed())
    name = segment_name(one.id, one.attempt, 0)
    path = folder._root / "database_backups_x_segments" / name
    os.truncate(path, 3)
    assert "does not have the bytes" in (missing(folder, one) or "")


def test_what_a_bulk_delete_takes_of_a_manifest(store: SwiftStore) -> None:
    """`DELETE ?multipart-manifest=delete` deletes the object and its segments.

    The segment lists and the record stay.
    """
    one = finished(store, KEYS, completed())
    store._session.call(
        "delete",
        lambda link: client.delete_object(
            link.url,
            link.token,
            store._container,
            object_name(one.id),
            http_conn=link.http,
            query_string="multipart-manifest=delete",
        ),
    )
    with pytest.raises(StoreNotFound):
        store.stat(Container.SEGMENTS, segment_name(one.id, one.attempt, 0))
    assert Catalogue(store, KEYS).chain(one.id) == [one]
    assert missing(store, one)


def test_the_last_of_many_lists(folder: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("agent.records.manifest", "agent.records.presence"):
        monkeypatch.setattr(f"{module}.LIST_ENTRIES", 2)
    one = finished(folder, KEYS, completed(), segments=7)
    assert one.stored is not None
    assert len(one.stored.lists) == 4
    assert missing(folder, one) is None
    folder.delete(Container.SEGMENTS, segment_name(one.id, one.attempt, 6))
    assert segment_name(one.id, one.attempt, 6) in (missing(folder, one) or "")


def test_bytes_that_go_while_the_engine_runs_end_the_backup_before_its_commit(
    folder: DirectoryStore,
) -> None:
    full = finished(folder, KEYS, completed())
    making = record(parent_id=full.id, from_lsn=100)
    Catalogue(folder, KEYS).begin(making)
    done = completed(full, id=making.id, attempt=making.attempt, to_lsn=200)
    without_last(folder, full)
    manifest = Manifest(folder, folder.limits(), AttemptNames(making.id, making.attempt))
    with pytest.raises(ParentUnusable, match=full.id):
        publish(parts(folder), done, manifest)
    assert Catalogue(folder, KEYS).need(making.id) == making


def test_a_chain_of_hundreds_takes_five_requests_a_backup(folder: DirectoryStore) -> None:
    chain = [finished(folder, KEYS, completed(), segments=1) for _ in range(100)]
    counting = AtCall(folder, 0, lambda: None)
    check_stored(parts(counting, connections=4), chain)
    assert counting.calls <= 5 * len(chain)
