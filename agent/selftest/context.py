"""The context that all groups share: the configuration, its objects, and their clean-up."""

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
from agent.config.reading import load
from agent.config.settings import Config
from agent.database.server import Database, ServerInfo
from agent.errors import AgentError
from agent.machine.host import datadir_bytes
from agent.operations.backup.preflight import copied_bytes
from agent.selftest.remains import Remains
from agent.store.protocol import Store

log = logging.getLogger(__name__)

# The daemon waits longer. An operator who waits for a self-test wants to learn soon that a server
# does not answer.
_STORE_ATTEMPTS = 2
_STORE_SECONDS = 10.0
_BROKER_SECONDS = 5.0
_QUERY_SECONDS = 10.0


class Context:
    """The configuration of one run, and the objects built from it, each at its first use.

    Use it in a `with` block. The end of the block deletes the run's objects from the store and
    closes the store. A property raises the error that building its object raises.

    `undo` has the callbacks for the end of the run, and `after_group` those for the end of the
    current group. `store_rate` and `backup_rate` are in bytes a second. They are None until a check
    has measured them.
    """

    def __init__(self, path: Path, environment: Mapping[str, str] = os.environ) -> None:
        self.path = path
        self.environment = environment
        self.undo = ExitStack()
        self.after_group = ExitStack()
        self.store_rate: float | None = None
        self.backup_rate: float | None = None

    def __enter__(self) -> Self:
        # SIGINT too: a shell that starts this in the background may set it to be ignored
        for number in (signal.SIGINT, signal.SIGTERM):
            self.undo.callback(signal.signal, number, signal.signal(number, _interrupt))
        return self

    def __exit__(self, *_error: object) -> None:
        self.undo.close()

    @contextmanager
    def group(self) -> Iterator[None]:
        """Run one group of checks in the block, and the callbacks of `after_group` at its end."""
        with ExitStack() as self.after_group:
            yield

    @cached_property
    def config(self) -> Config:
        return load(self.path, self.environment)

    @cached_property
    def impatient(self) -> Config:
        """Return the configuration with fewer attempts and a shorter timeout for the store."""
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
        """Build the store without opening it, and close it at the end of the run."""
        store = wiring.store(self.impatient)
        self.undo.callback(store.close)
        return store

    @cached_property
    def remains(self) -> Remains:
        """Return the objects that this run puts into the store.

        They are deleted at the end of the run, also after an error or an interrupt.
        """
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
        """Return the identity of the database server, or None if it can't be queried."""
        try:
            return self.database.server()
        except AgentError:
            return None

    @cached_property
    def datadir_bytes(self) -> int | None:
        """Return the size of the datadir in bytes.

        None if the server can't be queried, or the datadir can't be read.
        """
        try:
            return datadir_bytes(self.server.datadir) if self.server else None
        except AgentError:
            return None

    @cached_property
    def copied_bytes(self) -> int | None:
        """Return the bytes of the datadir that a full backup reads, or None as `datadir_bytes`.

        If the size of the parts that are not copied can't be determined, return the size of the
        whole datadir.
        """
        if self.server is None or self.datadir_bytes is None:
            return None
        try:
            return copied_bytes(self.database, self.server.datadir, self.datadir_bytes)
        except AgentError:
            return self.datadir_bytes

    @cached_property
    def tablespaces(self) -> int | None:
        """Return the number of tablespaces that the engine opens.

        None if the server can't be queried.
        """
        try:
            return len(self.database.tablespaces()) if self.server else None
        except AgentError:
            return None

    def _remove(self, remains: Remains) -> None:
        try:
            remains.end()
        except AgentError as error:
            log.warning("can't delete the self-test's objects from the store: %s", error)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
