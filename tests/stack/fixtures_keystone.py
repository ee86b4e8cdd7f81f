"""Session fixtures: private Keystones, and a Swift that asks each, for all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack.fixtures_swift import need_swift
from tests.stack.keystone import KeystoneServer
from tests.stack.openstack import swift_python
from tests.stack.swift import SwiftServer


def need_keystone() -> None:
    """Skip the test if Keystone isn't installed. Fail it instead in CI, which must have it."""
    need_swift()
    if swift_python().with_name("keystone-manage").exists():
        return
    if os.environ.get("CI"):
        pytest.fail("CI lacks Keystone: script/bootstrap should have installed it")
    pytest.skip("needs Keystone: run script/bootstrap")


@pytest.fixture(scope="session")
def keystone_session(scratch: Path) -> Iterator[KeystoneServer]:
    need_keystone()
    server = KeystoneServer(scratch / "keystone")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def swift_behind_keystone_session(
    scratch: Path, keystone_session: KeystoneServer
) -> Iterator[SwiftServer]:
    server = SwiftServer(scratch / "swift-behind-keystone", keystone=keystone_session)
    server.start()
    keystone_session.add_object_store(server.address)
    yield server
    server.stop()


@pytest.fixture
def keystone(keystone_session: KeystoneServer) -> Iterator[KeystoneServer]:
    """Yield the shared Keystone. The faults that a test injected are removed after the test.

    A test that changes the user `agent` or the catalogue changes it back.
    """
    yield keystone_session
    keystone_session.clear_faults()


@pytest.fixture
def swift_behind_keystone(
    swift_behind_keystone_session: SwiftServer, keystone: KeystoneServer
) -> Iterator[SwiftServer]:
    """Yield the shared Swift behind `keystone`, which is in Keystone's catalogue."""
    yield swift_behind_keystone_session
    swift_behind_keystone_session.clear_faults()


@pytest.fixture(scope="session")
def short_keystone(scratch: Path) -> Iterator[KeystoneServer]:
    """Yield a Keystone whose tokens live for 2 seconds."""
    need_keystone()
    server = KeystoneServer(scratch / "short-keystone", token_seconds=2)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def short_swift(scratch: Path, short_keystone: KeystoneServer) -> Iterator[SwiftServer]:
    """Yield the Swift in the catalogue of `short_keystone`."""
    server = SwiftServer(scratch / "short-swift", keystone=short_keystone)
    server.start()
    short_keystone.add_object_store(server.address)
    yield server
    server.stop()
