"""A machine that was cloned with its state directory, so that two agents end one attempt.

One agent finds the attempt interrupted and removes it. The other agent had read the record before
that, and writes the COMPLETED one. This write may arrive before any request of the first agent.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest

from agent.model import BackupStatus, ErrorInfo, ListRef, Record
from agent.operations.backup.abandon import abandon_record
from agent.operations.resources import BackupResources
from agent.records.catalogue import Catalogue
from agent.records.object_names import attempt_prefix, new_attempt, record_name, segment_name
from agent.store.directory.store import DirectoryStore
from agent.store.protocol import Container, Store
from tests.operations.collecting import age, collection
from tests.operations.stored import finished, held, place
from tests.operations.test_delete import AtCall
from tests.records.made import INSTANCE, completed, keyring, record

KEYS = keyring()
CUT_OFF = ErrorInfo(code="interrupted", message="the agent ended", hint="")
Removal = Callable[[Store, Record], object]


def abandon(store: Store, making: Record) -> Record | None:
    made = SimpleNamespace(
        store=store, catalogue=Catalogue(store, KEYS), path=SimpleNamespace(connections=1)
    )
    return abandon_record(cast(BackupResources, made), making, CUT_OFF)


def collect(store: Store, _making: Record) -> None:
    list(collection(store, connections=1).run())


def original(store: DirectoryStore, done: Record) -> None:
    """Do the steps of the other agent after its last read of the record."""
    catalogue = Catalogue(store, KEYS)
    catalogue._put(done)
    catalogue.verify_or_condemn(done)


def assert_whole_or_given_up(store: DirectoryStore, done: Record, when: str) -> None:
    there = Catalogue(store, KEYS).need(done.id)
    left = [
        row.name for row in store.list(Container.SEGMENTS, attempt_prefix(done.id, done.attempt))
    ]
    if there.status is BackupStatus.COMPLETED:
        assert segment_name(done.id, done.attempt, 0) in left, when
        assert len(left) == 4, when
    else:
        assert there.stored is None or there.status is BackupStatus.DELETING, when


def making_of(folder: DirectoryStore, status: BackupStatus) -> tuple[Record, Record]:
    """Return an unfinished stored attempt, and the record that it has when it is completed."""
    attempt = new_attempt(INSTANCE)
    done = finished(folder, KEYS, completed(attempt=attempt))
    error = None if status is BackupStatus.BUILDING else CUT_OFF
    making = record(id=done.id, attempt=attempt, status=status, error=error)
    Catalogue(folder, KEYS)._put(making)
    return making, done


@pytest.mark.parametrize("status", [BackupStatus.BUILDING, BackupStatus.DELETING])
@pytest.mark.parametrize("remove", [abandon, collect])
def test_completed_in_any_moment_of_a_removal_is_whole_or_no_backup(
    folder: DirectoryStore, remove: Removal, status: BackupStatus
) -> None:
    number, late = 0, False
    while not late:
        number += 1
        making, done = making_of(folder, status)
        age(folder)
        clone = AtCall(folder, number, lambda done=done: original(folder, done))  # type: ignore[misc]
        remove(clone, making)
        late = clone.calls < number
        if late:
            if Catalogue(folder, KEYS).read(done.id) is None:
                break
            original(folder, done)
        if Catalogue(folder, KEYS).read(done.id) is not None:
            assert_whole_or_given_up(folder, done, f"at call {number} of {clone.calls}")
        for row in [*folder.list(Container.SEGMENTS)]:
            folder.delete(Container.SEGMENTS, row.name)
        folder.delete(Container.OBJECTS, record_name(done.id))
    assert number > 8


def test_what_was_completed_before_anything_went_is_a_backup(folder: DirectoryStore) -> None:
    making, done = making_of(folder, BackupStatus.BUILDING)

    class Clone(Catalogue):
        def write(self, record: Record) -> None:
            super().write(record)
            original(folder, done)

    made = SimpleNamespace(
        store=folder, catalogue=Clone(folder, KEYS), path=SimpleNamespace(connections=1)
    )
    assert abandon_record(cast(BackupResources, made), making, CUT_OFF) == done
    assert_whole_or_given_up(folder, done, "")
    assert Catalogue(folder, KEYS).need(done.id) == done


def test_a_listing_that_still_shows_what_is_gone_keeps_no_backup(folder: DirectoryStore) -> None:
    """The segments are deleted, but the container's listing still shows them."""
    one = completed()
    assert one.stored is not None
    listed = one.stored.model_copy(update={"lists": (ListRef(count=2, sha256="0" * 64),)})
    done = one.model_copy(update={"stored": listed})
    place(folder, KEYS, done)
    rows = list(folder.list(Container.SEGMENTS))
    for row in rows:
        folder.delete(Container.SEGMENTS, row.name)

    class Lagging(DirectoryStore):
        def list(self, container: Container, prefix: str = ""):  # type: ignore[no-untyped-def]
            return iter(rows)

    lagging = Lagging(folder._root, "database_backups_x")
    assert not Catalogue(lagging, KEYS).verify_or_condemn(done)
    assert Catalogue(folder, KEYS).need(done.id).status is BackupStatus.DELETING
    assert held(folder).segments == {}
