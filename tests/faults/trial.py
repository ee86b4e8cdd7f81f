"""A trial, and the servers on which it runs.

Each module of trials has `trials(plan)`, which yields them, and `LEAST`, the number of cases of
each kind that a full run must reach.
"""

import random
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tests.stack.agent import Agent, Tables
from tests.stack.mariadb import MariaDB
from tests.stack.rabbitmq import RabbitMQ
from tests.stack.swift import SwiftServer

T = TypeVar("T")


class Plan(NamedTuple):
    """The trials to run: all of the issue's counts, or a short form of them."""

    seed: int
    full: bool

    def random(self, name: str) -> random.Random:
        """Return a generator for one trial, which depends only on the seed and the name."""
        return random.Random(f"{self.seed} {name}")


@dataclass(frozen=True)
class Bench:
    """The servers on which trials run, and a directory for their other files.

    A trial that breaks a server must repair it, or use its own server. Resources that several
    trials share are entered in `kept`, which is closed after the last trial.
    """

    folder: Path
    rabbitmq: RabbitMQ
    swift: SwiftServer
    mariadb: MariaDB
    kept: ExitStack = field(default_factory=ExitStack)
    _shared: dict[object, Any] = field(default_factory=dict)

    def shared(self, make: "Callable[[Bench], AbstractContextManager[T]]") -> T:
        """Return a resource that trials share. `make` makes it when a trial first requests it."""
        if make not in self._shared:
            self._shared[make] = self.kept.enter_context(make(self))
        found: T = self._shared[make]
        return found

    @contextmanager
    def agent(self, name: str, overrides: Tables | None = None) -> Iterator[Agent]:
        """Yield an agent with its own instance and container. Its daemon is stopped at the end."""
        folder = self.folder / f"{name}-{uuid.uuid4().hex[:8]}"
        agent = Agent(folder, self.rabbitmq, self.swift, self.mariadb, overrides)
        agent.write()
        try:
            yield agent
        finally:
            self.swift.clear_faults()
            agent.stop()


class Seen(NamedTuple):
    """A short text of a trial's observations, and the number of its cases."""

    text: str
    cases: int = 1


class Trial(NamedTuple):
    """A trial. `do` raises AssertionError if a check fails, or the error that it meets."""

    kind: str
    name: str
    done: str
    do: Callable[[Bench], Seen]
