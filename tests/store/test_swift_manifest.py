"""Manifests that Swift validates slowly, and answers that tell the result late or never."""

import json
from typing import Any

import pytest

from agent.errors import (
    StoreBusy,
    StoreError,
    StoreFull,
    StoreMismatch,
    StoreRejected,
    StoreUnreachable,
)
from agent.store.protocol import Container
from agent.store.swift.store import SwiftStore
from tests.stack.swift import SwiftServer
from tests.store.conftest import MakeStore
from tests.store.contract import fresh, put_segments

PUT = "multipart-manifest=put"


def test_a_validation_that_takes_longer_than_a_silence_may(
    swift: SwiftServer, store: SwiftStore, make_store: MakeStore
) -> None:
    folder = fresh()
    entries = put_segments(store, folder, [b"x"] * 6)
    # Swift checks two of the six segments at a time, which takes 1.5 seconds
    head = {"method": "HEAD", "match": f"{folder}/", "action": "stall", "seconds": 0.5, "times": 6}
    swift.inject([{**head, "inner": True}])
    impatient = make_store(swift, timeout_seconds=1, attempts=1)
    assert impatient.limits().nesting
    etag = impatient.put_manifest(Container.OBJECTS, folder, entries, {"X-Object-Meta-Lsn": "5"})
    [row] = store.list(Container.OBJECTS, folder)
    assert (row.size, row.etag) == (6, etag)


@pytest.mark.parametrize(
    ("method", "status", "error"),
    [
        ("PUT", 503, StoreBusy),
        ("PUT", 507, StoreFull),
        ("PUT", 413, StoreRejected),
        ("HEAD", 404, StoreMismatch),
        ("HEAD", 503, StoreMismatch),
    ],
)
def test_a_refusal_in_the_body_is_one(
    swift: SwiftServer, store: SwiftStore, method: str, status: int, error: type[StoreError]
) -> None:
    """The answer begins with status 202, which Swift sends before it knows the result."""
    folder = fresh()
    entries = put_segments(store, folder, [b"one", b"two"])
    rule = {"method": method, "match": folder, "status": status, "inner": True}
    store.limits()
    swift.inject([{**rule, "times": 99}])
    with pytest.raises(error, match=str(status)):
        store.put_manifest(Container.OBJECTS, folder, entries, {})
    if error in (StoreBusy, StoreMismatch):
        swift.inject([{**rule, "times": 1}])
        store.put_manifest(Container.OBJECTS, folder, entries, {})


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (" ", StoreUnreachable),
        ("  \r\n\r\n", StoreUnreachable),
        (" {", StoreRejected),
        (" []", StoreRejected),
        (' {"Response Status": 201}', StoreRejected),
        (' {"Response Status": ""}', StoreRejected),
        (' {"Response Status": "soon"}', StoreRejected),
        (' {"Response Status": "201 Created"}', StoreRejected),
        (' {"Response Status": "201 Created", "Etag": null}', StoreRejected),
        (' {"Response Status": "500 Oh", "Errors": 5}', StoreRejected),
        (json.dumps({"Response Status": "201 Created", "Etag": "0" * 32}), StoreMismatch),
        ("[" * 200_000, StoreRejected),
        (" " * (5 << 20), StoreRejected),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_an_answer_that_does_not_say_that_it_is_stored_is_no_success(
    swift: SwiftServer, store: SwiftStore, body: str, error: type[StoreError]
) -> None:
    folder = fresh()
    entries = put_segments(store, folder, [b"one"])
    store.limits()
    swift.inject([{"match": PUT, "status": 202, "body": body, "times": 99}])
    with pytest.raises(error):
        store.put_manifest(Container.OBJECTS, folder, entries, {})


def test_a_quoted_etag_is_the_etag(swift: SwiftServer, store: SwiftStore) -> None:
    """A store that doesn't support heartbeats answers like this."""
    folder = fresh()
    entries = put_segments(store, folder, [b"one", b"two"])
    etag = store.put_manifest(Container.OBJECTS, folder, entries, {})
    answer: dict[str, Any] = {"match": PUT, "status": 201, "headers": {"Etag": f'"{etag}"'}}
    swift.inject([answer])
    assert store.put_manifest(Container.OBJECTS, folder, entries, {}) == etag
