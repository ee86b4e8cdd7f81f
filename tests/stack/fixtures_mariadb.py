"""Fixtures of the private MariaDB."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import need
from tests.stack.mariadb import MariaDB


@pytest.fixture(scope="session")
def mariadb(scratch: Path) -> Iterator[MariaDB]:
    """A running server with the agent's user and 40 MiB of rows in the schema `shop`.

    Tests may add schemas of their own, and leave `shop` and the agent's user as they are.
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
