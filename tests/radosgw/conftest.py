"""One radosgw for all tests of this directory, and stores on it."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.store.swift.login import AuthV1
from agent.store.swift.store import SwiftSettings, SwiftStore
from tests.conftest import need
from tests.faults.rig import small_server
from tests.stack.fixtures_keystone import need_keystone
from tests.stack.keystone import KeystoneServer
from tests.stack.mariadb import MariaDB
from tests.stack.radosgw import PROGRAMS, Radosgw

LIFETIME = 4  # seconds of a token


@pytest.fixture(scope="session")
def radosgw(scratch: Path) -> Iterator[Radosgw]:
    need(*PROGRAMS, bootstrap="radosgw")
    server = Radosgw(scratch / "radosgw")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def database(scratch: Path) -> Iterator[MariaDB]:
    server = small_server(scratch / "radosgw-mariadb")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def short(scratch: Path) -> Iterator[KeystoneServer]:
    """Yield a Keystone with an empty catalogue, whose tokens live for LIFETIME seconds."""
    need_keystone()
    server = KeystoneServer(scratch / "radosgw-keystone", token_seconds=LIFETIME)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def container() -> str:
    return f"database_backups_{uuid.uuid4().hex}"


@pytest.fixture
def settings(radosgw: Radosgw, container: str) -> SwiftSettings:
    return SwiftSettings(
        AuthV1(radosgw.auth_url, radosgw.user, radosgw.key),
        container=container,
        timeout_seconds=20,
        attempts=4,
        backoff_seconds=0.01,
    )


@pytest.fixture
def store(settings: SwiftSettings) -> Iterator[SwiftStore]:
    """Yield an open store on the shared radosgw."""
    store = SwiftStore(settings)
    store.open()
    yield store
    store.close()
