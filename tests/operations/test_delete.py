"""The deletion of a backup with all its descendants, on a real Swift."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Self
from uuid import uuid4

import pytest

from agent.errors import (
    BackupBusy,
    BackupUnknown,
    Interrupted,
    KeyNotHere,
    RecordDamaged,
    StoreBusy,
)
from agent.model import BackupStatus, ErrorInfo, Record, WrappedKey
from agent.operations.delete.family import DeleteOperation
from agent.pipeline.meter import Meter
from agent.records.catalogue import Catalogue
from agent.records.object_names import record_name, segment_name
from agent.stop import Stop
from agent.store.directory.store import DirectoryStore
from agent.store.protocol import Container, Interruption, Store
from agent.store.swift.store import SwiftStore
from tests.operations.stored import held, place, place_record, put
from tests.records.made import completed, keyring, record
from tests.stack.process import poll
from tests.stack.swift import SwiftServer

KEYS = keyring()
GIVEN_UP = ErrorInfo(code="interrupted", message="it was", hint="")


def deletion(store: Store, **changes: Any) -> DeleteOperation:
    settings: dict[str, Any] = {
        "connections": 2,
        "meter": Meter(),
        "stop": Stop(),
        "on_begin": lambda _record: None,
        "patience_seconds": 0.0,
    }
    return DeleteOperation(store, Catalogue(store, KEYS), **(settings | changes))


def family_of_four() -> list[Record]:
    """Return a full backup, a chain of two incrementals on it, and one more incremental on it."""
    base = completed(name="base")
    first = completed(base, to_lsn=200, name="first")
    return [base, first, completed(first, to_lsn=300), completed(base, to_lsn=150)]


def test_all_descendants_go_and_nothing_else(store: SwiftStore) -> None:
    family, other = family_of_four(), completed()
    place(store, KEYS, *family, other, completed(other))
    put(store, Container.OBJECTS, "someone-elses", b"object")
    # Left by an interrupted attempt, and from a time when encryption was off.
    put(store, Container.SEGMENTS, segment_name(family[1].id, str(uuid4()), 7), b"left over")
    put(store, Container.OBJECTS, f"{family[1].id}.xbstream.gz", b"left over")
    before = held(store)
    meter, begun = Meter(), list[Record]()
    operation = deletion(store, meter=meter, on_begin=begun.append)
    last = operation.run(family[0].id)
    ids = [one.id for one in family]
    assert last == begun[0] == family[0].model_copy(update={"status": BackupStatus.DELETING})
    assert held(store) == before.without(*ids)
    first, *_, last_gone = operation.deleted
    assert (first.id, last_gone.id) == (ids[2], ids[0])
    assert sorted(kin.id for kin in operation.deleted) == sorted(ids)
    assert meter.stored_bytes == sum(
        row.size for name, row in before.segments.items() if name.startswith(tuple(ids))
    )


def test_an_incremental_goes_with_what_is_above_it_and_its_parent_stays(store: SwiftStore) -> None:
    family = family_of_four()
    place(store, KEYS, *family)
    before = held(store)
    deletion(store).run(family[1].id)
    assert held(store) == before.without(family[1].id, family[2].id)


def test_more_segments_than_one_page_of_a_listing(
    store: SwiftStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.operations.backup.abandon._BATCH", 7)
    monkeypatch.setattr(store._learnt.paging, "rows", 5)
    base = completed()
    place(store, KEYS, base, segments=23)
    deletion(store).run(base.id)
    assert held(store) == ({}, {})


def test_looking_changes_nothing(store: SwiftStore) -> None:
    family = family_of_four()
    place(store, KEYS, *family)
    before = held(store)
    found = deletion(store).family(family[0].id)
    assert len(found.plan()) == 4
    assert held(store) == before


@pytest.mark.parametrize(
    "status", [BackupStatus.FAILED, BackupStatus.CANCELLED, BackupStatus.DELETING]
)
def test_what_is_no_good_any_more_is_deleted_like_the_rest(
    store: SwiftStore, status: BackupStatus
) -> None:
    base = completed()
    place(store, KEYS, base, record(status=status, error=GIVEN_UP, parent_id=base.id))
    deletion(store, patience_seconds=60.0).run(base.id)
    assert held(store) == ({}, {})


def test_what_never_was_and_what_is_gone_look_the_same(store: SwiftStore) -> None:
    base = completed()
    with pytest.raises(BackupUnknown, match=base.id):
        deletion(store).run(base.id)
    place(store, KEYS, base)
    deletion(store).run(base.id)
    with pytest.raises(BackupUnknown, match=base.id):
        deletion(store).run(base.id)


# --- records that can't be trusted -------------------------------------------------------


def test_a_root_whose_record_is_damaged_is_refused_with_a_way_to_go_on(store: SwiftStore) -> None:
    base = completed()
    place(store, KEYS, base, completed(base))
    forged = KEYS.sign(base.model_dump_json().encode()).replace(b'"base"', b'"BASE"')
    put(store, Container.OBJECTS, record_name(base.id), forged)
    before = held(store)
    with pytest.raises(RecordDamaged, match=base.id) as raised:
        deletion(store).run(base.id)
    assert f"{base.id}.json last" in raised.value.hint
    assert held(store) == before


def test_a_damaged_descendant_is_named_and_left(
    store: SwiftStore, caplog: pytest.LogCaptureFixture
) -> None:
    base, other = completed(), completed()
    forged = completed(base)
    place(store, KEYS, base, other)
    place(store, keyring("k1", fill=9), forged)
    put(store, Container.OBJECTS, record_name(str(uuid4())), b"no record at all")
    before = held(store)
    with caplog.at_level(logging.WARNING):
        deletion(store).run(base.id)
    assert held(store) == before.without(base.id)
    [warning] = [one for one in caplog.messages if forged.id in one]
    assert f"claims to descend from backup {base.id}" in warning


def test_a_descendant_of_another_key_refuses_the_delete_before_it_begins(
    store: SwiftStore,
) -> None:
    base = completed()
    middle = completed(base, to_lsn=200)
    locked = completed(middle, keys=(WrappedKey(id="winter", wrapped=""),))
    place(store, KEYS, base, middle)
    place(store, keyring("winter"), locked)
    before = held(store)
    with pytest.raises(KeyNotHere, match="winter"):
        deletion(store).run(base.id)
    assert held(store) == before
    with pytest.raises(KeyNotHere, match="winter"):
        deletion(store).run(locked.id)


def test_a_record_that_the_store_fails_on_may_be_a_descendant(
    store: SwiftStore, swift: SwiftServer
) -> None:
    base = completed()
    child = completed(base)
    place(store, KEYS, base, child)
    before = held(store)
    swift.inject([{"method": "GET", "match": record_name(child.id), "times": 99, "status": 503}])
    with pytest.raises(StoreBusy):
        deletion(store).run(base.id)
    assert held(store) == before


# --- backups that are being made ---------------------------------------------------------


class Maker:
    """Another agent that makes a backup.

    It stops and marks the backup CANCELLED when it reads that the record is DELETING.
    """

    def __init__(self, store: SwiftStore, making: Record) -> None:
        self.catalogue = Catalogue(store, KEYS)
        self.making = making
        self.stopped = False

    def look(self) -> None:
        there = self.catalogue.read(self.making.id)
        if there and there.status is BackupStatus.DELETING:
            cancelled = {"status": BackupStatus.CANCELLED, "error": GIVEN_UP}
            self.catalogue.write(self.making.model_copy(update=cancelled))
            self.stopped = True


class StopWithMaker(Stop):
    """A Stop that lets the other agent act while the delete waits."""

    def __init__(self, maker: Maker) -> None:
        super().__init__()
        self.maker = maker

    def wait(self, seconds: float) -> None:
        self.maker.look()
        super().wait(0)


@pytest.mark.parametrize("root", [True, False])
def test_a_backup_in_the_making_is_waited_for(store: SwiftStore, root: bool) -> None:
    base = completed()
    making = record(parent_id=None if root else base.id)
    place(store, KEYS, base, making)
    maker = Maker(store, making)
    stop = StopWithMaker(maker)
    before = held(store)
    deletion(store, stop=stop, patience_seconds=60.0).run(making.id if root else base.id)
    assert maker.stopped
    gone = [making.id] if root else [making.id, base.id]
    assert held(store) == before.without(*gone)


def test_nobody_answers_for_a_backup_in_the_making(
    store: SwiftStore, caplog: pytest.LogCaptureFixture
) -> None:
    base = completed()
    making = record(parent_id=base.id)
    place(store, KEYS, base, making)
    deletion(store, patience_seconds=0.6).run(base.id)
    assert held(store) == ({}, {})
    told = f"have not reported that they stopped, and are deleted all the same: {making.id}"
    assert told in caplog.text


def test_whoever_waits_can_be_interrupted(store: SwiftStore) -> None:
    making = record()
    place(store, KEYS, making)
    stop = Stop()
    status = partial(lambda records: records.need(making.id).status, Catalogue(store, KEYS))
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(deletion(store, stop=stop, patience_seconds=60.0).run, making.id)
        poll("the mark", lambda: status() is BackupStatus.DELETING, 10)
        stop.request(Interrupted("the agent was told to stop"))
        with pytest.raises(Interrupted):
            stopping.result(timeout=5)
    assert status() is BackupStatus.DELETING


class AtCall:
    """A store that does something right before its call number `number`, counted from 1."""

    def __init__(self, store: Store, number: int, act: Callable[[], None]) -> None:
        self._store = store
        self.calls = 0
        self._number = number
        self._act = act
        self._lock = threading.Lock()

    def bound(self, stop: Interruption) -> Self:
        self._store = self._store.bound(stop)
        return self

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)
        if not callable(real):
            return real

        def call(*arguments: Any, **named: Any) -> Any:
            with self._lock:
                self.calls += 1
                due = self.calls == self._number
            if due:
                self._act()
            return real(*arguments, **named)

        return call


class Died(BaseException):
    """The end of the process. No code catches it."""


def test_a_delete_that_dies_before_any_call_is_completed_by_the_next(
    folder: DirectoryStore,
) -> None:
    """Only the delete's own calls are interrupted. tests/faults/crashes.py kills processes."""
    other = completed()
    place(folder, KEYS, other)
    before = held(folder)
    number, died = 0, True
    while died:
        number += 1
        base = completed()
        child = completed(base)
        place(folder, KEYS, base, child, segments=1)

        def die() -> None:
            raise Died

        try:
            deletion(AtCall(folder, number, die), connections=1).run(base.id)
            died = False
        except Died:
            left = held(folder)
            # A backup that still exists still has its parent.
            assert record_name(child.id) not in left.objects or record_name(base.id) in left.objects
            if record_name(base.id) in left.objects:
                deletion(folder).run(base.id)
        assert held(folder) == before, f"after it died at call {number}"
    assert number > 25


def test_a_backup_that_begins_meanwhile_goes_too(folder: DirectoryStore) -> None:
    base = completed()
    first, late = completed(base), completed(base)
    for number in range(1, 12):
        place(folder, KEYS, base, first)
        act = AtCall(folder, number, lambda: place(folder, KEYS, late))
        deletion(act, connections=1).run(base.id)
        assert held(folder).of(base.id) == []
        assert held(folder).of(late.id) == [], f"begun before call {number}"


def test_backups_that_never_stop_appearing(store: SwiftStore) -> None:
    base = completed()
    place(store, KEYS, base, completed(base))
    real = Catalogue(store, KEYS)

    class Busy(Catalogue):
        def forget(self, backup_id: str) -> None:
            real.forget(backup_id)
            place_record(store, KEYS, completed(base))

    operation = deletion(store)
    operation._catalogue = Busy(store, KEYS)
    with pytest.raises(BackupBusy, match="keep appearing"):
        operation.run(base.id)
    assert real.need(base.id).status is BackupStatus.DELETING


def test_a_record_that_was_completed_past_the_mark_goes_too(folder: DirectoryStore) -> None:
    """Its maker had read the record before the delete marked it. Swift leaves this window open."""
    making = record()
    late = making.model_copy(update={"status": BackupStatus.COMPLETED, "to_lsn": 100})
    place(folder, KEYS, making)
    counting = AtCall(folder, 0, lambda: None)
    deletion(counting, connections=1).run(making.id)
    # After the last read of the record, which is the call before the last, no check can help.
    for number in range(4, counting.calls):
        place(folder, KEYS, making)
        act = AtCall(folder, number, partial(place, folder, KEYS, late))
        deletion(act, connections=1).run(making.id)
        assert held(folder).of(making.id) == [], f"completed before call {number}"
