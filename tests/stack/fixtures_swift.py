"""Session fixture `swift`: one private Swift for all tests. Each test starts without faults."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack.swift import SwiftServer, swift_python


def need_swift() -> None:
    """Skip the test if Swift isn't installed. Fail it instead in CI, which must have Swift."""
    if swift_python().exists():
        return
    if os.environ.get("CI"):
        pytest.fail(f"CI lacks {swift_python()}: script/bootstrap should have installed it")
    pytest.skip("needs Swift: run script/bootstrap")


@pytest.fixture(scope="session")
def swift_session(scratch: Path) -> Iterator[SwiftServer]:
    need_swift()
    server = SwiftServer(scratch / "swift")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def swift(swift_session: SwiftServer) -> Iterator[SwiftServer]:
    """Yield the shared Swift. The faults that a test injected are removed after the test."""
    yield swift_session
    swift_session.clear_faults()
