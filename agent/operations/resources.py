"""What the operations work with, built by the faces and handed down as plain values."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from agent.codec.aead import OpeningStream
from agent.codec.plain import PlainOpening
from agent.database.server import Database
from agent.engine.choice import Engines
from agent.errors import DatabaseError, PlaintextRefused
from agent.keys.keyring import Keyring
from agent.model import Record
from agent.pipeline.buffers import Plan, plan
from agent.pipeline.download import Opening
from agent.records.catalogue import Catalogue
from agent.store.protocol import Interruption, Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PathSettings:
    """The data path's budget: bytes, connections, cores, gzip level (0 to 3)."""

    memory_bytes: int
    segment_bytes: int
    connections: int
    cores: int
    level: int
    bytes_per_second: int | None = None

    def plan(self, *, cores: int | None = None, segment_bytes: int | None = None) -> Plan:
        """How one run is laid out; ConfigInvalid where the budget is too small."""
        return plan(
            self.memory_bytes,
            segment_bytes or self.segment_bytes,
            self.connections,
            min(cores or self.cores, self.cores),
        )


def _nothing() -> None:
    """All keys are in files."""


@dataclass(frozen=True, kw_only=True)
class RestoreResources:
    """What a restore needs: no database, no broker.

    Backups that aren't encrypted are opened only where `allow_plaintext` says so. A restore
    leaves `reserve_percent` of its filesystem free.
    """

    store: Store
    catalogue: Catalogue
    keyring: Keyring
    engines: Engines
    path: PathSettings
    prepare_memory_bytes: int
    allow_plaintext: bool = False
    reserve_percent: float = 3.0

    def datadirs(self) -> list[Path]:
        """Return the datadirs of servers that are known to run here."""
        return []

    def bound(self, stop: Interruption) -> Self:
        """The same parts, whose store ends its calls at once when `stop` is requested."""
        store = self.store.bound(stop)
        return replace(self, store=store, catalogue=self.catalogue.bound(store))

    def opening(self, record: Record) -> Opening:
        """What makes the stored slabs of one backup plaintext again, once.

        KeyNotHere or DataDamaged where its data key can't be had, PlaintextRefused where it
        isn't encrypted and that isn't allowed.
        """
        if record.sealed:
            return OpeningStream(self.keyring.unwrap(record.keys), record.id.encode())
        if not self.allow_plaintext:
            raise PlaintextRefused(f"backup {record.id} is not encrypted")
        return PlainOpening()


@dataclass(frozen=True, kw_only=True)
class BackupResources(RestoreResources):
    """What a backup needs on top: the instance, its database, a folder for scratch files.

    `encrypt` says whether the backups that are made get encrypted, `safe_slave_backup`
    whether the engine stops a replica's SQL thread meanwhile, `exclusive` whether nobody else may
    make a backup of the datadir at the same time, `lock_wait_seconds` how long the engine may
    wait for a lock of the server, `uncopied_engines` (lower case) which storage engines' tables
    may lack their data in a backup. `store_folder` is where the store keeps its files, if that is
    a folder here. `keep_key` is called before a record is signed by a key that may not be in a
    file yet.
    """

    instance_id: str
    database: Database
    scratch: Path
    exclusive: bool = False
    encrypt: bool = True
    safe_slave_backup: bool = False
    lock_wait_seconds: float = 60.0
    uncopied_engines: frozenset[str] = frozenset()
    store_folder: Path | None = None
    keep_key: Callable[[], None] = _nothing

    def datadirs(self) -> list[Path]:
        """Return the server's datadir, nothing if the server doesn't answer or is elsewhere."""
        try:
            datadir = self.database.server().datadir
        except DatabaseError as error:
            log.info("the server's datadir is not known to this restore: %s", error)
            return []
        return [datadir] if datadir.is_dir() else []

    def bound(self, stop: Interruption) -> Self:
        """As of a restore's; the database's calls end, too."""
        return replace(super().bound(stop), database=self.database.bound(stop.on_stop))
