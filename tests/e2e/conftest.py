"""One agent for the folder's tests, with the session's servers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack.agent import Agent
from tests.stack.mariadb import MariaDB
from tests.stack.rabbitmq import RabbitMQ
from tests.stack.swift import SwiftServer


def with_daemon(agent: Agent) -> Agent:
    """The agent, whose daemon is started unless it runs."""
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
    """The session's agent with its daemon running."""
    return with_daemon(agent_session)


@pytest.fixture(scope="session")
def base(agent_session: Agent) -> str:
    """The id of a COMPLETED full backup of the session's agent; leave it as it is."""
    return str(with_daemon(agent_session).create("base")["id"])
