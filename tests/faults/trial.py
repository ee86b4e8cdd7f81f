"""A trial, and where it is done.

Each module of trials has `trials(plan)`, which yields them, and `LEAST`: how many cases of
each kind a full run must have seen.
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
    """Which trials are wanted: all of the issue's counts, or a short form of it."""

    seed: int
    full: bool

    def random(self, name: str) -> random.Random:
        """What a trial's chances follow from: the seed and its name, and nothing else."""
        return random.Random(f"{self.seed} {name}")


@dataclass(frozen=True)
class Bench:
    """The servers that trials are done on, and a folder for what they need besides.

    Whoever breaks a server mends it again, or uses one of its own. What several trials share
    is entered in `kept`, which is closed after the last of them.
    """

    folder: Path
    rabbitmq: RabbitMQ
    swift: SwiftServer
    mariadb: MariaDB
    kept: ExitStack = field(default_factory=ExitStack)
    _shared: dict[object, Any] = field(default_factory=dict)

    def shared(self, make: "Callable[[Bench], AbstractContextManager[T]]") -> T:
        """What trials work with that `make` makes when the first of them asks for it."""
        if make not in self._shared:
            self._shared[make] = self.kept.enter_context(make(self))
        found: T = self._shared[make]
        return found

    @contextmanager
    def agent(self, name: str, overrides: Tables | None = None) -> Iterator[Agent]:
        """An agent with an instance and a container of its own; its daemon is ended at last."""
        folder = self.folder / f"{name}-{uuid.uuid4().hex[:8]}"
        agent = Agent(folder, self.rabbitmq, self.swift, self.mariadb, overrides)
        agent.write()
        try:
            yield agent
        finally:
            self.swift.clear_faults()
            agent.stop()


class Seen(NamedTuple):
    """What a trial saw, in a few words, and how many cases it went through."""

    text: str
    cases: int = 1


class Trial(NamedTuple):
    """`do` raises where what is seen isn't right (AssertionError, or whatever it meets)."""

    kind: str
    name: str
    done: str
    do: Callable[[Bench], Seen]
