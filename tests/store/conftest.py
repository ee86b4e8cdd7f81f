"""Swift stores for the tests of this directory."""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.store.swift.login import AuthV1
from agent.store.swift.store import SwiftSettings, SwiftStore
from tests.stack.fixtures_swift import need_swift
from tests.stack.swift import SwiftServer

MakeStore = Callable[..., SwiftStore]
MIB = 1 << 20


@pytest.fixture(scope="session")
def small_swift(scratch: Path) -> Iterator[SwiftServer]:
    """Yield a Swift with narrow limits and with tokens that live for 2 seconds."""
    need_swift()
    server = SwiftServer(
        scratch / "small-swift",
        manifest_segments=4,
        token_life=2,
        listing_limit=5,
        max_file_size=8 * MIB,
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def container() -> str:
    return f"database_backups_{uuid.uuid4().hex}"


def settings_for(server: SwiftServer, container: str) -> SwiftSettings:
    return SwiftSettings(
        AuthV1(server.auth_url, server.user, server.key),
        container=container,
        timeout_seconds=10,
        attempts=4,
        backoff_seconds=0.01,
    )


@pytest.fixture
def make_store(container: str) -> Iterator[MakeStore]:
    """Yield a function that makes a store on a given server.

    Each store is closed at the end of the test.
    """
    made = []

    def make(server: SwiftServer, **changes: Any) -> SwiftStore:
        url, key = (changes.pop(name, getattr(server, name)) for name in ("auth_url", "key"))
        login = AuthV1(url, server.user, key)
        made.append(SwiftStore(replace(settings_for(server, container), login=login, **changes)))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(swift: SwiftServer, make_store: MakeStore) -> SwiftStore:
    """Return an open store on the shared Swift, into which a test can inject faults."""
    store = make_store(swift)
    store.open()
    return store
