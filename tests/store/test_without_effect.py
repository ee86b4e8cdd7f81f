"""A failed write may still have been done. Only a refusal proves that it was not."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from swiftclient.client import get_auth

from agent.errors import StoreError, TokenExpired
from agent.store.directory.store import DirectoryStore
from agent.store.protocol import Container
from agent.store.swift.login import AuthToken, AuthV1
from agent.store.swift.store import SwiftSettings, SwiftStore
from tests.stack.swift import SwiftServer

QUOTA = {"status": 413, "body": "Upload exceeds quota."}


def open_store(swift: SwiftServer, login: AuthToken | None = None) -> SwiftStore:
    v1 = AuthV1(swift.auth_url, swift.user, swift.key)
    store = SwiftStore(SwiftSettings(login or v1, "effects", attempts=2, backoff_seconds=0.01))
    store.open()
    return store


@pytest.fixture
def store(swift: SwiftServer) -> Iterator[SwiftStore]:
    store = open_store(swift)
    yield store
    store.close()


def refused(store: SwiftStore | DirectoryStore, name: str) -> StoreError:
    with pytest.raises(StoreError) as caught:
        store.put(Container.OBJECTS, name, [memoryview(b"a record")])
    return caught.value


@pytest.mark.parametrize(
    ("answers", "without_effect"),
    [
        ([QUOTA], True),
        ([{"status": 507}], True),
        ([{"status": 403}], True),
        ([{"status": 422}, {"status": 422}], True),
        ([{"status": 429}, QUOTA], True),
        ([{"status": 503}, QUOTA], False),
        ([{"action": "mute"}, QUOTA], False),
        ([{"action": "wrong_etag"}, QUOTA], False),
        ([{"status": 409}, {"status": 409}], False),
        ([{"status": 408}, QUOTA], False),
        ([{"status": 503}, {"status": 503}], False),
    ],
)
def test_every_attempt_has_to_be_refused(
    store: SwiftStore, swift: SwiftServer, answers: list[dict[str, Any]], without_effect: bool
) -> None:
    name = str(uuid.uuid4())
    swift.inject([{"method": "PUT", "match": name, **answer} for answer in answers])
    assert refused(store, name).without_effect is without_effect


def test_a_token_that_is_refused_and_one_whose_refusal_may_be_lost(swift: SwiftServer) -> None:
    token = get_auth(swift.auth_url, swift.user, swift.key)[1]
    store, name = open_store(swift, AuthToken(swift.storage_url, token)), str(uuid.uuid4())
    swift.inject([{"method": "PUT", "match": name, "status": 401}])
    expired = refused(store, name)
    assert (type(expired), expired.without_effect) == (TokenExpired, True)
    swift.inject(
        [
            {"method": "PUT", "match": name, "action": "mute"},
            {"method": "HEAD", "match": ".", "status": 401},
        ]
    )
    expired = refused(store, name)
    assert (type(expired), expired.without_effect) == (TokenExpired, False)
    store.close()


def test_a_folder_knows_whether_it_has_moved_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(tmp_path, "effects")
    store.open()
    (tmp_path / "effects" / "taken").mkdir()
    assert refused(store, "taken").without_effect
    real, calls = os.fsync, list[int]()

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:  # the folder, after the file
            raise OSError(5, "Input/output error")
        real(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    assert not refused(store, "there").without_effect
    assert (tmp_path / "effects" / "there").read_bytes() == b"a record"
