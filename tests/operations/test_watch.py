"""A running backup that another process deletes.

These tests cover how the backup notices the delete, and which objects it leaves.
"""

from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest

from agent.errors import Cancelled, Fenced, Interrupted, ParentUnusable, StoreBusy, TokenExpired
from agent.model import BackupRequest, BackupStatus, CreateTask, ErrorInfo, Record
from agent.operations.backup import create as backup_module
from agent.operations.backup.abandon import abandon_record
from agent.operations.backup.create import BackupOperation
from agent.operations.backup.preflight import ParentChain
from agent.operations.backup.watch import Watch
from agent.operations.resources import BackupResources
from agent.pipeline.meter import Meter
from agent.records.catalogue import Catalogue
from agent.records.object_names import attempt_prefix, object_name, record_name
from agent.stop import Stop
from agent.store.directory.store import DirectoryStore
from agent.store.protocol import Container, Store
from tests.operations.stored import held, place, place_record
from tests.records.made import INSTANCE, completed, keyring, record

KEYS = keyring()
CANCELLED = ErrorInfo.of(Cancelled("it is to be deleted"))


def parts(store: Store, **more: Any) -> BackupResources:
    """Return resources that have only the fields that these tests use."""
    known = {
        "store": store,
        "catalogue": Catalogue(store, KEYS),
        "path": SimpleNamespace(connections=2),
        "exclusive": False,
        "store_folder": None,
        "keep_key": lambda: None,
    }
    made = SimpleNamespace(**(known | more))
    made.bound = lambda _stop: made
    return cast(BackupResources, made)


def other_attempt(one: Record) -> Record:
    return one.model_copy(update={"attempt": str(uuid4())})


# --- noticing ----------------------------------------------------------------------------


def test_a_backup_that_still_is_to_be_made_is_not_disturbed(folder: DirectoryStore) -> None:
    making, stop = record(), Stop()
    place_record(folder, KEYS, making)
    watch = Watch(Catalogue(folder, KEYS), making, stop)
    for _ in range(3):
        watch.check()
    assert stop.cause is None


@pytest.mark.parametrize("whose", ["its own", "another attempt's"])
def test_a_record_that_is_not_its_own_building_one_stops_it(
    folder: DirectoryStore, whose: str
) -> None:
    making, stop = record(), Stop()
    place_record(folder, KEYS, making if whose == "its own" else other_attempt(making))
    if whose == "its own":
        Catalogue(folder, KEYS).condemn(making.id)
    Watch(Catalogue(folder, KEYS), making, stop).check()
    assert isinstance(stop.cause, Cancelled if whose == "its own" else Fenced)


def test_a_store_that_denies_the_record_once_is_not_believed(folder: DirectoryStore) -> None:
    making, stop = record(), Stop()
    watch = Watch(Catalogue(folder, KEYS), making, stop)
    watch.check()
    place_record(folder, KEYS, making)
    watch.check()
    Catalogue(folder, KEYS).forget(making.id)
    watch.check()
    assert stop.cause is None
    watch.check()
    assert isinstance(stop.cause, Cancelled)


def test_a_store_that_does_not_answer_stops_nothing(folder: DirectoryStore) -> None:
    class Silent(Catalogue):
        def read(self, backup_id: str) -> Record | None:
            raise StoreBusy(f"get {backup_id}: 503")

    stop = Stop()
    watch = Watch(Silent(folder, KEYS), record(), stop)
    for _ in range(5):
        watch.check()
    assert stop.cause is None


def test_a_token_that_has_expired_ends_the_making_at_the_first_look(
    folder: DirectoryStore,
) -> None:
    class Expired(Catalogue):
        def read(self, backup_id: str) -> Record | None:
            raise TokenExpired("401")

    stop = Stop()
    Watch(Expired(folder, KEYS), record(), stop).check()
    assert isinstance(stop.cause, TokenExpired)


# --- requests from the same agent ----------------------------------------------------------


def operation(store: Store, request: BackupRequest, stop: Stop) -> BackupOperation:
    return BackupOperation(
        parts(store, encrypt=True, keyring=KEYS, instance_id=INSTANCE),
        CreateTask(task_id=str(uuid4()), backup=request),
        meter=Meter(),
        stop=stop,
        observe_lsn=lambda _key, _lsn: "",
        on_begin=lambda _record: None,
        on_finished=lambda _record: None,
    )


def test_it_makes_way_for_its_own_delete_and_its_parents(folder: DirectoryStore) -> None:
    request = BackupRequest(id=str(uuid4()), name="inc", parent_id=str(uuid4()))
    for deleted, stops in (
        (request.id, True),
        (request.parent_id or "", True),
        (str(uuid4()), False),
    ):
        stop = Stop()
        operation(folder, request, stop).cancel_if_deleted(deleted)
        assert isinstance(stop.cause, Cancelled) is stops


def test_it_makes_way_for_an_ancestor_as_soon_as_it_knows_it(
    folder: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = completed()
    parent = completed(base, to_lsn=200)
    stop = Stop()
    request = BackupRequest(id=str(uuid4()), name="inc", parent_id=parent.id)
    making = operation(folder, request, stop)
    for name, found in (
        ("observe_instance", None),
        ("chain_to_continue", ParentChain((base, parent))),
        ("plan_data_path", None),
    ):
        monkeypatch.setattr(backup_module, name, lambda *_, found=found: found)
    making.cancel_if_deleted(base.id)
    assert stop.cause is None
    with pytest.raises(Cancelled, match=base.id):
        making.run()
    assert making.record is None
    assert held(folder) == ({}, {})


def test_a_chain_that_is_deleted_right_before_the_first_record_is_noticed(
    folder: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The delete has listed the container already, so it would not cancel this backup."""
    base = completed()
    place(folder, KEYS, base)
    engine = SimpleNamespace(name="mariadb-backup")
    found = SimpleNamespace(
        server=SimpleNamespace(type="mariadb", version="10.11.6-MariaDB"),
        lineage=base.lineage,
        datadir_bytes=1 << 30,
        chosen=SimpleNamespace(engine=engine, version="10.11.6"),
    )
    request = BackupRequest(id=str(uuid4()), name="inc", parent_id=base.id)
    making = operation(folder, request, Stop())
    monkeypatch.setattr(backup_module, "observe_instance", lambda *_: found)
    monkeypatch.setattr(backup_module, "chain_to_continue", lambda *_: ParentChain((base,)))
    monkeypatch.setattr(backup_module, "plan_data_path", lambda *_: None)
    monkeypatch.setattr(backup_module, "list_expected", lambda *_, **__: None)
    Catalogue(folder, KEYS).condemn(base.id)
    with pytest.raises(ParentUnusable, match="DELETING") as raised:
        making.run()
    making.abandon(ErrorInfo.of(raised.value))
    left = Catalogue(folder, KEYS).need(request.id)
    assert left.status is BackupStatus.FAILED
    assert left.error is not None
    assert left.error.code == "parent_unusable"


# --- objects that are left -----------------------------------------------------------------


def test_a_backup_that_gives_way_is_gone_before_it_says_so(folder: DirectoryStore) -> None:
    making = record()
    place(folder, KEYS, making)
    catalogue = Catalogue(folder, KEYS)
    catalogue.condemn(making.id)
    left: list[list[str]] = []

    class Writing(Catalogue):
        def write(self, record: Record) -> None:
            left.append([row.name for row in folder.list(Container.SEGMENTS)])
            super().write(record)

    ended = abandon_record(
        parts(folder, catalogue=Writing(folder, KEYS)), making, CANCELLED, remove=True
    )
    assert left == [[]]
    assert ended is not None
    assert catalogue.need(making.id) == ended
    assert (ended.status, ended.error) == (BackupStatus.CANCELLED, CANCELLED)


def test_a_backup_whose_delete_did_not_wait_brings_no_record_back(folder: DirectoryStore) -> None:
    making = record()
    place(folder, KEYS, making)

    class Late(Catalogue):
        """A catalogue in which the delete finishes right after a read of the record."""

        def read(self, backup_id: str) -> Record | None:
            there = super().read(backup_id)
            self.forget(backup_id)
            return there

    Catalogue(folder, KEYS).condemn(making.id)
    ended = abandon_record(parts(folder, catalogue=Late(folder, KEYS)), making, CANCELLED)
    assert ended is not None
    assert ended.status is BackupStatus.CANCELLED
    assert Catalogue(folder, KEYS).read(making.id) is None


@pytest.mark.parametrize("begun_again", [True, False])
def test_an_attempt_that_lost_its_record_removes_its_own_bytes(
    folder: DirectoryStore, begun_again: bool
) -> None:
    making = record()
    again = other_attempt(making)
    place(folder, KEYS, making)
    Catalogue(folder, KEYS).forget(making.id)
    if begun_again:
        place(folder, KEYS, again)
    assert abandon_record(parts(folder), making, CANCELLED) is None
    left = held(folder)
    own = attempt_prefix(making.id, making.attempt)
    assert [name for name in left.segments if name.startswith(own)] == []
    assert (object_name(making.id) in left.objects) is begun_again
    assert (record_name(making.id) in left.objects) is begun_again


def test_a_write_that_may_be_under_way_keeps_the_bytes(folder: DirectoryStore) -> None:
    making = record()
    place(folder, KEYS, making)
    Catalogue(folder, KEYS).condemn(making.id)
    before = held(folder)
    error = ErrorInfo.of(Interrupted("the agent was told to stop"))
    abandon_record(parts(folder), making, error, remove=False)
    assert held(folder).segments == before.segments
