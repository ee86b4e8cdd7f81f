"""A failed backup in a store that takes no record until the backup's own bytes are deleted."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from agent.errors import StoreDenied, StoreFull, StoreRejected
from agent.model import BackupStatus, ErrorInfo, Record
from agent.operations.backup.abandon import abandon_record
from agent.operations.resources import BackupResources
from agent.records.catalogue import Catalogue
from agent.records.object_names import attempt_prefix
from agent.store.directory.store import DirectoryStore
from agent.store.protocol import Container, Store
from tests.operations.stored import held, place
from tests.operations.test_delete import AtCall, Died
from tests.records.made import keyring, record

KEYS = keyring()
FULL = ErrorInfo(code="store_full", message="it is", hint="")


class Full(DirectoryStore):
    """A store that refuses to write while it holds segments of `making`.

    `kind` is the class of its errors. `without_effect` says if a refused request certainly
    wrote nothing.
    """

    making: Record
    kind: type[StoreFull | StoreRejected | StoreDenied] = StoreFull
    without_effect = True

    def put(self, container: Container, name: str, parts: Sequence[memoryview]) -> str:
        prefix = attempt_prefix(self.making.id, self.making.attempt)
        if any(self.list(Container.SEGMENTS, prefix)):
            error = self.kind("no room")
            error.without_effect = self.without_effect
            raise error
        return super().put(container, name, parts)


def full_with(folder: DirectoryStore, making: Record) -> Full:
    place(folder, KEYS, making, segments=4)
    store = Full(folder._root, "database_backups_x")
    store.making = making
    return store


def abandon(store: Store, making: Record, *, remove: bool = True) -> Record | None:
    made = SimpleNamespace(
        store=store, catalogue=Catalogue(store, KEYS), path=SimpleNamespace(connections=1)
    )
    return abandon_record(cast(BackupResources, made), making, FULL, remove=remove)


@pytest.mark.parametrize("kind", [StoreFull, StoreRejected])
def test_bytes_go_before_the_record_that_has_no_room(
    folder: DirectoryStore, kind: type[StoreFull | StoreRejected]
) -> None:
    making = record()
    store = full_with(folder, making)
    store.kind = kind
    failed = abandon(store, making)
    assert failed is not None
    assert failed.status is BackupStatus.FAILED
    assert Catalogue(folder, KEYS).need(making.id) == failed
    assert held(folder).segments == {}


def test_a_crash_anywhere_leaves_no_usable_backup_and_is_made_good(folder: DirectoryStore) -> None:
    number, died = 0, True
    while died:
        number += 1
        making = record()
        store = full_with(folder, making)

        def die() -> None:
            raise Died

        try:
            abandon(AtCall(store, number, die), making)
            died = False
        except Died:
            between = Catalogue(folder, KEYS).need(making.id)
            assert between.status in (BackupStatus.BUILDING, BackupStatus.FAILED)
            abandon(store, between)
        after = Catalogue(folder, KEYS).need(making.id)
        assert after.status is BackupStatus.FAILED, f"after it died at call {number}"
        assert held(folder).segments == {}
    assert number > 12


def test_a_refusal_that_may_not_be_one_removes_nothing(folder: DirectoryStore) -> None:
    making = record()
    store = full_with(folder, making)
    store.kind, store.without_effect = StoreRejected, False
    before = held(folder)
    with pytest.raises(StoreRejected):
        abandon(store, making)
    assert held(folder) == before
    store.kind = StoreFull
    with pytest.raises(StoreFull):
        abandon(store, making, remove=False)
    assert held(folder) == before
