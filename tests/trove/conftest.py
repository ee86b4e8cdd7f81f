"""One Trove for all tests of this directory, and a database instance to back up."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import need
from tests.stack.fixtures_keystone import need_keystone
from tests.stack.rabbitmq import SERVER
from tests.stack.trove.instance import Instance
from tests.stack.trove.stack import VENV, TroveStack

_PROGRAMS = ("mariadbd", "mariadb-install-db", "mariadb-backup", "mbstream", "unshare", "nsenter")


def need_trove() -> None:
    """Skip the test if Trove can't run here. Fail it instead in CI, which must be able to."""
    need_keystone()
    need(*_PROGRAMS, SERVER)
    reason = ""
    if os.geteuid():
        reason = "needs root: a machine of Trove's is a set of mounts"
    elif not (VENV / "src" / "backup" / "main.py").exists():
        reason = "needs Trove: run script/bootstrap trove"
    if reason and os.environ.get("CI"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def trove_session(scratch: Path) -> Iterator[TroveStack]:
    need_trove()
    stack = TroveStack(scratch / "trove")
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


@pytest.fixture
def trove_stack(trove_session: TroveStack) -> Iterator[TroveStack]:
    """Yield the shared Trove with its own backup image and without faults.

    A test that wants this project's image calls `use_image("drop-in")`.
    """
    trove_session.use_image("trove")
    trove_session.swift.clear_faults()
    yield trove_session
    trove_session.swift.clear_faults()


@pytest.fixture(scope="session")
def source(trove_session: TroveStack) -> Instance:
    """Return an instance with some rows in the schema `shop`, made by Trove.

    Tests may add their own schemas. They must leave `shop` unchanged.
    """
    instance = trove_session.create_instance("source")
    instance.sql(
        "CREATE SCHEMA shop; CREATE TABLE shop.orders (id INT PRIMARY KEY, note TEXT);"
        "INSERT INTO shop.orders SELECT seq, SHA2(seq, 256) FROM shop.seq_1_to_20000"
    )
    return instance
