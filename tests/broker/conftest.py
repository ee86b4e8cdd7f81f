"""Fixtures for an instance with its own journal, and for a connection that inspects the broker."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.broker.probe import Probe, probing
from tests.broker.site import Site
from tests.stack.rabbitmq import RabbitMQ


@pytest.fixture
def site(rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as cleanup:
        yield Site(rabbitmq, tmp_path, cleanup)


@pytest.fixture
def probe(rabbitmq: RabbitMQ) -> Iterator[Probe]:
    with probing(rabbitmq) as probe:
        yield probe
