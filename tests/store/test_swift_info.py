"""The limits that a store announces at /info, and the work that is possible without them."""

import json
from typing import Any

import pytest

from agent.errors import StoreMismatch, StoreNotFound, StoreRejected
from agent.records.manifest import Manifest
from agent.records.object_names import Segment
from agent.records.part_names import AttemptNames
from agent.store.protocol import Container, StoreLimits
from agent.store.swift.store import SwiftStore
from tests.stack.swift import SwiftServer
from tests.store.conftest import MakeStore
from tests.store.contract import fresh, put_segments, views

# the limits that Ceph's gateway announces: RGWInfo_ObjStore_SWIFT in its rgw_rest_swift.cc
CEPH = {
    "swift": {"max_file_size": 5 << 30, "container_listing_limit": 10000},
    "slo": {"max_manifest_segments": 1000},
}
HTML = "<html>welcome</html>"
# the answers of a Swift with expose_info = false, and of gateways that pass on only /auth and /v1
HIDING: list[dict[str, Any]] = [{"status": 403}, {"status": 404, "body": HTML}, {"status": 405}]
NO_INFO: list[dict[str, Any]] = [*HIDING, {"status": 200, "body": HTML}, {"action": "cut"}]


def answer(server: SwiftServer, rule: dict[str, Any]) -> None:
    server.inject([{"match": "^/info", "times": 9999, **rule}])


def announce(server: SwiftServer, info: str) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    answer(server, {"status": 200, "headers": headers, "body": info})


def test_no_nesting_where_only_the_number_of_segments_is_announced(
    swift: SwiftServer, store: SwiftStore
) -> None:
    announce(swift, json.dumps(CEPH))
    assert store.limits() == StoreLimits(1000, 5 << 30, nesting=False)


@pytest.mark.parametrize(
    "info",
    [
        '{"swift": {}}',
        HTML,
        "",
        "[]",
        '{"swift": 1, "slo": {}}',
        '{"slo": {"max_manifest_segments": "1000"}}',
        '{"slo": {"max_manifest_segments": true}}',
        '{"slo": {}, "swift": {"max_file_size": null}}',
    ],
)
def test_limits_that_are_none_are_rejected(
    swift: SwiftServer, store: SwiftStore, info: str
) -> None:
    announce(swift, info)
    with pytest.raises(StoreRejected, match="/info"):
        store.limits()


@pytest.mark.parametrize("rule", NO_INFO, ids=str)
def test_only_a_manifest_needs_to_know_the_limits(
    swift: SwiftServer, store: SwiftStore, make_store: MakeStore, rule: dict[str, Any]
) -> None:
    answer(swift, rule)
    reader, folder = make_store(swift), fresh()
    reader.open(create=False)
    for entry in put_segments(store, folder, [b"one", b"two"]):
        reader.get_into(Container.SEGMENTS, entry.name, memoryview(bytearray(3)))
        reader.delete(Container.SEGMENTS, entry.name)
    assert list(reader.list(Container.SEGMENTS, folder)) == []
    assert reader.clock() > 0


@pytest.mark.parametrize("rule", HIDING, ids=str)
def test_what_every_store_can_do_is_taken_for_granted(
    swift: SwiftServer, make_store: MakeStore, rule: dict[str, Any]
) -> None:
    answer(swift, rule)
    store, folder = make_store(swift), fresh()
    store.open()
    assert store.limits() == StoreLimits(1000, 5 << 30, nesting=False, announced=False)
    entries = put_segments(store, folder, [b"one", b"two"])
    etag = store.put_manifest(Container.OBJECTS, folder, entries, {})
    [row] = store.list(Container.OBJECTS, folder)
    assert (row.etag, row.size) == (etag, 6)
    store.put(Container.SEGMENTS, entries[0].name, views(b"ONE"))
    with pytest.raises(StoreMismatch):
        store.put_manifest(Container.OBJECTS, f"{folder}.other", entries, {})
    with pytest.raises(StoreNotFound):
        store.get(Container.OBJECTS, f"{folder}.other", 10)


def test_a_store_that_joins_less_than_is_taken_for_granted_says_so(
    small_swift: SwiftServer, make_store: MakeStore
) -> None:
    """Such a backup fails at its end, and leaves nothing that looks usable."""
    answer(small_swift, HIDING[0])
    try:
        store, backup_id = make_store(small_swift), fresh()
        store.open()
        manifest = Manifest(store, store.limits(), AttemptNames(backup_id, "attempt"))
        for number, entry in enumerate(put_segments(store, f"{backup_id}/attempt", [b"x"] * 5)):
            manifest.add(number, Segment(entry.size, entry.etag))
        manifest.finish()
        with pytest.raises(StoreRejected, match="Number of object-backed segments"):
            manifest.publish({})
        assert list(store.list(Container.OBJECTS, backup_id)) == []
        # this Swift gives 5 rows a page, and refuses a request for more
        assert len(list(store.list(Container.SEGMENTS, backup_id))) == 6
    finally:
        small_swift.clear_faults()
