"""The session's RabbitMQ node."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import need
from tests.stack.rabbitmq import SERVER, RabbitMQ


@pytest.fixture(scope="session")
def rabbitmq(scratch: Path) -> Iterator[RabbitMQ]:
    """A running node; tests may kill and start it, and leave it running."""
    need("epmd", SERVER)
    server = RabbitMQ(scratch / "rabbitmq")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def tasks_bound(rabbitmq: RabbitMQ) -> Iterator[None]:
    """For a test that deletes the exchange of tasks: other instances have their bindings again."""
    yield
    rabbitmq.bind_tasks()
