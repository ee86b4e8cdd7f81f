"""Tests of reading all records of a container on a real Swift.

They cover the rows that are returned, the objects that are read, and the order of the requests.
"""

import threading
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from agent.cli import tables
from agent.errors import StoreBusy, StoreDenied, StoreUnreachable
from agent.keys.keyring import RecordState
from agent.model import BackupStatus, Record
from agent.records import catalogue as catalogue_module
from agent.records.cache import RecordCache
from agent.records.catalogue import Catalogue, ListedRecord
from agent.records.object_names import record_name
from agent.records.parsing import parse_record
from agent.records.reading import CONNECTIONS, RECORD_LIMIT
from agent.store.protocol import Container, ManifestEntry, StoredObject
from agent.store.swift.login import AuthV1
from agent.store.swift.store import SwiftSettings, SwiftStore
from tests.records.made import completed, keyring, record
from tests.stack.process import poll
from tests.stack.swift import SwiftServer

KEYS = keyring()
_WINDOW = 2 * CONNECTIONS
BUILDING, DELETING = BackupStatus.BUILDING, BackupStatus.DELETING


class Watched(SwiftStore):
    """A store on Swift that notes the objects that were read, and how many at a time."""

    def __init__(self, settings: SwiftSettings) -> None:
        super().__init__(settings)
        self.asked: list[str] = []
        self.at_once = 0
        self.stale: dict[str, str] = {}
        self.under_way = 0
        self._lock = threading.Lock()

    def get(self, container: Container, name: str, limit: int) -> bytes:
        with self._lock:
            self.asked.append(name)
            self.under_way += 1
            self.at_once = max(self.at_once, self.under_way)
        try:
            return super().get(container, name, limit)
        finally:
            with self._lock:
                self.under_way -= 1

    def list(self, container: Container, prefix: str = "") -> Iterator[StoredObject]:
        """Yield the rows of the listing. Names in `stale` get their former ETag."""
        for row in super().list(container, prefix):
            yield row._replace(etag=self.stale.get(row.name, row.etag))


@pytest.fixture
def store(swift: SwiftServer) -> Iterator[Watched]:
    """Yield a store with its own container."""
    name = f"listing-{uuid4()}"
    store = Watched(SwiftSettings(AuthV1(swift.auth_url, swift.user, swift.key), name, attempts=1))
    store.open()
    yield store
    store.close()


@pytest.fixture
def cache(tmp_path: Path) -> RecordCache:
    return RecordCache(tmp_path / "c.records")


def _put(store: SwiftStore, name: str, raw: bytes) -> None:
    store.put(Container.OBJECTS, name, [memoryview(raw)])


def _place(store: SwiftStore, *records: Record) -> None:
    for one in records:
        _put(store, record_name(one.id), KEYS.sign(one.model_dump_json().encode()))


def _many(store: SwiftStore, count: int) -> list[Record]:
    """Store `count` records and return them in the order of their ids."""
    made = [completed(id=str(UUID(int=number)), name=f"n{number}") for number in range(count)]
    _place(store, *made)
    return made


def _states(store: SwiftStore) -> dict[str, RecordState]:
    return {row.backup_id: row.state for row in Catalogue(store, KEYS).records()}


# --- the objects of the container --------------------------------------------------------


def test_whatever_lies_in_the_container(store: Watched) -> None:
    good = sorted([completed(), record(), completed()], key=lambda one: one.id)
    _place(store, *good)
    huge, bad = completed(), completed()
    _put(store, record_name(huge.id), bytes(RECORD_LIMIT + 1))
    raw = KEYS.sign(bad.model_dump_json().encode())
    _put(store, record_name(bad.id), raw.replace(b'"name":"base"', b'"name":"best"'))
    for name in (
        f"{good[0].id}.xbstream.gz.enc",
        f"{good[0].id}.checks.json",
        good[0].id,
        ".json",
        "notes.json",
        f"{good[0].id.upper()}.json",
        f"{{{good[0].id}}}.json",
        "größe/備份.json",
    ):
        _put(store, name, b"junk")
    listed = list(Catalogue(store, KEYS).records())
    assert [row.backup_id for row in listed] == sorted(one.id for one in [*good, huge, bad])
    assert [row.record for row in listed if row.state is RecordState.OK] == good
    doubted = {row.backup_id: row.record for row in listed if row.state is RecordState.BAD}
    assert doubted == {huge.id: None, bad.id: bad.model_copy(update={"name": "best"})}
    assert record_name(huge.id) not in store.asked


def test_what_nobody_vouches_for_is_not_parsed_at_any_size(
    store: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[int] = []
    parse = parse_record

    def counting(backup_id: str, line: bytes) -> Record:
        parsed.append(len(line))
        return parse(backup_id, line)

    monkeypatch.setattr(catalogue_module, "parse_record", counting)
    lists = b'{"format":1,"lists":[' + b"0," * 1_000_000 + b"0]}"
    unsigned, foreign = str(uuid4()), str(uuid4())
    _put(store, record_name(unsigned), lists)
    _put(store, record_name(foreign), keyring("k9", fill=9).sign(lists))
    states = {row.backup_id: (row.state, row.record) for row in Catalogue(store, KEYS).records()}
    assert states == {
        unsigned: (RecordState.BAD, None),
        foreign: (RecordState.KEY_NOT_HERE, None),
    }
    assert parsed == []


def test_an_object_that_is_no_record_does_not_hide_the_others(store: Watched) -> None:
    good, joined, broken = completed(), str(uuid4()), str(uuid4())
    _place(store, good)
    etag = store.put(Container.SEGMENTS, "part", [memoryview(b"{}")])
    gone = store.put(Container.SEGMENTS, "gone", [memoryview(b"{}")])
    # The ETag of a manifest is not the MD5 of the bytes that a reader gets.
    for name, entry in {
        joined: ManifestEntry("part", 2, etag),
        broken: ManifestEntry("gone", 2, gone),
    }.items():
        store.put_manifest(Container.OBJECTS, record_name(name), [entry], headers={})
    # Swift answers 409 for a manifest whose segments it doesn't find
    store.delete(Container.SEGMENTS, "gone")
    bad = RecordState.BAD
    assert _states(store) == {good.id: RecordState.OK, joined: bad, broken: bad}


def test_an_empty_container(store: Watched) -> None:
    assert list(Catalogue(store, KEYS).records()) == []


def test_a_record_that_vanishes_while_it_is_listed_is_left_out(store: Watched) -> None:
    made = _many(store, 2 * _WINDOW)
    rows = Catalogue(store, KEYS).records()
    assert next(rows).record == made[0]
    store.delete(Container.OBJECTS, record_name(made[-1].id))
    assert [row.record for row in rows] == made[1:-1]


# --- a store that fails ------------------------------------------------------------------


def _fault(name: str, **rule: Any) -> list[dict[str, Any]]:
    return [{"match": name, "method": "GET", "times": 1000, **rule}]


@pytest.mark.parametrize("status", [503, 409, 416, 400])
def test_what_the_store_can_not_give_of_one_object(
    store: Watched, swift: SwiftServer, status: int
) -> None:
    made = _many(store, 3)
    swift.inject(_fault(made[1].id, status=status))
    rows = list(Catalogue(store, KEYS).records())
    assert [row.backup_id for row in rows] == [one.id for one in made]
    assert [row.state for row in rows] == [RecordState.OK, RecordState.BAD, RecordState.OK]
    shown = tables.row(rows[1])
    # 409 means that the object exists, but its parts don't fit together.
    state = {503: "store_busy", 409: "bad"}.get(status, "store_rejected")
    assert shown["status"] == ("UNREADABLE" if status == 409 else "NOT READ")
    assert (shown["record_state"], shown["name"]) == (state, None)


def test_bytes_that_are_not_the_stored_ones(store: Watched, swift: SwiftServer) -> None:
    made = _many(store, 2)
    swift.inject(_fault(made[0].id, action="wrong_etag"))
    assert list(_states(store).values()) == [RecordState.BAD, RecordState.OK]
    first = next(Catalogue(store, KEYS).records())
    assert tables.row(first)["status"] == "UNREADABLE"


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        ({"status": 503}, StoreBusy),
        ({"status": 403}, StoreDenied),
        ({"action": "cut", "after": 0}, StoreUnreachable),
    ],
)
def test_a_store_that_is_away_is_an_error(
    store: Watched, swift: SwiftServer, rule: dict[str, Any], error: type[Exception]
) -> None:
    _many(store, 12)
    swift.inject(_fault(r"^[^?]*\.json", **rule))
    with pytest.raises(error):
        list(Catalogue(store, KEYS).records())


def test_many_that_can_not_be_read_hide_no_other(store: Watched, swift: SwiftServer) -> None:
    made = _many(store, 12)
    lost = made[:7] + made[8:]
    # The id is also in the query that continues the container's listing.
    swift.inject([rule for one in lost for rule in _fault(f"/{one.id}", status=503)])
    assert _states(store)[made[7].id] is RecordState.OK
    swift.inject(_fault(r"^[^?]*\.json", status=409))
    assert set(_states(store).values()) == {RecordState.BAD}


def test_a_listing_that_breaks_off_is_an_error(store: Watched, swift: SwiftServer) -> None:
    _many(store, 3)
    swift.inject(_fault("marker=", status=503))
    with pytest.raises(StoreBusy):
        list(Catalogue(store, KEYS).records())


# --- how it is read ----------------------------------------------------------------------


def test_several_are_read_at_a_time_and_few_wait(store: Watched, swift: SwiftServer) -> None:
    made = _many(store, 3 * _WINDOW)
    rows = Catalogue(store, KEYS).records()
    assert [row.record for row in islice(rows, 3)] == made[:3]
    # The window is full. Two of its records were returned, and two others took their places.
    poll("all asked for", lambda: store.under_way == 0 and len(store.asked) == _WINDOW + 2, 20)
    assert 1 < store.at_once <= CONNECTIONS
    assert isinstance(rows, Generator)
    rows.close()
    assert len(store.asked) == _WINDOW + 2


def test_the_order_is_that_of_names_whatever_comes_first(
    store: Watched, swift: SwiftServer
) -> None:
    made = _many(store, _WINDOW)
    swift.inject(
        [{"match": made[0].id, "method": "GET", "times": 1, "action": "stall", "seconds": 0.3}]
    )
    assert [row.record for row in Catalogue(store, KEYS).records()] == made


# --- with a cache ------------------------------------------------------------------------


def _asked(store: Watched, cache: RecordCache) -> tuple[list[Record | None], list[str]]:
    """Return the records of one listing, and the ids that were read from the store."""
    store.asked.clear()
    rows = [row.record for row in Catalogue(store, KEYS, cache).records()]
    return rows, sorted(name.removesuffix(".json") for name in store.asked)


def test_what_is_cached_is_not_read_again(store: Watched, cache: RecordCache) -> None:
    made: list[Record | None] = [*_many(store, 2 * _WINDOW)]
    ids = [one.id for one in made if one]
    assert _asked(store, cache) == (made, ids)
    assert _asked(store, cache) == (made, [])
    assert _asked(store, cache) == (made, [])


@pytest.mark.parametrize("status", [BUILDING, DELETING])
def test_what_is_at_work_is_read_each_time(
    store: Watched, cache: RecordCache, status: BackupStatus
) -> None:
    one, other = _many(store, 2)
    _place(store, at_work := one.model_copy(update={"status": status}))
    assert _asked(store, cache) == ([at_work, other], [one.id, other.id])
    # This listing lags behind its objects for ever.
    [row, _] = store.list(Container.OBJECTS)
    store.stale[row.name] = row.etag
    _place(store, one)
    assert _asked(store, cache) == ([one, other], [one.id])


def test_a_changed_record_is_read_again_and_a_deleted_one_forgotten(
    store: Watched, cache: RecordCache, tmp_path: Path
) -> None:
    first, second, third = _many(store, 3)
    _asked(store, cache)
    _place(store, renamed := second.model_copy(update={"name": "other"}))
    store.delete(Container.OBJECTS, record_name(third.id))
    assert _asked(store, cache) == ([first, renamed], [second.id])
    assert _asked(store, cache) == ([first, renamed], [])
    assert third.id.encode() not in (tmp_path / "c.records").read_bytes()


def test_a_record_is_cached_as_what_it_is_not_as_what_the_listing_says(
    store: Watched, cache: RecordCache
) -> None:
    [one] = _many(store, 1)
    [row] = store.list(Container.OBJECTS)
    store.stale[row.name] = row.etag
    _place(store, renamed := one.model_copy(update={"name": "other"}))
    assert _asked(store, cache) == ([renamed], [one.id])
    # The listing still shows the ETag of the former record, and other bytes were read.
    assert _asked(store, cache) == ([renamed], [one.id])
    store.stale.clear()
    assert _asked(store, cache) == ([renamed], [])


def test_what_is_cached_is_checked_like_any_other(store: Watched, cache: RecordCache) -> None:
    [one] = _many(store, 1)
    _asked(store, cache)
    for keys, state in [
        (keyring("k9", fill=9), RecordState.KEY_NOT_HERE),
        (keyring("k1", fill=9), RecordState.OTHER_KEY),
    ]:
        store.asked.clear()
        [row] = Catalogue(store, keys, cache).records()
        assert row == ListedRecord(one.id, state, one)
        assert store.asked == []


def test_a_listing_that_was_cut_off_leaves_the_cache_as_it_was(
    store: Watched, cache: RecordCache, swift: SwiftServer, tmp_path: Path
) -> None:
    made = _many(store, _WINDOW)
    _asked(store, cache)
    before = (tmp_path / "c.records").read_bytes()
    _place(store, made[3].model_copy(update={"name": "other"}))
    swift.inject(_fault(made[3].id, status=403))
    with pytest.raises(StoreDenied):
        _asked(store, cache)
    rows = Catalogue(store, KEYS, cache).records()
    next(rows)
    assert isinstance(rows, Generator)
    rows.close()
    assert (tmp_path / "c.records").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["c.records"]
