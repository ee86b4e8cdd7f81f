"""One installation for the tests of this directory. Each test leaves it unchanged."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.keys.recovery import RecoverySecret
from agent.selftest import datapath, store
from tests.selftest.site import RECOVERY, Site, read_reports
from tests.stack.agent import Agent
from tests.stack.mariadb import MariaDB
from tests.stack.rabbitmq import RabbitMQ
from tests.stack.swift import SwiftServer


@pytest.fixture(scope="session")
def site_session(
    scratch: Path, rabbitmq: RabbitMQ, swift_session: SwiftServer, mariadb: MariaDB
) -> Site:
    folder = scratch / "self-test"
    folder.mkdir()
    agent = Agent(folder, rabbitmq, swift_session, mariadb)
    return Site(agent, RecoverySecret.make(RECOVERY))


@pytest.fixture
def whole_site(site_session: Site, swift: SwiftServer) -> Iterator[Site]:
    """Yield the installation with test streams that are as long as those of a real run."""
    # bind the queue each time, because the tests of another directory may have deleted the exchange
    # of reports and all bindings
    read_reports(site_session.agent)
    yield site_session
    swift.clear_faults()
    site_session.write({})


@pytest.fixture
def site(whole_site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Return the installation with short test streams, so that a run is short."""
    monkeypatch.setattr(store, "_PIECE", 64 << 10)
    monkeypatch.setattr(store, "_SLOW", 0)
    monkeypatch.setattr(datapath, "_SIZE", 3 << 20)
    monkeypatch.setattr(datapath, "_SMALL_SIZE", 3 << 20)
    monkeypatch.setattr(datapath, "_SEGMENT", 1 << 20)
    monkeypatch.setattr(datapath, "_SLOW", 0)
    return whole_site
