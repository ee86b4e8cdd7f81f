"""Fixtures of the private MariaDB."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import need
from tests.stack.mariadb import SMALL_SERVER, MariaDB


@pytest.fixture(scope="session")
def mariadb(scratch: Path) -> Iterator[MariaDB]:
    """Yield a running server with the agent's user and 40 MiB of rows in the schema `shop`.

    Tests may add their own schemas. They must leave `shop` and the agent's user unchanged.
    """
    need("mariadbd", "mariadb-install-db", "mariadb-backup", "mbstream")
    server = MariaDB(scratch / "mariadb")
    server.install()
    try:
        server.start()
        server.create_agent_user()
        server.load_rows(40)
        yield server
    finally:
        server.stop()


@contextmanager
def private_server(folder: Path, **options: str) -> Iterator[MariaDB]:
    """Yield a small server for one module, for tests that would disturb other tests."""
    need("mariadbd", "mariadb-install-db", "mariadb-backup", "mbstream")
    server = MariaDB(folder, options=SMALL_SERVER | options)
    server.install()
    try:
        server.start()
        server.create_agent_user()
        yield server
    finally:
        server.stop()
