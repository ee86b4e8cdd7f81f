"""Fixtures that give each test of this directory a container of its own."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.store.directory.store import DirectoryStore
from agent.store.swift.login import AuthV1
from agent.store.swift.store import SwiftSettings, SwiftStore
from tests.stack.swift import SwiftServer


@pytest.fixture
def store(swift: SwiftServer) -> Iterator[SwiftStore]:
    """Yield an open store on the shared Swift with nothing in it."""
    settings = SwiftSettings(
        AuthV1(swift.auth_url, swift.user, swift.key),
        f"database_backups_{uuid.uuid4().hex}",
        attempts=1,
    )
    store = SwiftStore(settings)
    store.open()
    yield store
    store.close()


@pytest.fixture
def folder(tmp_path: Path) -> DirectoryStore:
    """Return an open, empty store in a directory.

    It needs no time of a server, which matters in tests with many calls.
    """
    store = DirectoryStore(tmp_path / "store", "database_backups_x")
    store.open()
    return store
