"""RabbitMQ, Swift and MariaDB together, with an agent configured for them."""

import signal
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Self

from tests.stack.agent import KEY_ID as KEY_ID, Agent
from tests.stack.mariadb import MariaDB
from tests.stack.rabbitmq import RabbitMQ
from tests.stack.swift import SwiftServer


class Servers(ABC):
    """Servers that run inside a `with` block.

    They are ended after it, also if an error, Ctrl-C or SIGTERM ends the block. Use it from the
    main thread.
    """

    def __init__(self) -> None:
        self._restore_signal = ExitStack()

    @abstractmethod
    def start(self) -> None:
        """Start all servers and wait until they answer."""

    @abstractmethod
    def stop(self) -> None:
        """End all servers, even if ending one of them fails. Do nothing if none runs."""

    def __enter__(self) -> Self:
        previous = signal.signal(signal.SIGTERM, _leave)
        self._restore_signal.callback(signal.signal, signal.SIGTERM, previous)
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # a second Ctrl-C must not leave servers behind
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._restore_signal.callback(signal.signal, signal.SIGINT, interrupt)
        with self._restore_signal:
            self.stop()


class Stack(Servers):
    """The three servers in `folder`, with their own ids and secrets."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.rabbitmq = RabbitMQ(folder / "rabbitmq")
        self.swift = SwiftServer(folder / "swift")
        self.mariadb = MariaDB(folder / "mariadb")
        self.agent = Agent(folder / "agent", self.rabbitmq, self.swift, self.mariadb)
        self.instance_id = self.agent.instance_id
        self.tenant_id = self.agent.tenant_id

    def start(self) -> None:
        """Start all servers and wait until they answer, under 15 s on two cores."""
        # RabbitMQ needs the longest time, so start it first
        self.rabbitmq.launch()
        self.swift.launch()
        if not self.mariadb.datadir.exists():
            self.mariadb.install()
        self.mariadb.launch()
        for server in (self.mariadb, self.swift, self.rabbitmq):
            server.wait_ready()
        self.mariadb.create_agent_user()

    def stop(self) -> None:
        """End all servers, even if ending one of them fails. Do nothing if none runs."""
        with ExitStack() as ends:
            for server in (self.rabbitmq, self.swift, self.mariadb):
                ends.callback(server.stop)

    def agent_toml(self) -> Path:
        """Write an agent's configuration, secrets and master key. Return the file's path."""
        return self.agent.write()


def _leave(signum: int, _: FrameType | None) -> None:
    raise SystemExit(128 + signum)
