"""The session's RabbitMQ node."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import need
from tests.stack.rabbitmq import SERVER, RabbitMQ


@pytest.fixture(scope="session")
def rabbitmq(scratch: Path) -> Iterator[RabbitMQ]:
    """Yield a running node. Tests may kill and start it, and must leave it running."""
    need("epmd", SERVER)
    server = RabbitMQ(scratch / "rabbitmq")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def tasks_bound(rabbitmq: RabbitMQ) -> Iterator[None]:
    """Restore the bindings of other instances after a test that deletes the task exchange."""
    yield
    rabbitmq.bind_tasks()
