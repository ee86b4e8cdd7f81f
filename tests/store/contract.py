"""The promises of agent/store/protocol.py as tests that each kind of store inherits.

A subclass overrides the fixture `store` with an open store. Each test uses fresh names, so one
pair of containers serves all tests.
"""

import hashlib
import os
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from agent.errors import StoreMismatch, StoreNotFound, StoreRejected
from agent.store.protocol import Container, Joiner, ManifestEntry, Store, StoredObject

SLAB = 1 << 20


def views(*parts: bytes) -> list[memoryview]:
    return [memoryview(part) for part in parts]


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def fresh() -> str:
    return str(uuid.uuid4())


def put_segments(store: Store, folder: str, contents: Sequence[bytes]) -> list[ManifestEntry]:
    """Store each of `contents` as a segment, and return the entries that name them."""
    entries = []
    for number, content in enumerate(contents):
        name = f"{folder}/{number:08d}"
        etag = store.put(Container.SEGMENTS, name, views(content))
        entries.append(ManifestEntry(name, len(content), etag))
    return entries


def names(rows: Sequence[StoredObject]) -> list[str]:
    return [row.name for row in rows]


class StoreContract:
    """Tests that every store must pass."""

    @pytest.fixture
    def store(self) -> Store:
        raise AssertionError("a subclass names the store to test")

    def test_bytes_come_back_as_they_were_put(self, store: Store) -> None:
        name = fresh()
        parts = [os.urandom(SLAB), os.urandom(SLAB), b"", os.urandom(17)]
        content = b"".join(parts)
        assert store.put(Container.OBJECTS, name, views(*parts)) == md5(content)
        assert store.get(Container.OBJECTS, name, 4 * SLAB) == content

    def test_an_empty_object_is_an_object(self, store: Store) -> None:
        no_parts, empty_part = fresh(), fresh()
        store.put(Container.OBJECTS, no_parts, [])
        store.put(Container.OBJECTS, empty_part, views(b""))
        for name in (no_parts, empty_part):
            assert store.get(Container.OBJECTS, name, 10) == b""
            store.get_into(Container.OBJECTS, name, memoryview(bytearray()))

    def test_the_last_put_wins(self, store: Store) -> None:
        name = fresh()
        store.put(Container.OBJECTS, name, views(b"a longer first content"))
        store.put(Container.OBJECTS, name, views(b"second"))
        assert store.get(Container.OBJECTS, name, 100) == b"second"

    def test_get_is_bounded(self, store: Store) -> None:
        name = fresh()
        store.put(Container.OBJECTS, name, views(b"12345"))
        assert store.get(Container.OBJECTS, name, 5) == b"12345"
        with pytest.raises(StoreMismatch):
            store.get(Container.OBJECTS, name, 4)
        assert store.get(Container.OBJECTS, name, 5) == b"12345"

    def test_get_into_fills_the_buffer(self, store: Store) -> None:
        name, content = f"{fresh()}/{fresh()}/00000000", os.urandom(3 * SLAB + 5)
        store.put(Container.SEGMENTS, name, views(content[:SLAB], content[SLAB:]))
        buffer = bytearray(len(content) + 10)
        store.get_into(Container.SEGMENTS, name, memoryview(buffer)[10:])
        assert buffer == bytes(10) + content

    @pytest.mark.parametrize("size", [0, 4, 6])
    def test_get_into_wants_the_exact_length(self, store: Store, size: int) -> None:
        name = fresh()
        store.put(Container.SEGMENTS, name, views(b"12345"))
        with pytest.raises(StoreMismatch):
            store.get_into(Container.SEGMENTS, name, memoryview(bytearray(size)))

    def test_stat_tells_etag_and_size(self, store: Store) -> None:
        entries = put_segments(store, fresh(), [b"one", b"second"])
        assert store.stat(Container.SEGMENTS, entries[1].name) == (md5(b"second"), 6)
        store.delete(Container.SEGMENTS, entries[1].name)
        with pytest.raises(StoreNotFound):
            store.stat(Container.SEGMENTS, entries[1].name)

    def test_what_is_not_there_is_not_found(self, store: Store) -> None:
        with pytest.raises(StoreNotFound):
            store.get(Container.OBJECTS, fresh(), 10)
        with pytest.raises(StoreNotFound):
            store.get_into(Container.SEGMENTS, fresh(), memoryview(bytearray(1)))
        assert list(store.list(Container.OBJECTS, fresh())) == []

    def test_the_containers_are_apart(self, store: Store) -> None:
        name = fresh()
        store.put(Container.OBJECTS, name, views(b"object"))
        with pytest.raises(StoreNotFound):
            store.get(Container.SEGMENTS, name, 10)
        assert list(store.list(Container.SEGMENTS, name)) == []

    def test_a_listing_is_whole_and_in_order(self, store: Store) -> None:
        folder = fresh()
        put_segments(store, folder, [b"x" * number for number in range(12)])
        rows = list(store.list(Container.SEGMENTS, folder + "/"))
        assert names(rows) == [f"{folder}/{number:08d}" for number in range(12)]
        assert [row.size for row in rows] == list(range(12))
        assert [row.etag for row in rows] == [md5(b"x" * number) for number in range(12)]
        assert all(row.modified for row in rows)

    def test_a_prefix_is_no_folder(self, store: Store) -> None:
        stem = fresh()
        for name in (stem, stem + ".json", stem + "/inside", fresh()):
            store.put(Container.OBJECTS, name, views(b"x"))
        found = names(list(store.list(Container.OBJECTS, stem)))
        assert found == [stem, stem + ".json", stem + "/inside"]
        assert set(found) < set(names(list(store.list(Container.OBJECTS))))

    def test_names_come_back_in_the_order_of_their_bytes(self, store: Store) -> None:
        stem = fresh()
        parts = ["/1/a", "/1.json", "/1/b c", "/10", "/1-", "/é/ß", "/z", "/😀.x", "/100%", "/%41"]
        for part in parts:
            store.put(Container.SEGMENTS, stem + part, views(part.encode()))
        rows = list(store.list(Container.SEGMENTS, stem))
        assert names(rows) == sorted((stem + part for part in parts), key=str.encode)
        for part in parts:
            assert store.get(Container.SEGMENTS, stem + part, 20) == part.encode()
            store.delete(Container.SEGMENTS, stem + part)
        assert list(store.list(Container.SEGMENTS, stem)) == []

    def test_a_listing_says_when_an_object_was_put(self, store: Store) -> None:
        name, before = fresh(), time.time()
        store.put(Container.OBJECTS, name, views(b"x"))
        [row] = store.list(Container.OBJECTS, name)
        modified = datetime.fromisoformat(row.modified).replace(tzinfo=UTC).timestamp()
        assert before - 2 < modified < time.time() + 2

    def test_what_is_listed_may_be_deleted_meanwhile(self, store: Store) -> None:
        folder = fresh()
        put_segments(store, folder, [b"x"] * 12)
        gone = []
        for row in store.list(Container.SEGMENTS, folder):
            store.delete(Container.SEGMENTS, row.name)
            gone.append(row.name)
        assert gone == [f"{folder}/{number:08d}" for number in range(12)]
        assert list(store.list(Container.SEGMENTS, folder)) == []

    def test_delete_removes_and_repeats(self, store: Store) -> None:
        name = fresh()
        store.put(Container.OBJECTS, name, views(b"x"))
        for _ in range(2):
            store.delete(Container.OBJECTS, name)
        with pytest.raises(StoreNotFound):
            store.get(Container.OBJECTS, name, 10)
        assert list(store.list(Container.OBJECTS, name)) == []

    def test_threads_share_a_store(self, store: Store) -> None:
        folder = fresh()
        contents = [bytes([number]) * (SLAB + number) for number in range(12)]

        def there_and_back(number: int) -> bool:
            name = f"{folder}/{number:08d}"
            store.put(Container.SEGMENTS, name, views(contents[number]))
            buffer = bytearray(len(contents[number]))
            store.get_into(Container.SEGMENTS, name, memoryview(buffer))
            return bytes(buffer) == contents[number]

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(there_and_back, range(12)))
        assert len(list(store.list(Container.SEGMENTS, folder))) == 12

    def test_opening_again_changes_nothing(self, store: Store) -> None:
        name = fresh()
        store.put(Container.OBJECTS, name, views(b"kept"))
        store.open()
        assert store.get(Container.OBJECTS, name, 10) == b"kept"

    def test_opening_to_read_makes_nothing(self, store: Store) -> None:
        name = fresh()
        store.put(Container.OBJECTS, name, views(b"kept"))
        store.open(create=False)
        assert store.get(Container.OBJECTS, name, 10) == b"kept"
        assert store.limits() == store.limits()

    def test_the_clock_is_about_right(self, store: Store) -> None:
        before = time.time()
        assert before - 2 < store.clock() < time.time() + 2

    def test_the_location_is_a_url_without_an_end_slash(self, store: Store) -> None:
        assert "://" in store.location
        assert not store.location.endswith("/")


class JoiningContract(StoreContract):
    """Tests that every store must also pass that joins segments.

    `joined_rows` is True if a listing shows a manifest with the size and ETag of the joined object.
    """

    joined_rows = True

    @pytest.fixture
    def joiner(self, store: Store) -> Joiner:
        assert store.joiner is not None
        return store.joiner

    def test_a_manifest_joins_segments(self, store: Store, joiner: Joiner) -> None:
        folder = fresh()
        entries = put_segments(store, folder, [b"one", b"two", b"three"])
        etag = joiner.put_manifest(Container.OBJECTS, folder, entries, {"X-Object-Meta-Lsn": "5"})
        assert etag == md5("".join(entry.etag for entry in entries).encode())
        [row] = store.list(Container.OBJECTS, folder)
        assert ((row.size, row.etag) == (11, etag)) == self.joined_rows

    def test_a_manifest_joins_segments_beside_it(self, store: Store, joiner: Joiner) -> None:
        name, contents = fresh(), [b"one", b"second"]
        entries = []
        for number, content in enumerate(contents):
            etag = store.put(Container.OBJECTS, f"{name}_{number}", views(content))
            entries.append(ManifestEntry(f"{name}_{number}", len(content), etag))
        etag = joiner.put_manifest(Container.OBJECTS, name, entries, {}, segments=Container.OBJECTS)
        assert store.stat(Container.OBJECTS, name) == (etag, 9)

    def test_a_manifest_takes_the_place_of_what_was_there(
        self, store: Store, joiner: Joiner
    ) -> None:
        folder = fresh()
        entries = put_segments(store, folder, [b"one", b"two"])
        store.put(Container.OBJECTS, folder, views(b"an object"))
        for joined in (entries, entries[::-1]):
            etag = joiner.put_manifest(Container.OBJECTS, folder, joined, {})
            [row] = store.list(Container.OBJECTS, folder)
            assert (row.etag == etag) == self.joined_rows
        store.put(Container.OBJECTS, folder, views(b"an object"))
        assert store.get(Container.OBJECTS, folder, 10) == b"an object"

    def test_deleting_a_manifest_leaves_its_segments(self, store: Store, joiner: Joiner) -> None:
        folder = fresh()
        entries = put_segments(store, folder, [b"one", b"two"])
        joiner.put_manifest(Container.OBJECTS, folder, entries, {})
        store.delete(Container.OBJECTS, folder)
        assert list(store.list(Container.OBJECTS, folder)) == []
        assert store.get(Container.SEGMENTS, entries[0].name, 10) == b"one"
        assert len(list(store.list(Container.SEGMENTS, folder))) == 2

    def test_manifests_nest(self, store: Store, joiner: Joiner) -> None:
        folder = fresh()
        entries = put_segments(store, folder, [b"one", b"two", b"three"])
        inner = f"{folder}/slo-0000"
        etag = joiner.put_manifest(Container.SEGMENTS, inner, entries[:2], {})
        outer = [ManifestEntry(inner, 6, etag, nested=True), entries[2]]
        if not store.limits().nesting:
            with pytest.raises(StoreMismatch):
                joiner.put_manifest(Container.OBJECTS, folder, outer, {})
            return
        joined = joiner.put_manifest(Container.OBJECTS, folder, outer, {})
        assert joined == md5((etag + entries[2].etag).encode())

    @pytest.mark.parametrize(
        "wrong",
        [{"name": "not/there"}, {"size": 4}, {"etag": md5(b"another")}],
        ids=["missing", "size", "etag"],
    )
    def test_a_manifest_of_what_is_not_there_is_refused(
        self, store: Store, joiner: Joiner, wrong: dict[str, str | int]
    ) -> None:
        folder = fresh()
        first, second = put_segments(store, folder, [b"one", b"two"])
        with pytest.raises(StoreMismatch):
            joiner.put_manifest(Container.OBJECTS, folder, [first, second._replace(**wrong)], {})  # type: ignore[arg-type]
        with pytest.raises(StoreNotFound):
            store.get(Container.OBJECTS, folder, 100)

    def test_a_manifest_of_nothing_is_refused(self, store: Store, joiner: Joiner) -> None:
        name = fresh()
        with pytest.raises((StoreMismatch, StoreRejected)):
            joiner.put_manifest(Container.OBJECTS, name, [], {})
        with pytest.raises(StoreNotFound):
            store.get(Container.OBJECTS, name, 100)

    def test_stat_tells_etag_and_size_of_a_manifest(self, store: Store, joiner: Joiner) -> None:
        name = fresh()
        entries = put_segments(store, fresh(), [b"one", b"second"])
        etag = joiner.put_manifest(Container.OBJECTS, name, entries, {})
        assert store.stat(Container.OBJECTS, name) == (etag, 9)
