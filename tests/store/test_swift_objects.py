"""Objects and manifests that another program wrote: facts, ranges and rows on a real Swift."""

import json
import os
from typing import Any

import pytest
from swiftclient import client

from agent.errors import (
    StoreBusy,
    StoreError,
    StoreMismatch,
    StoreNotFound,
    StoreRejected,
    StoreUnreachable,
)
from agent.store.protocol import Container, ManifestEntry
from agent.store.swift.manifests import Piece
from agent.store.swift.objects import ObjectFacts
from agent.store.swift.store import SwiftStore
from tests.stack.swift import SwiftServer
from tests.store.conftest import MIB, MakeStore
from tests.store.contract import fresh, md5, views

ROWS = "multipart-manifest=get"
CONTENTS = [os.urandom(2 * MIB + 5), os.urandom(MIB), os.urandom(3 * MIB + 1)]
WHOLE = b"".join(CONTENTS)
ETAG = md5("".join(map(md5, CONTENTS)).encode())


def join(store: SwiftStore, name: str, contents: list[bytes]) -> list[ManifestEntry]:
    """Store an object as Trove does: its segments are in the same container."""
    entries = []
    for number, content in enumerate(contents):
        part = f"{name}_{number:08d}"
        entries.append(
            ManifestEntry(part, len(content), store.put(Container.OBJECTS, part, views(content)))
        )
    headers = {"X-Object-Meta-Lsn": "42"}
    store.put_manifest(Container.OBJECTS, name, entries, headers, segments=Container.OBJECTS)
    return entries


@pytest.fixture
def joined(store: SwiftStore) -> str:
    """Return the name of an object of three segments in the container of objects."""
    name = f"{fresh()}.xbstream.gz"
    join(store, name, CONTENTS)
    return name


def read(store: SwiftStore, name: str, first: int, count: int, etag: str = "") -> bytes:
    buffer = bytearray(count)
    etag = etag or store.describe(Container.OBJECTS, name).etag
    store.get_range(Container.OBJECTS, name, first, memoryview(buffer), etag)
    return bytes(buffer)


# --- containers ------------------------------------------------------------------------------


def test_only_the_one_container_is_made_and_a_view_reaches_others(
    swift: SwiftServer, make_store: MakeStore
) -> None:
    store = make_store(swift)
    other = store.in_container(f"trove-{fresh()}")
    other.create_container()
    other.put(Container.OBJECTS, "o", views(b"there"))
    assert other.get(Container.OBJECTS, "o", 9) == b"there"
    assert store.in_container(other.location.rpartition("/")[2]).location == other.location
    with pytest.raises(StoreNotFound):
        list(other.list(Container.SEGMENTS))
    with pytest.raises(StoreNotFound):
        store.get(Container.OBJECTS, "o", 9)
    assert other._session is store._session


# --- facts -----------------------------------------------------------------------------------


def test_the_facts_of_a_manifest(store: SwiftStore, joined: str) -> None:
    expected = ObjectFacts(ETAG, len(WHOLE), True, {"lsn": "42"}, 0.0)
    facts = store.describe(Container.OBJECTS, joined)
    assert facts.stored_at > 1.7e9
    assert facts == expected._replace(stored_at=facts.stored_at)
    with pytest.raises(StoreNotFound):
        store.describe(Container.OBJECTS, "not-there")


def test_the_facts_of_a_plain_object(swift: SwiftServer, store: SwiftStore, container: str) -> None:
    name = fresh()
    url, token = client.get_auth(swift.auth_url, swift.user, swift.key)
    metadata = {"Parent-Location": "http://h/v1/a/c/a%20b%2F", "Datastore": "süß 😀"}
    headers = {f"X-Object-Meta-{key}": value for key, value in metadata.items()}
    client.put_object(url, token, container, name, b"abc", headers=headers)
    facts = store.describe(Container.OBJECTS, name)
    assert facts[:3] == (md5(b"abc"), 3, False)
    assert facts.metadata == {key.lower(): value for key, value in metadata.items()}
    assert swift.requests()[-1].endswith(" newest")


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Length": "3"},
        {"Content-Length": "3", "Etag": ""},
        {"Content-Length": "-3", "Etag": "x"},
        {
            "Etag": "x",
            "Content-Length": "3",
            **{f"X-Object-Meta-{n}": "x" * 8000 for n in "abcdefghi"},
        },
    ],
    ids=["no-etag", "empty-etag", "size", "metadata"],
)
def test_facts_that_are_none_are_rejected(
    swift: SwiftServer, store: SwiftStore, headers: dict[str, str]
) -> None:
    name = fresh()
    swift.inject([{"match": name, "status": 200, "headers": headers}])
    with pytest.raises(StoreError) as caught:
        store.describe(Container.OBJECTS, name)
    assert type(caught.value) in (StoreRejected, StoreUnreachable)


# --- ranges ----------------------------------------------------------------------------------


def test_ranges_of_a_manifest_and_of_a_plain_object(store: SwiftStore, joined: str) -> None:
    plain, length = fresh(), len(WHOLE)
    store.put(Container.OBJECTS, plain, views(WHOLE))
    ranges = [(0, length), (0, 1), (2 * MIB, 2 * MIB), (length - 9, 9), (length, 0)]
    for name in (joined, plain):
        for first, count in ranges:
            assert read(store, name, first, count) == WHOLE[first : first + count]


@pytest.mark.parametrize(("first", "count"), [(-5, 10), (0, 10), (100, 1)])
def test_a_range_behind_the_end_is_refused(
    store: SwiftStore, joined: str, first: int, count: int
) -> None:
    with pytest.raises(StoreMismatch):
        read(store, joined, len(WHOLE) + first, count)


def test_an_object_that_was_replaced_is_not_read(store: SwiftStore, joined: str) -> None:
    etag = store.describe(Container.OBJECTS, joined).etag
    store.put(Container.OBJECTS, joined, views(WHOLE))
    with pytest.raises(StoreMismatch, match="was replaced"):
        read(store, joined, 5, MIB, etag)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"action": "cut", "after": MIB // 2}, StoreUnreachable),
        ({"action": "wrong_etag"}, StoreMismatch),
        ({"status": 503}, StoreBusy),
        ({"status": 200, "headers": {"Etag": ETAG}, "body": "x" * 5 * MIB}, StoreMismatch),
        (
            {"status": 206, "headers": {"Etag": ETAG, "Content-Range": "bytes 7-5242886/*"}},
            StoreMismatch,
        ),
    ],
    ids=["cut", "etag", "busy", "whole", "short"],
)
def test_a_range_is_requested_again_after_a_fault(
    swift: SwiftServer,
    store: SwiftStore,
    joined: str,
    fault: dict[str, Any],
    error: type[StoreError],
) -> None:
    etag = store.describe(Container.OBJECTS, joined).etag
    swift.inject([{"method": "GET", "match": joined, "times": 3, **fault}])
    assert read(store, joined, 7, 5 * MIB, etag) == WHOLE[7 : 7 + 5 * MIB]
    swift.inject([{"method": "GET", "match": joined, "times": 99, **fault}])
    with pytest.raises(error):
        read(store, joined, 7, 5 * MIB, etag)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_missing_segment_is_named(store: SwiftStore, joined: str, lost: int) -> None:
    etag, segment = store.describe(Container.OBJECTS, joined).etag, f"{joined}_{lost:08d}"
    store.delete(Container.OBJECTS, segment)
    with pytest.raises(StoreMismatch, match=f"the segment .*/{segment} is missing"):
        read(store, joined, 0, len(WHOLE), etag)
    store.put(Container.OBJECTS, segment, views(b"another"))
    with pytest.raises(StoreMismatch, match=f"the segment .*/{segment} is missing or was replaced"):
        read(store, joined, 0, len(WHOLE), etag)
    if lost != 2:
        assert read(store, joined, len(WHOLE) - MIB, MIB, etag) == WHOLE[-MIB:]


def test_an_object_that_is_gone_is_not_found(store: SwiftStore) -> None:
    with pytest.raises(StoreNotFound):
        read(store, "not-there", 0, 9, "0" * 32)


# --- rows ------------------------------------------------------------------------------------


def pieces(container: str, name: str, contents: list[bytes]) -> list[Piece]:
    return [
        Piece(container, f"{name}_{number:08d}", len(content), md5(content))
        for number, content in enumerate(contents)
    ]


def test_the_rows_of_a_manifest(store: SwiftStore, container: str, joined: str) -> None:
    assert store.manifest_rows(Container.OBJECTS, joined) == pieces(container, joined, CONTENTS)


def test_the_rows_of_nested_manifests(store: SwiftStore, container: str) -> None:
    name = f"{fresh()} ß%41"
    inner = []
    for number in range(2):
        part = f"{name}-{number}"
        size = sum(entry.size for entry in join(store, part, CONTENTS[number:]))
        etag = store.describe(Container.OBJECTS, part).etag
        inner.append(ManifestEntry(part, size, etag, nested=True))
    last = ManifestEntry(f"{name}-1_00000000", MIB, md5(CONTENTS[1]))
    outer = [*inner, last]
    store.put_manifest(Container.OBJECTS, name, outer, {}, segments=Container.OBJECTS)
    found = store.manifest_rows(Container.OBJECTS, name)
    assert found == [
        *pieces(container, inner[0].name, CONTENTS),
        *pieces(container, inner[1].name, CONTENTS[1:]),
        Piece(container, *last[:3]),
    ]
    above = ManifestEntry(name, store.describe(Container.OBJECTS, name).size, "")
    above = above._replace(etag=store.describe(Container.OBJECTS, name).etag)
    store.put_manifest(Container.OBJECTS, f"{name}+", [above], {}, segments=Container.OBJECTS)
    with pytest.raises(StoreRejected, match="2 levels"):
        store.manifest_rows(Container.OBJECTS, f"{name}+")
    # an inner manifest that was replaced is not the one that the outer joins
    join(store, inner[1].name, [b"another"])
    with pytest.raises(StoreMismatch, match="its rows have the ETag"):
        store.manifest_rows(Container.OBJECTS, name)
    store.put(Container.OBJECTS, inner[1].name, views(b"no manifest"))
    with pytest.raises(StoreMismatch, match="is not a manifest"):
        store.manifest_rows(Container.OBJECTS, name)
    store.delete(Container.OBJECTS, inner[1].name)
    with pytest.raises(StoreNotFound):
        store.manifest_rows(Container.OBJECTS, name)


def test_a_plain_object_has_no_rows(store: SwiftStore) -> None:
    name = fresh()
    store.put(Container.OBJECTS, name, views(b"[]"))
    with pytest.raises(StoreRejected, match="is not a manifest"):
        store.manifest_rows(Container.OBJECTS, name)


def test_a_store_that_shows_no_rows(swift: SwiftServer, store: SwiftStore, joined: str) -> None:
    """Ceph's gateway answers like this."""
    swift.inject([{"match": ROWS, "status": 200}])
    assert store.manifest_rows(Container.OBJECTS, joined) is None


def test_rows_of_ranges_and_of_data_are_refused(
    swift: SwiftServer, store: SwiftStore, container: str, joined: str
) -> None:
    path = f"/{container}/{joined}_00000000"
    url, token = client.get_auth(swift.auth_url, swift.user, swift.key)
    for rows in ([{"path": path, "range": "0-9"}], [{"path": path}, {"data": "YWJj"}]):
        name = fresh()
        query = "multipart-manifest=put"
        client.put_object(url, token, container, name, json.dumps(rows), query_string=query)
        with pytest.raises(StoreRejected, match="does not describe a whole object"):
            store.manifest_rows(Container.OBJECTS, name)


ROW = {"name": "/c/o", "bytes": 1, "hash": "0" * 32}


@pytest.mark.parametrize(
    "body",
    [
        "{",
        "{}",
        "[]",
        "[1]",
        "[" * 200_000,
        " " * (5 << 20),
        *(
            json.dumps([{**ROW, **wrong}])
            for wrong in (
                {"name": 1},
                {"name": "c/o"},
                {"name": "/c"},
                {"name": "/c/"},
                {"name": "//o"},
                {"name": "/c/../../b/o"},
                {"name": "/../o"},
                {"name": "/c/" + "o" * 5000},
                {"bytes": -1},
                {"bytes": True},
                {"bytes": "1"},
                {"hash": "0" * 31},
                {"hash": None},
            )
        ),
    ],
    ids=lambda body: str(body)[:60],
)
def test_rows_that_are_none_are_rejected(
    swift: SwiftServer, store: SwiftStore, joined: str, body: str
) -> None:
    headers = {"X-Static-Large-Object": "True"}
    swift.inject([{"match": ROWS, "status": 200, "headers": headers, "body": body, "times": 9}])
    with pytest.raises(StoreRejected):
        store.manifest_rows(Container.OBJECTS, joined)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"action": "cut", "after": 100}, StoreUnreachable),
        ({"status": 503}, StoreBusy),
        (
            {
                "status": 200,
                "body": json.dumps([ROW]),
                "headers": {"X-Static-Large-Object": "True"},
            },
            StoreMismatch,
        ),
    ],
    ids=["cut", "busy", "other-rows"],
)
def test_rows_are_requested_again_after_a_fault(
    swift: SwiftServer,
    store: SwiftStore,
    joined: str,
    fault: dict[str, Any],
    error: type[StoreError],
) -> None:
    swift.inject([{"match": ROWS, "times": 3, **fault}])
    assert store.manifest_rows(Container.OBJECTS, joined)
    swift.inject([{"match": ROWS, "times": 99, **fault}])
    with pytest.raises(error):
        store.manifest_rows(Container.OBJECTS, joined)
