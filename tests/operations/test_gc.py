"""The collection of orphans.

These tests cover each rule, each object that must stay, and a crash or another writer at any call.
"""

import itertools
import shutil
import threading
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.errors import Interrupted, StoreBusy
from agent.model import BackupStatus, Record, WrappedKey, utc_now
from agent.operations.gc.collect import CHANGED, GAP_SECONDS, GcOperation
from agent.operations.gc.orphans import Orphan, OrphanKind
from agent.records.catalogue import Catalogue
from agent.records.object_names import (
    checks_name,
    is_attempt_of,
    new_attempt,
    object_name,
    record_name,
    segment_name,
)
from agent.stop import Stop
from agent.store.directory.store import DirectoryStore
from agent.store.protocol import Container, Interruption, Store, StoredObject
from agent.store.swift.store import SwiftStore
from tests.operations.collecting import (
    DAY,
    GIVEN_UP,
    HOUR,
    KEYS,
    OTHER,
    UNFINISHED,
    age,
    collected,
    names,
    one_of_each,
    ours,
    ours_completed,
    place_segments,
)
from tests.operations.stored import held, place, put
from tests.records.made import INSTANCE, completed, keyring, record
from tests.stack.swift import SwiftServer


def summary(seen: list[Orphan]) -> list[tuple[OrphanKind, str, int]]:
    return [(one.what, one.backup_id, one.objects) for one in seen]


# --- ownership of attempts -----------------------------------------------------------------


def test_an_attempt_carries_the_mark_of_its_instance_alone() -> None:
    made = {new_attempt(INSTANCE) for _ in range(100)}
    assert len(made) == 100
    for attempt in made:
        assert uuid.UUID(attempt).version == 8
        assert uuid.UUID(attempt).variant == uuid.RFC_4122
        assert is_attempt_of(attempt, INSTANCE)
        assert not is_attempt_of(attempt, OTHER)
    assert not is_attempt_of(str(uuid.uuid4()), INSTANCE)
    assert not is_attempt_of("self-test", INSTANCE)
    as_random = str(uuid.UUID(int=uuid.UUID(new_attempt(INSTANCE)).int, version=4))
    assert not is_attempt_of(as_random, INSTANCE)


def test_the_mark_is_the_one_that_is_documented() -> None:
    # printf %s a17461ab-6c97-4abf-8890-9f8b10886ecc | sha256sum
    assert new_attempt(INSTANCE).replace("-", "")[:12] == "f1e1ef22faf9"


# --- orphans that are removed --------------------------------------------------------------


def test_segments_without_a_record_go_with_the_object_and_the_checks(
    folder: DirectoryStore,
) -> None:
    lost, kept = ours(), ours_completed()
    place(folder, KEYS, lost, kept)
    folder.delete(Container.OBJECTS, record_name(lost.id))
    age(folder)
    before = held(folder)
    assert summary(collected(folder)) == [(OrphanKind.NO_RECORD, lost.id, 6)]
    assert held(folder) == before.without(lost.id)


def test_older_attempts_go_whoever_has_the_id_now(folder: DirectoryStore) -> None:
    mine = ours_completed()
    theirs = completed(instance_id=OTHER, attempt=new_attempt(OTHER))
    place(folder, KEYS, mine, theirs)
    age(folder)
    before = held(folder)
    for one in (mine, theirs):
        for _ in range(2):
            place_segments(folder, one.id, new_attempt(INSTANCE))
    age(folder)
    seen = collected(folder)
    assert {one.backup_id for one in seen} == {mine.id, theirs.id}
    assert [(one.what, one.objects, len(one.attempts)) for one in seen] == [
        (OrphanKind.OLDER_ATTEMPT, 4, 2)
    ] * 2
    assert names(folder) == {name for container in before for name in container}


@pytest.mark.parametrize("status", [BackupStatus.FAILED, BackupStatus.CANCELLED])
def test_bytes_of_what_was_given_up_go_and_its_record_stays(
    folder: DirectoryStore, status: BackupStatus
) -> None:
    failed = ours(status=status, error=GIVEN_UP)
    # Made by a version without marks in its attempts. The record names the instance.
    unmarked = record(status=status, error=GIVEN_UP)
    place(folder, KEYS, failed, unmarked)
    place_segments(folder, failed.id, new_attempt(INSTANCE))
    age(folder)
    assert {one.what for one in collected(folder)} == {OrphanKind.GIVEN_UP}
    assert names(folder) == {
        name for one in (failed, unmarked) for name in (record_name(one.id), checks_name(one.id))
    }
    assert Catalogue(folder, KEYS).need(failed.id) == failed
    assert collected(folder) == []


def test_a_building_backup_without_a_task_becomes_failed(folder: DirectoryStore) -> None:
    cut_off = ours()
    place(folder, KEYS, cut_off)
    age(folder)
    assert summary(collected(folder)) == [(OrphanKind.INTERRUPTED, cut_off.id, 5)]
    left = Catalogue(folder, KEYS).need(cut_off.id)
    assert (left.status, left.attempt) == (BackupStatus.FAILED, cut_off.attempt)
    assert left.error is not None
    assert left.error.code == "interrupted"
    assert names(folder) == {record_name(cut_off.id), checks_name(cut_off.id)}


def test_without_a_journal_a_building_backup_has_seven_days(folder: DirectoryStore) -> None:
    cut_off = ours()
    place(folder, KEYS, cut_off)
    age(folder, seconds=6.9 * DAY)
    before = held(folder)
    assert [one.what for one in collected(folder, busy=None)] == [OrphanKind.LEFT_ALONE]
    assert held(folder) == before
    age(folder, seconds=0.2 * DAY)
    assert [one.what for one in collected(folder, busy=None)] == [OrphanKind.INTERRUPTED]


def test_a_delete_that_was_begun_is_finished_with_the_descendants(folder: DirectoryStore) -> None:
    base = ours_completed(status=BackupStatus.DELETING)
    child, other = ours_completed(base), ours_completed()
    place(folder, KEYS, base, child, other)
    age(folder)
    before = held(folder)
    seen = collected(folder)
    assert [(one.what, one.backup_id) for one in seen] == [(OrphanKind.DELETING, base.id)]
    assert held(folder) == before.without(base.id, child.id)


def test_remains_of_a_self_test_go(folder: DirectoryStore) -> None:
    mine, theirs = new_attempt(INSTANCE), new_attempt(OTHER)
    for made in (mine, theirs):
        put(folder, Container.OBJECTS, f"{made}.self-test", b"bytes")
        for number in range(3):
            put(folder, Container.SEGMENTS, segment_name(made, "self-test", number), b"bytes")
        put(folder, Container.OBJECTS, f"{made}.self-test-manifest", b"an object")
    age(folder)
    before = held(folder)
    assert summary(collected(folder)) == [(OrphanKind.SELF_TEST, mine, 5)]
    assert held(folder) == before.without(mine)


def test_a_dry_run_tells_the_same_and_changes_nothing(folder: DirectoryStore) -> None:
    lost, cut_off = ours(), ours()
    place(folder, KEYS, lost, cut_off)
    folder.delete(Container.OBJECTS, record_name(lost.id))
    age(folder)
    before = held(folder)
    told = collected(folder, dry_run=True)
    assert held(folder) == before
    assert told == collected(folder)
    assert held(folder) != before


# --- objects that stay ---------------------------------------------------------------------


def test_nothing_that_is_younger_than_a_day(folder: DirectoryStore) -> None:
    ids, _ = one_of_each(folder)
    age(folder, seconds=23.9 * HOUR)
    before = held(folder)
    assert collected(folder) == []
    assert held(folder) == before
    age(folder, seconds=0.2 * HOUR)
    assert sorted(one.backup_id for one in collected(folder)) == sorted(ids)


def test_one_young_segment_keeps_a_whole_backup(folder: DirectoryStore) -> None:
    ids, _ = one_of_each(folder)
    age(folder)
    for backup_id in ids:
        put(folder, Container.SEGMENTS, segment_name(backup_id, str(uuid.uuid4()), 7), b"young")
    before = held(folder)
    assert collected(folder) == []
    assert held(folder) == before


def test_what_was_verified_today_is_as_old_as_its_bytes(folder: DirectoryStore) -> None:
    done = ours_completed()
    place(folder, KEYS, done)
    place_segments(folder, done.id, new_attempt(INSTANCE))
    age(folder)
    put(folder, Container.OBJECTS, checks_name(done.id), b"{}")
    assert [one.what for one in collected(folder)] == [OrphanKind.OLDER_ATTEMPT]


def test_nothing_of_another_instance(folder: DirectoryStore) -> None:
    for status in (*UNFINISHED, BackupStatus.FAILED, BackupStatus.COMPLETED):
        theirs = record(status=status, instance_id=OTHER, attempt=new_attempt(OTHER))
        place(folder, KEYS, theirs)
        place_segments(folder, theirs.id, new_attempt(OTHER))
        place_segments(folder, theirs.id, str(uuid.uuid4()))
    for attempt in (new_attempt(OTHER), str(uuid.uuid4())):
        without = record(attempt=attempt)
        place(folder, KEYS, without)
        folder.delete(Container.OBJECTS, record_name(without.id))
    age(folder, seconds=30 * DAY)
    before = held(folder)
    assert collected(folder) == []
    assert held(folder) == before


@pytest.mark.parametrize(
    "with_it", [new_attempt(OTHER), str(uuid.uuid4())], ids=["marked", "unmarked"]
)
def test_beside_somebody_elses_segments_only_ours_go(folder: DirectoryStore, with_it: str) -> None:
    lost, failed = ours(), ours(status=BackupStatus.FAILED, error=GIVEN_UP)
    place(folder, KEYS, lost, failed)
    folder.delete(Container.OBJECTS, record_name(lost.id))
    for one in (lost, failed):
        place_segments(folder, one.id, with_it)
    age(folder)
    before = names(folder)
    assert sorted(one.objects for one in collected(folder)) == [4, 4]
    going = {name for name in before if lost.attempt in name or failed.attempt in name}
    assert names(folder) == before - going
    assert object_name(lost.id) in names(folder)


def test_names_that_nobody_knows_stay(folder: DirectoryStore) -> None:
    lost = ours()
    place_segments(folder, lost.id, lost.attempt)
    strangers = [
        (Container.SEGMENTS, f"{lost.id}/{lost.attempt}/notes"),
        (Container.SEGMENTS, f"{lost.id}/{lost.attempt}/00000000.old"),
        (Container.SEGMENTS, f"{lost.id}/else"),
        (Container.SEGMENTS, "else/00000000"),
        (Container.OBJECTS, f"{lost.id}.txt"),
        (Container.OBJECTS, "someone-elses"),
    ]
    for container, name in strangers:
        put(folder, container, name, b"mine")
    put(folder, Container.OBJECTS, object_name(lost.id), b"whose?")
    age(folder)
    assert summary(collected(folder)) == [(OrphanKind.NO_RECORD, lost.id, 2)]
    assert names(folder) == {name for _, name in strangers} | {object_name(lost.id)}


@pytest.mark.parametrize(
    ("keys", "word"), [(keyring(fill=9), "bad"), (keyring("winter"), "key-not-here"), (None, "bad")]
)
def test_a_record_that_cannot_be_trusted_keeps_all_of_its_backup(
    folder: DirectoryStore, keys: Any, word: str
) -> None:
    wrapped = (WrappedKey(id="winter", wrapped=""),)
    for status in (*UNFINISHED, BackupStatus.FAILED, BackupStatus.COMPLETED):
        forged = ours(status=status, keys=wrapped)
        place(folder, keys or KEYS, forged)
        place_segments(folder, forged.id, new_attempt(INSTANCE))
        if keys is None:
            put(folder, Container.OBJECTS, record_name(forged.id), b"no record at all")
    age(folder)
    before = held(folder)
    seen = collected(folder)
    assert [one.what for one in seen] == [OrphanKind.LEFT_ALONE] * 4
    assert all(word in one.why for one in seen)
    assert held(folder) == before


def test_what_a_task_is_at_work_on_stays(folder: DirectoryStore) -> None:
    every = [
        ours(status=status) for status in (*UNFINISHED, BackupStatus.FAILED, BackupStatus.CANCELLED)
    ]
    place(folder, KEYS, *every)
    age(folder)
    before = held(folder)
    seen = collected(folder, busy=frozenset(one.id for one in every))
    assert [one.what for one in seen] == [OrphanKind.LEFT_ALONE] * 4
    assert all("a task in the journal is working on it" in one.why for one in seen)
    assert held(folder) == before


def test_a_task_that_comes_while_it_collects_keeps_its_backup(folder: DirectoryStore) -> None:
    building = ours()
    place(folder, KEYS, building)
    age(folder)
    before = held(folder)
    answers = iter([frozenset[str](), frozenset({building.id})])
    [left] = GcOperation(
        folder,
        Catalogue(folder, KEYS),
        INSTANCE,
        busy=lambda: next(answers),
        connections=1,
        stop=Stop(),
    ).run()
    assert (left.what, left.why) == (OrphanKind.LEFT_ALONE, CHANGED)
    assert held(folder) == before


class Meddled:
    """A store in which some methods are replaced."""

    def __init__(self, store: Store, **replaced: Callable[..., Any]) -> None:
        self._store = store
        self._replaced = replaced

    def bound(self, stop: Interruption) -> "Meddled":
        return Meddled(self._store.bound(stop), **self._replaced)

    def __getattr__(self, name: str) -> Any:
        return self._replaced.get(name) or getattr(self._store, name)


def without(store: Store, name: str, *, listed: bool, found_by: int = 0) -> Any:
    """Return a store that doesn't find the object `name`, except in the read number `found_by`."""
    reads = itertools.count(1)

    def get(container: Container, wanted: str, limit: int) -> bytes:
        missing = wanted == name and next(reads) != found_by
        return store.get(container, "no-such" if missing else wanted, limit)

    def rows(container: Container, prefix: str = "") -> Iterator[StoredObject]:
        return (row for row in store.list(container, prefix) if listed or row.name != name)

    return Meddled(store, get=get, list=rows)


def test_a_record_that_some_look_does_not_find_is_no_missing_one(folder: DirectoryStore) -> None:
    """There are two reads and a listing. Each of them alone keeps a backup."""
    done = ours_completed()
    place(folder, KEYS, done)
    age(folder)
    before = held(folder)
    name = record_name(done.id)
    assert collected(without(folder, name, listed=False, found_by=1)) == []
    [changed] = collected(without(folder, name, listed=False, found_by=2))
    assert (changed.what, changed.why) == (OrphanKind.LEFT_ALONE, CHANGED)
    [left] = collected(without(folder, name, listed=True))
    assert left.what is OrphanKind.LEFT_ALONE
    assert "the listing shows a record" in left.why
    assert held(folder) == before
    [gone] = collected(without(folder, name, listed=False))
    assert (gone.what, gone.backup_id) == (OrphanKind.NO_RECORD, done.id)


def test_some_time_passes_between_the_two_reads(folder: DirectoryStore) -> None:
    waits: list[float] = []

    class Waiting(Stop):
        def wait(self, seconds: float) -> None:
            waits.append(seconds)
            raise Interrupted("while it waited")

    lost = ours()
    place_segments(folder, lost.id, lost.attempt)
    age(folder)
    before = held(folder)
    with pytest.raises(Interrupted):
        collected(folder, stop=Waiting(), gap_seconds=GAP_SECONDS)
    assert waits == [GAP_SECONDS]
    assert held(folder) == before


# --- other writers, and a crash at any call ------------------------------------------------


def at_call(store: Store, number: int, act: Callable[[], None]) -> tuple[Any, list[int]]:
    """Return a store that calls `act` right before its call `number`, and the count of its calls.

    The count is the only item of the list.
    """
    calls = [0]
    lock = threading.Lock()

    def counted(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with lock:
                calls[0] += 1
                due = calls[0] == number
            if due:
                act()
            return getattr(store, name)(*arguments, **named)

        return call

    methods = ("open", "clock", "list", "get", "put", "delete")
    return Meddled(store, **{name: counted(name) for name in methods}), calls


@pytest.mark.parametrize("failed_before", [True, False])
def test_a_backup_that_begins_meanwhile(folder: DirectoryStore, failed_before: bool) -> None:
    """Its record and its segments stay, no matter when it begins during the collection."""
    _, calls = begun_before_call(folder, 0, failed_before)
    for number in range(1, calls + 1):
        begun, _ = begun_before_call(folder, number, failed_before)
        there = Catalogue(folder, KEYS).need(begun.id)
        assert there == begun, f"begun before call {number}"
        assert sum(begun.attempt in name for name in names(folder)) == 2, f"call {number}"


def begun_before_call(
    folder: DirectoryStore, number: int, failed_before: bool
) -> tuple[Record, int]:
    failed = ours(status=BackupStatus.FAILED, error=GIVEN_UP)
    changes = {"attempt": new_attempt(INSTANCE), "error": None, "updated": utc_now()}
    begun = failed.model_copy(update={"status": BackupStatus.BUILDING} | changes)
    if failed_before:
        place(folder, KEYS, failed)
        age(folder, failed.id)

    def begin() -> None:
        Catalogue(folder, KEYS).begin(begun)
        place_segments(folder, begun.id, begun.attempt)

    # A listing shows the state at the time of its request, as the pages of a Swift do.
    listing = Meddled(folder, list=lambda *asked: iter(list(folder.list(*asked))))
    store, calls = at_call(listing, number, begin)
    collected(store, connections=1)
    return begun, calls[0]


class Died(BaseException):
    """The end of the process. No code catches it."""


def test_what_dies_before_any_call_is_completed_by_the_next_run(
    folder: DirectoryStore, tmp_path: Path
) -> None:
    place(folder, KEYS, ours_completed(), segments=1)
    kept = names(folder) | one_of_each(folder)[1]
    age(folder)
    number, died = 0, True
    while died:
        number += 1
        # This also copies the times and attributes.
        shutil.copytree(tmp_path / "store", tmp_path / str(number))
        store = DirectoryStore(tmp_path / str(number), "database_backups_x")

        def die() -> None:
            raise Died

        try:
            collected(at_call(store, number, die)[0], connections=1)
            died = False
        except Died:
            # The objects that it wrote must be a day old too.
            collected(Meddled(store, clock=lambda store=store: store.clock() + 25 * HOUR))
        assert names(store) == kept, f"after it died at call {number}"
    assert number > 40


def test_a_store_that_fails_in_between_ends_it(
    store: SwiftStore, swift: SwiftServer, later: Callable[[float], None]
) -> None:
    one_of_each(store)
    building = ours()
    place(store, KEYS, building)
    later(25 * HOUR)
    before = held(store)
    faults = [
        ("GET", record_name(building.id)),
        ("GET", r"_segments\?.*limit="),
        ("GET", r"database_backups_[0-9a-f]+\?.*limit="),
    ]
    for method, match in faults:
        rule = {"method": method, "match": match, "times": 99, "status": 503}
        swift.inject([rule, dated(25 * HOUR)])
        with pytest.raises(StoreBusy):
            collected(store)
        assert held_plainly(store, swift) == before


# --- the real store, and many objects ------------------------------------------------------


def dated(seconds: float) -> dict[str, Any]:
    """Return the rule that makes Swift date its answers `seconds` later."""
    return {"match": ".", "times": 1_000_000, "action": "date", "seconds": seconds}


def held_plainly(store: Store, swift: SwiftServer) -> Any:
    swift.clear_faults()
    return held(store)


@pytest.fixture
def later(swift: SwiftServer) -> Iterator[Callable[[float], None]]:
    """Yield a function that sets Swift's clock ahead by some seconds until the end of the test."""
    yield lambda seconds: swift.inject([dated(seconds)])
    swift.clear_faults()


def test_each_kind_on_a_real_swift_by_its_own_clock(
    store: SwiftStore, later: Callable[[float], None]
) -> None:
    kept = ours_completed()
    place(store, KEYS, kept)
    before = names(store)
    ids, stay = one_of_each(store)
    assert collected(store) == []
    later(23.9 * HOUR)
    assert collected(store) == []
    later(24.1 * HOUR)
    assert sorted(one.backup_id for one in collected(store)) == sorted(ids)
    assert names(store) == before | stay
    assert collected(store) == []


def test_memory_does_not_grow_with_the_segments(folder: DirectoryStore) -> None:
    lost, count = ours(), 20_000
    place_segments(folder, lost.id, lost.attempt, count=1)
    age(folder)
    [template] = folder.list(Container.SEGMENTS)

    def rows(container: Container, prefix: str = "") -> Iterator[StoredObject]:
        if container is Container.OBJECTS:
            return iter(())
        return (
            template._replace(name=segment_name(lost.id, lost.attempt, number))
            for number in range(count)
        )

    tracemalloc.start()
    try:
        [seen] = collected(Meddled(folder, list=rows), dry_run=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (seen.objects, seen.stored_bytes) == (count, 5 * count)
    assert peak < 1 << 20
