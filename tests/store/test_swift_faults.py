"""The Swift store with a Swift that fails: refusals, cut connections, false ETags, restarts."""

import json
import logging
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from agent.errors import (
    StoreBusy,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreMismatch,
    StoreNotFound,
    StoreRedirected,
    StoreRejected,
    StoreSilent,
    StoreUnreachable,
    TokenExpired,
    TokenRefused,
)
from agent.store.protocol import Container
from agent.store.swift.login import AuthToken
from agent.store.swift.store import SwiftStore
from tests.stack.process import poll
from tests.stack.swift import SwiftServer
from tests.store.conftest import MIB, MakeStore, settings_for
from tests.store.contract import fresh, put_segments, views
from tests.store.test_swift import logins

ATTEMPTS = 4
CONTENT = os.urandom(4 * MIB + 3)
PARTS = views(*(CONTENT[start : start + MIB] for start in range(0, len(CONTENT), MIB)))


def tries(server: SwiftServer, name: str, method: str = "PUT") -> int:
    return sum(line.startswith(method) and name in line for line in server.requests())


def stored(store: SwiftStore, name: str) -> bool:
    return store.get(Container.SEGMENTS, name, len(CONTENT)) == CONTENT


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503, "headers": {"Retry-After": "0"}},
        {"status": 500, "body": "<html><h1>Internal Error</h1></html>"},
        {"status": 408},
        {"status": 429},
        {"status": 498},
        {"status": 409},
        {"status": 422},
        {"action": "cut", "after": 2 * MIB},
        {"action": "cut", "after": 0},
        {"action": "wrong_etag"},
    ],
    ids=str,
)
def test_an_upload_is_repeated_whole(
    swift: SwiftServer, store: SwiftStore, fault: dict[str, Any]
) -> None:
    name = fresh()
    swift.inject([{"method": "PUT", "match": name, "times": 2, **fault}])
    store.put(Container.SEGMENTS, name, PARTS)
    assert tries(swift, name) == 3
    assert stored(store, name)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"status": 503}, StoreBusy),
        ({"status": 422}, StoreMismatch),
        ({"action": "wrong_etag"}, StoreMismatch),
        ({"action": "cut"}, StoreUnreachable),
    ],
    ids=str,
)
def test_attempts_are_bounded(
    swift: SwiftServer, store: SwiftStore, fault: dict[str, Any], error: type[StoreError]
) -> None:
    name = fresh()
    swift.inject([{"match": name, "times": 99, **fault}])
    with pytest.raises(error):
        store.put(Container.SEGMENTS, name, PARTS)
    assert tries(swift, name) == ATTEMPTS
    with pytest.raises(error):
        store.get_into(Container.SEGMENTS, name, memoryview(bytearray(len(CONTENT))))


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"status": 403}, StoreDenied),
        ({"status": 404}, StoreNotFound),
        ({"status": 400}, StoreRejected),
        ({"status": 413}, StoreRejected),
        ({"status": 413, "body": "Upload exceeds quota."}, StoreFull),
        ({"status": 507}, StoreFull),
        ({"status": 301, "headers": {"Location": "http://127.0.0.1:1/"}}, StoreRedirected),
    ],
    ids=str,
)
def test_a_final_refusal_is_not_repeated(
    swift: SwiftServer, store: SwiftStore, fault: dict[str, Any], error: type[StoreError]
) -> None:
    name = fresh()
    swift.inject([{"match": name, "times": 99, **fault}])
    with pytest.raises(error):
        store.put(Container.SEGMENTS, name, PARTS)
    assert tries(swift, name) == 1


@pytest.mark.parametrize("fault", [{"action": "cut", "after": 2 * MIB}, {"action": "wrong_etag"}])
def test_a_download_is_repeated_whole(
    swift: SwiftServer, store: SwiftStore, fault: dict[str, Any]
) -> None:
    name = fresh()
    store.put(Container.SEGMENTS, name, PARTS)
    swift.inject([{"method": "GET", "match": name, "times": 2, **fault}])
    buffer = bytearray(len(CONTENT))
    store.get_into(Container.SEGMENTS, name, memoryview(buffer))
    assert buffer == CONTENT
    assert tries(swift, name, "GET") == 3
    swift.inject([{"method": "GET", "match": name, "times": 2, **fault}])
    assert stored(store, name)


def test_a_refused_token_is_replaced(swift: SwiftServer, store: SwiftStore) -> None:
    name, before = fresh(), logins(swift)
    swift.inject([{"match": name, "status": 401}])
    store.put(Container.SEGMENTS, name, PARTS)
    assert logins(swift) == before + 1
    swift.inject([{"match": name, "status": 401, "times": 99}])
    with pytest.raises(TokenRefused):
        store.get(Container.SEGMENTS, name, len(CONTENT))
    assert logins(swift) == before + 1 + 4  # one for each attempt


def test_a_connection_cut_while_sending_may_have_been_a_refused_token(
    swift: SwiftServer, store: SwiftStore
) -> None:
    name, before = fresh(), logins(swift)
    swift.inject([{"match": name, "action": "cut", "after": MIB}])
    store.put(Container.SEGMENTS, name, PARTS)
    assert logins(swift) == before + 1


def test_a_silent_store_is_given_up(
    swift: SwiftServer, store: SwiftStore, make_store: MakeStore
) -> None:
    impatient, name = make_store(swift, timeout_seconds=0.3, attempts=2), fresh()
    swift.inject([{"match": name, "action": "stall", "seconds": 2, "times": 99}])
    for act in (
        lambda: impatient.put(Container.SEGMENTS, name, PARTS),
        lambda: impatient.put(Container.SEGMENTS, name, []),
        lambda: impatient.get(Container.SEGMENTS, name, 1),
    ):
        with pytest.raises(StoreSilent, match="timed out"):
            act()
    assert tries(swift, name) == 4


@pytest.fixture
def bare(swift: SwiftServer, store: SwiftStore) -> Iterator[SwiftStore]:
    """Yield a store on the same container that has only the token of the last login."""
    access = store._session._current_access()
    login = AuthToken(access.storage_url, access.token)
    made = SwiftStore(replace(settings_for(swift, store._container), login=login))
    yield made
    made.close()


def test_a_bare_token_that_is_refused_is_not_used_again(
    swift: SwiftServer, bare: SwiftStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token, name, before = bare._session._current_access().token, fresh(), logins(swift)
    bare.put(Container.SEGMENTS, name, PARTS)
    swift.inject([{"match": name, "status": 401}])
    with pytest.raises(TokenExpired) as caught:
        bare.put(Container.SEGMENTS, name, PARTS)
    assert (tries(swift, name), logins(swift)) == (2, before)
    told = "".join(traceback.format_exception(caught.value)) + caplog.text + repr(vars(bare))
    assert token not in told
    assert token not in repr(AuthToken("http://h", token))


def test_a_bare_token_whose_refusal_is_lost(swift: SwiftServer, bare: SwiftStore) -> None:
    name = fresh()
    cut = {"method": "PUT", "match": name, "action": "cut", "after": MIB, "times": 99}
    swift.inject([cut, {"method": "HEAD", "match": "", "status": 401}])
    with pytest.raises(TokenExpired):
        bare.put(Container.SEGMENTS, name, PARTS)
    assert tries(swift, name) == 1
    # a connection that is cut for any other reason gets another attempt
    swift.inject([{**cut, "times": 1}, {"method": "HEAD", "match": "", "status": 503}])
    bare.put(Container.SEGMENTS, name, PARTS)
    assert stored(bare, name)


@pytest.mark.parametrize(
    ("match", "act"),
    [
        ("prefix=x", lambda store: list(store.list(Container.OBJECTS, "x"))),
        ("^/info", lambda store: store.limits()),
        ("put-x", lambda store: store.put(Container.OBJECTS, "put-x", [])),
    ],
    ids=["listing", "info", "refusal"],
)
def test_answers_fill_no_memory(
    swift: SwiftServer, store: SwiftStore, match: str, act: Callable[[SwiftStore], Any]
) -> None:
    large = {"match": match, "status": 200, "body": " " * (5 * MIB), "times": 9}
    swift.inject([{**large, "status": 403 if match == "put-x" else 200}])
    with pytest.raises(StoreRejected, match="has more than"):
        act(store)
    bomb = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    swift.inject([{**large, "body": "x", "headers": bomb}])
    with pytest.raises(StoreRejected, match="compressed"):
        act(store)


def test_a_refusal_of_open_tags_takes_no_time(swift: SwiftServer, store: SwiftStore) -> None:
    name, text = fresh(), "<h1>Not today</h1>" + "<" * 300_000
    swift.inject([{"match": name, "status": 400, "body": text}])
    begin = time.process_time()
    with pytest.raises(StoreRejected, match=r"answered 400 \(Not today <"):
        store.put(Container.SEGMENTS, name, PARTS)
    assert time.process_time() - begin < 2


def test_a_store_that_comes_back_is_used_again(
    small_swift: SwiftServer, make_store: MakeStore
) -> None:
    store, name = make_store(small_swift, attempts=2), fresh()
    store.open()
    small_swift.kill()
    with pytest.raises(StoreUnreachable):
        store.put(Container.SEGMENTS, name, PARTS)
    small_swift.start()
    store.put(Container.SEGMENTS, name, PARTS)
    assert stored(store, name)


def test_a_frozen_store_is_waited_for(swift: SwiftServer, store: SwiftStore) -> None:
    name = fresh()
    with ThreadPoolExecutor(1) as pool:
        os.kill(swift.pid, signal.SIGSTOP)
        try:
            job = pool.submit(store.put, Container.SEGMENTS, name, PARTS)
            assert not job.done()
        finally:
            os.kill(swift.pid, signal.SIGCONT)
        job.result(timeout=30)
    assert stored(store, name)


def test_what_swift_lost_is_not_found(swift: SwiftServer, store: SwiftStore) -> None:
    name = fresh()
    swift.inject([{"match": name, "action": "lose"}])
    store.put(Container.SEGMENTS, name, PARTS)
    with pytest.raises(StoreNotFound):
        store.get(Container.SEGMENTS, name, len(CONTENT))


def test_lists_manifests_and_deletes_are_repeated(swift: SwiftServer, store: SwiftStore) -> None:
    folder = fresh()
    entries = put_segments(store, folder, [b"one", b"two"])
    busy = {"status": 503, "times": 1}
    swift.inject(
        [
            {"match": f"prefix={folder}", **busy},
            {"match": "multipart-manifest=put", **busy},
            {
                "match": "multipart-manifest=put",
                "status": 400,
                "body": f"{folder}: 404",
                "times": 1,
            },
            {"method": "DELETE", "match": folder, **busy},
        ]
    )
    assert len(list(store.list(Container.SEGMENTS, folder))) == 2
    store.put_manifest(Container.OBJECTS, folder, entries, {})
    store.delete(Container.OBJECTS, folder)
    for row in store.list(Container.SEGMENTS, folder):
        store.delete(Container.SEGMENTS, row.name)
    assert list(store.list(Container.SEGMENTS, folder)) == []


def test_abort_ends_the_waiting(swift: SwiftServer, make_store: MakeStore) -> None:
    store, name = make_store(swift, attempts=5, backoff_seconds=1000), fresh()
    store.open()
    swift.inject([{"match": name, "status": 503, "times": 99}])
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(store.put, Container.SEGMENTS, name, PARTS)
        poll("first attempt", lambda: tries(swift, name) == 1, 10)
        store.abort()
        with pytest.raises(StoreBusy):
            job.result(timeout=5)
    with pytest.raises(StoreBusy):
        store.put(Container.SEGMENTS, name, PARTS)
    assert tries(swift, name) == 2
    swift.clear_faults()
    store.put(Container.SEGMENTS, name, PARTS)


@pytest.mark.parametrize(
    "rows",
    [
        '[{"name": "x"}]',
        '[{"name": 1, "bytes": 1, "hash": "", "last_modified": ""}]',
        '[{"name": "x", "bytes": "1", "hash": "", "last_modified": ""}]',
        '[{"name": "x", "bytes": 1, "hash": "", "last_modified": 1}]',
        '[{"name": "y", "bytes": 1, "hash": "", "last_modified": ""}]',
        '["x"]',
        "{",
        "[" * 200_000,
    ],
)
def test_a_listing_that_names_nothing_is_rejected(
    swift: SwiftServer, store: SwiftStore, rows: str
) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    swift.inject([{"match": "prefix=x", "status": 200, "headers": headers, "body": rows}])
    with pytest.raises(StoreRejected):
        list(store.list(Container.OBJECTS, "x"))


def test_a_listing_that_stands_still_ends(swift: SwiftServer, store: SwiftStore) -> None:
    row = {"name": "x-same", "bytes": 1, "hash": "0" * 32, "last_modified": "2026-01-01"}
    headers = {"Content-Type": "application/json; charset=utf-8"}
    page = {"match": "prefix=x", "status": 200, "headers": headers, "body": json.dumps([row])}
    swift.inject([{**page, "times": 99}])
    with pytest.raises(StoreRejected, match="does not go on"):
        list(store.list(Container.OBJECTS, "x"))


def test_no_name_leads_out_of_its_container(swift: SwiftServer, store: SwiftStore) -> None:
    """Any client with write access beside the segments may give an object any name.

    The agent acts on the names in a listing, so a listing must hide such names.
    """
    folder, outside = fresh(), fresh()
    store.put(Container.OBJECTS, outside, PARTS[:1])
    container = store.location.rpartition("/")[2]
    odd = [f"{folder}/../../{container}/{outside}", f"{folder}/./{outside}", f"{folder}/.."]
    rows = [
        {"name": name, "bytes": 1, "hash": "0" * 32, "last_modified": "2026-01-01"}
        for name in (*odd, f"{folder}/..real")
    ]
    headers = {"Content-Type": "application/json; charset=utf-8"}
    page = {"match": "prefix=", "status": 200, "headers": headers, "body": json.dumps(rows)}
    swift.inject([page])
    found = [row.name for row in store.list(Container.SEGMENTS, folder)]
    assert found == [f"{folder}/..real"]
    # a listing must hide this name, because a delete of it deletes another object
    store.delete(Container.SEGMENTS, odd[0])
    assert list(store.list(Container.OBJECTS, outside)) == []


@pytest.mark.parametrize("date", ["", "Mon, 01 Jan 99999999999 00:00:00 GMT", "now"])
def test_a_clock_that_tells_no_time_is_rejected(
    swift: SwiftServer, store: SwiftStore, date: str
) -> None:
    swift.inject([{"match": ".", "method": "HEAD", "status": 204, "headers": {"Date": date}}])
    with pytest.raises(StoreRejected, match="Date header"):
        store.clock()
