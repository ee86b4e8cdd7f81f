"""Tests of segment lists and manifests, on a Swift that takes three entries a manifest."""

import hashlib
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given, strategies as st
from swiftclient.client import Connection

from agent.errors import DataDamaged, Internal, StoreBusy, StoreMismatch, StoreRejected
from agent.records import manifest as manifest_module
from agent.records.manifest import Manifest
from agent.records.object_names import (
    LIST_ENTRIES,
    Segment,
    decode_list,
    encode_list,
    list_name,
    list_ref,
    object_name,
    segment_name,
)
from agent.records.part_names import AttemptNames
from agent.store.protocol import Container, StoreLimits
from agent.store.swift.login import AuthV1
from agent.store.swift.store import SwiftSettings, SwiftStore
from tests.stack.fixtures_swift import need_swift
from tests.stack.swift import SwiftServer

ENTRIES = 3
CONTAINER = "manifests"
IDS = (str(uuid4()), str(uuid4()))


@pytest.fixture(scope="module")
def server(scratch: Path) -> Iterator[SwiftServer]:
    need_swift()
    server = SwiftServer(scratch / "swift-of-three", manifest_segments=ENTRIES)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def store(server: SwiftServer) -> Iterator[SwiftStore]:
    login = AuthV1(server.auth_url, server.user, server.key)
    store = SwiftStore(SwiftSettings(login, CONTAINER, attempts=1))
    store.open()
    yield store
    store.close()


class Attempt:
    """An attempt with small segments, and the manifest that joins them."""

    def __init__(self, store: SwiftStore, *, nesting: bool = True) -> None:
        store.open()
        limits = store.limits()
        assert limits.manifest_entries == ENTRIES
        assert limits.nesting
        self.ids = (str(uuid4()), str(uuid4()))
        self.bytes: dict[int, bytes] = {}
        self.store = store
        self.manifest = Manifest(store, limits._replace(nesting=nesting), AttemptNames(*self.ids))

    def put(self, number: int) -> None:
        data = f"segment {number} ".encode() * (number + 1)
        self.bytes[number] = data
        name = segment_name(*self.ids, number)
        md5 = self.store.put(Container.SEGMENTS, name, [memoryview(data)])
        self.manifest.add(number, Segment(len(data), md5))

    def joined(self) -> bytes:
        return b"".join(self.bytes[number] for number in sorted(self.bytes))

    def segments(self) -> list[Segment]:
        return [
            Segment(len(data), hashlib.md5(data).hexdigest())
            for _, data in sorted(self.bytes.items())
        ]

    def kinds(self) -> list[str]:
        """Return the kinds of objects in the container of segments, without the segments."""
        rows = self.store.list(Container.SEGMENTS, f"{self.ids[0]}/")
        names = (row.name.rsplit("/", 1)[1] for row in rows)
        return [name for name in names if not name.isdecimal()]


@pytest.fixture
def lists_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "LIST_ENTRIES", 4)


def _published(server: SwiftServer, name: str) -> tuple[dict[str, str], bytes]:
    """Return the headers and the body of an object, as any Swift client reads them."""
    connection = Connection(server.auth_url, server.user, server.key)
    try:
        headers, body = connection.get_object(CONTAINER, name)
        return headers, body
    finally:
        connection.close()


@pytest.mark.usefixtures("lists_of_four")
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9])
def test_the_published_object_is_the_joined_segments(
    server: SwiftServer, store: SwiftStore, count: int
) -> None:
    attempt = Attempt(store)
    numbers = list(range(count))
    random.Random(count).shuffle(numbers)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(attempt.put, numbers))
    finished = attempt.manifest.finish()
    assert finished.segments == count
    assert finished.stored_bytes == len(attempt.joined())
    assert attempt.manifest.publish({"X-Object-Meta-Lsn": "42"}) == finished.etag
    headers, body = _published(server, object_name(attempt.ids[0]))
    assert body == attempt.joined()
    assert headers["etag"].strip('"') == finished.etag
    assert headers["x-object-meta-lsn"] == "42"
    assert headers["x-static-large-object"] == "True"


@pytest.mark.usefixtures("lists_of_four")
@pytest.mark.parametrize("count", [1, 4, 5, 8])
def test_the_lists_name_every_segment(store: SwiftStore, count: int) -> None:
    attempt = Attempt(store)
    for number in random.Random(count).sample(range(count), count):
        attempt.put(number)
    finished = attempt.manifest.finish()
    assert [ref.count for ref in finished.lists] == {1: [1], 4: [4], 5: [4, 1], 8: [4, 4]}[count]
    found: list[Segment] = []
    for number, ref in enumerate(finished.lists):
        raw = store.get(Container.SEGMENTS, list_name(*attempt.ids, number), 1 << 20)
        found += decode_list(raw, ref)
    assert found == attempt.segments()


def test_lists_and_parts_are_written_while_segments_still_come(store: SwiftStore) -> None:
    attempt = Attempt(store)
    attempt.put(0)
    attempt.put(2)
    assert attempt.kinds() == []
    attempt.put(1)
    assert attempt.kinds() == ["slo-0000"]
    attempt.put(3)
    attempt.manifest.finish()
    assert attempt.kinds() == ["list-0000", "slo-0000", "slo-0001"]


def test_a_backup_of_few_segments_is_one_flat_manifest(store: SwiftStore) -> None:
    attempt = Attempt(store)
    attempt.put(0)
    attempt.put(1)
    finished = attempt.manifest.finish()
    assert attempt.kinds() == ["list-0000"]
    joined = "".join(segment.md5 for segment in attempt.segments())
    assert finished.etag == hashlib.md5(joined.encode()).hexdigest()


def test_more_than_two_floors_of_manifests_are_refused(store: SwiftStore) -> None:
    attempt = Attempt(store)
    for number in range(ENTRIES * ENTRIES + 1):
        attempt.put(number)
    with pytest.raises(StoreRejected, match="more than the 9 segments") as raised:
        attempt.manifest.finish()
    assert "segment_bytes" in raised.value.hint


def test_without_nesting_there_is_one_flat_manifest(server: SwiftServer, store: SwiftStore) -> None:
    attempt = Attempt(store, nesting=False)
    for number in range(ENTRIES):
        attempt.put(number)
    finished = attempt.manifest.finish()
    assert attempt.manifest.publish({}) == finished.etag
    assert attempt.kinds() == ["list-0000"]
    assert _published(server, object_name(attempt.ids[0]))[1] == attempt.joined()


def test_without_nesting_one_segment_too_many_is_refused_at_once(store: SwiftStore) -> None:
    attempt = Attempt(store, nesting=False)
    for number in range(ENTRIES):
        attempt.put(number)
    with pytest.raises(StoreRejected, match="more than the 3 segments") as raised:
        attempt.put(ENTRIES)
    assert "segment_bytes" in raised.value.hint


def test_a_segment_that_was_changed_since_is_not_published(store: SwiftStore) -> None:
    attempt = Attempt(store)
    attempt.put(0)
    attempt.put(1)
    attempt.manifest.finish()
    other = memoryview(attempt.bytes[1].upper())
    store.put(Container.SEGMENTS, segment_name(*attempt.ids, 1), [other])
    with pytest.raises(StoreMismatch):
        attempt.manifest.publish({})


@pytest.mark.parametrize("written", ["list-0000", "slo-0000"])
def test_a_list_or_part_that_can_not_be_stored_fails_the_segment(
    server: SwiftServer, store: SwiftStore, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    monkeypatch.setattr(manifest_module, "LIST_ENTRIES", ENTRIES)
    attempt = Attempt(store)
    attempt.put(0)
    attempt.put(1)
    server.inject([{"match": written, "method": "PUT", "status": 503}])
    try:
        with pytest.raises(StoreBusy, match=written):
            attempt.put(2)
    finally:
        server.clear_faults()


@pytest.mark.parametrize("numbers", [(0, 2), (1,), (0, 0), (0, 1, 1)])
def test_a_gap_or_a_repeated_segment_is_never_published(
    store: SwiftStore, numbers: tuple[int, ...]
) -> None:
    manifest = Manifest(store, StoreLimits(1000, 5 << 30, nesting=True), AttemptNames(*IDS))
    for number in numbers:
        manifest.add(number, Segment(1, "0" * 32))
    with pytest.raises(Internal):
        manifest.finish()


segments = st.lists(
    st.builds(
        Segment, st.integers(0, 10**12 - 1), st.binary(min_size=16, max_size=16).map(bytes.hex)
    ),
    min_size=1,
    max_size=20,
)


@given(segments)
def test_a_list_is_read_back_as_it_was_written(rows: list[Segment]) -> None:
    encoded = encode_list(rows)
    assert decode_list(encoded, list_ref(encoded)) == rows


@given(segments, st.data())
def test_a_changed_list_is_damage(rows: list[Segment], data: st.DataObject) -> None:
    encoded = bytearray(encode_list(rows))
    ref = list_ref(bytes(encoded))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DataDamaged):
        decode_list(bytes(encoded), ref)


@pytest.mark.parametrize("raw", [b"junk\n", b"1 " + b"g" * 32 + b"\n", b"-1 " + b"0" * 32 + b"\n"])
def test_lines_that_are_no_segments_are_damage_even_if_the_hash_fits(raw: bytes) -> None:
    with pytest.raises(DataDamaged, match="no segments"):
        decode_list(raw, list_ref(raw))


def test_a_list_of_another_length_is_damage() -> None:
    raw = encode_list([Segment(1, "0" * 32)])
    with pytest.raises(DataDamaged):
        decode_list(raw, list_ref(raw).model_copy(update={"count": 2}))


def test_lists_are_as_long_as_docs_say() -> None:
    assert LIST_ENTRIES == 1000
