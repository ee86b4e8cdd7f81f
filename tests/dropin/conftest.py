"""Fixtures: the drop-in with a container of its own, with and without a key."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.keys.master import key_text
from tests.dropin.foreign import Stream, TroveStorage, copied
from tests.dropin.image import Image
from tests.stack.fixtures_mariadb import private_server
from tests.stack.mariadb import MariaDB
from tests.stack.swift import SwiftServer


@pytest.fixture
def image(tmp_path: Path, small_server: MariaDB, swift: SwiftServer) -> Image:
    return Image(tmp_path, small_server, swift)


@pytest.fixture
def sealing(image: Image, tmp_path: Path) -> Image:
    """Return an image that has a key."""
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    (folder / "trove.key").write_text(key_text(bytes(range(32))) + "\n")
    (folder / "trove.key").chmod(0o600)
    image.environment |= {
        "BACKUP_AGENT_KEYS__FOLDER": str(folder),
        "BACKUP_AGENT_KEYS__ACTIVE": "trove",
    }
    return image


@pytest.fixture(scope="session")
def small_server(scratch: Path) -> Iterator[MariaDB]:
    """Yield a server that is quick to copy. Tests may change its tables."""
    with private_server(scratch / "small") as server:
        server.load_rows(16)
        server.checkpoint()
        yield server


@pytest.fixture(scope="session")
def full(small_server: MariaDB, tmp_path_factory: pytest.TempPathFactory) -> Stream:
    """Return a full backup of the small server, as Trove's own image makes it."""
    return copied(small_server, tmp_path_factory.mktemp("full"))


@pytest.fixture
def trove(image: Image) -> TroveStorage:
    return TroveStorage(image)
