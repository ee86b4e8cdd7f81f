"""What the groups share: the configuration, what is built of it, and what has to be undone."""

import logging
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import NoReturn, Self

from agent import wiring
from agent.broker.amqp import BrokerSettings
from agent.config.settings import Config, load
from agent.database.server import Database, ServerInfo
from agent.errors import AgentError
from agent.machine.host import datadir_bytes
from agent.operations.backup.preflight import copied_bytes
from agent.selftest.remains import Remains
from agent.store.protocol import Store

log = logging.getLogger(__name__)

# The daemon is patient; whoever waits for a self-test wants to know that it doesn't answer.
_STORE_ATTEMPTS = 2
_STORE_SECONDS = 10.0
_BROKER_SECONDS = 5.0
_QUERY_SECONDS = 10.0


class Context:
    """One run's configuration and what is built of it, each when it is first asked for.

    Used in a `with`: its end removes what was put into the store, and closes everything.
    Properties raise what building them raises.
    """

    def __init__(self, path: Path, environment: Mapping[str, str] = os.environ) -> None:
        self.path = path
        self.environment = environment
        self.undo = ExitStack()
        self.after_group = ExitStack()
        self.store_rate: float | None = None
        self.backup_rate: float | None = None

    def __enter__(self) -> Self:
        # SIGINT, too: whoever starts this in the background may have it ignored
        for number in (signal.SIGINT, signal.SIGTERM):
            self.undo.callback(signal.signal, number, signal.signal(number, _interrupt))
        return self

    def __exit__(self, *_error: object) -> None:
        self.undo.close()

    @contextmanager
    def group(self) -> Iterator[None]:
        """Inside, `after_group` is what is undone at the end of this group of checks."""
        with ExitStack() as self.after_group:
            yield

    @cached_property
    def config(self) -> Config:
        return load(self.path, self.environment)

    @cached_property
    def impatient(self) -> Config:
        """The configuration, with a store that is given up soon."""
        section = self.config.store
        if section is None:
            return self.config
        patience = {
            "attempts": min(section.attempts, _STORE_ATTEMPTS),
            "timeout_seconds": min(section.timeout_seconds, _STORE_SECONDS),
        }
        return self.config.model_copy(update={"store": section.model_copy(update=patience)})

    @cached_property
    def store(self) -> Store:
        """The store, not opened."""
        store = wiring.store(self.impatient)
        self.undo.callback(store.close)
        return store

    @cached_property
    def remains(self) -> Remains:
        """What this run puts into the store; gone at the end, whatever ends it."""
        remains = Remains(self.store, self.config.agent.instance_id)
        self.undo.callback(self._remove, remains)
        return remains

    @cached_property
    def broker(self) -> BrokerSettings:
        settings = wiring.broker(self.config)
        return replace(settings, connect_seconds=_BROKER_SECONDS, answer_seconds=_BROKER_SECONDS)

    @cached_property
    def database(self) -> Database:
        settings = wiring.database_settings(self.config)
        return Database(replace(settings, timeout_seconds=_QUERY_SECONDS))

    @cached_property
    def server(self) -> ServerInfo | None:
        """Who the database server is; None where it can't be asked."""
        try:
            return self.database.server()
        except AgentError:
            return None

    @cached_property
    def datadir_bytes(self) -> int | None:
        """The size of the datadir; None where nobody says where it is, or it can't be read."""
        try:
            return datadir_bytes(self.server.datadir) if self.server else None
        except AgentError:
            return None

    @cached_property
    def copied_bytes(self) -> int | None:
        """The size of what a full backup reads of the datadir; None as for `datadir_bytes`."""
        if self.server is None or self.datadir_bytes is None:
            return None
        try:
            return copied_bytes(self.database, self.server.datadir, self.datadir_bytes)
        except AgentError:
            return self.datadir_bytes

    @cached_property
    def tablespaces(self) -> int | None:
        """How many files of tables the engine opens; None where the server doesn't say."""
        try:
            return len(self.database.tablespaces()) if self.server else None
        except AgentError:
            return None

    def _remove(self, remains: Remains) -> None:
        try:
            remains.end()
        except AgentError as error:
            log.warning("what the self-test put into the store can't be removed: %s", error)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
