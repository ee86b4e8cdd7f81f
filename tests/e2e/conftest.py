"""One agent for the tests of this directory, with the session's servers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack.agent import Agent
from tests.stack.mariadb import MariaDB
from tests.stack.rabbitmq import RabbitMQ
from tests.stack.swift import SwiftServer


def with_daemon(agent: Agent) -> Agent:
    """Start the agent's daemon unless it runs, and return the agent."""
    if not agent.running():
        agent.start()
    return agent


@pytest.fixture(scope="session")
def agent_session(
    scratch: Path, rabbitmq: RabbitMQ, swift_session: SwiftServer, mariadb: MariaDB
) -> Iterator[Agent]:
    agent = Agent(scratch / "agent", rabbitmq, swift_session, mariadb)
    agent.write()
    yield agent
    agent.stop()


@pytest.fixture
def agent(agent_session: Agent, swift: SwiftServer) -> Agent:
    """Return the session's agent with its daemon running."""
    return with_daemon(agent_session)


@pytest.fixture(scope="session")
def base(agent_session: Agent) -> str:
    """Return the id of a COMPLETED full backup of the session's agent.

    Tests must leave this backup unchanged.
    """
    return str(with_daemon(agent_session).create("base")["id"])
