"""The objects that the operations work with. agent/wiring/ builds them."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from agent.codec.aead import OpeningStream
from agent.codec.plain import PlainOpening
from agent.database.server import Database
from agent.engine.choice import Engines
from agent.errors import DatabaseError, LockTimeout, PlaintextRefused
from agent.keys.keyring import Keyring
from agent.model import Record
from agent.pipeline.buffers import Plan, plan
from agent.pipeline.download import Opening
from agent.records.catalogue import Catalogue
from agent.store.protocol import Interruption, Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PathSettings:
    """The budget of the data path.

    `memory_bytes` and `segment_bytes` are in bytes, `level` is a gzip level from 0 to 3.
    `bytes_per_second` limits the rate, None means no limit.
    """

    memory_bytes: int
    segment_bytes: int
    connections: int
    cores: int
    level: int
    bytes_per_second: int | None = None

    def plan(self, *, cores: int | None = None, segment_bytes: int | None = None) -> Plan:
        """Return the plan of one run.

        `cores` and `segment_bytes` replace the configured values, but `cores` can only lower them.

        Raises:
            ConfigInvalid: the memory is too small.
        """
        return plan(
            self.memory_bytes,
            segment_bytes or self.segment_bytes,
            self.connections,
            min(cores or self.cores, self.cores),
        )


def _nothing() -> None:
    """Do nothing, because all keys are in files."""


@dataclass(frozen=True, kw_only=True)
class MachineResources:
    """The resources of this machine that a backup and a restore need.

    A restore leaves `reserve_percent` of its filesystem free.
    """

    engines: Engines
    path: PathSettings
    prepare_memory_bytes: int
    reserve_percent: float = 3.0

    def datadirs(self) -> list[Path]:
        """Return the datadirs of the servers that are known to run on this machine.

        Without a database there are none.
        """
        return []

    def bound(self, _stop: Interruption) -> Self:
        """Return a copy of these resources, bound to the stop.

        Calls to the store and to the database of the copy end at once when the stop is requested.
        """
        return self


@dataclass(frozen=True, kw_only=True)
class InstanceResources(MachineResources):
    """The resources of a copy, with the instance, its database and a temporary directory.

    Attributes:
        scratch: the directory for temporary files of the engine.
        exclusive: True if no other process may make a backup of the datadir at the same time.
        safe_slave_backup: True if the engine stops a replica's SQL threads during a backup.
        lock_wait_seconds: how long the engine may wait for a lock of the server, in seconds.
        uncopied_engines: the storage engines (lower case) with tables that may lack their data in
            a backup.
    """

    database: Database
    scratch: Path
    exclusive: bool = False
    safe_slave_backup: bool = False
    lock_wait_seconds: float = 60.0
    uncopied_engines: frozenset[str] = frozenset()

    def datadirs(self) -> list[Path]:
        """Return the server's datadir.

        Return an empty list if the server doesn't answer, or if it runs on another machine.
        """
        try:
            datadir = self.database.server().datadir
        except (DatabaseError, LockTimeout) as error:
            log.info("can't read the server's datadir for this restore: %s", error)
            return []
        return [datadir] if datadir.is_dir() else []

    def bound(self, stop: Interruption) -> Self:
        return replace(super().bound(stop), database=self.database.bound(stop.on_stop))


@dataclass(frozen=True, kw_only=True)
class RestoreResources(MachineResources):
    """The resources of a restore, which needs no database and no broker.

    Backups without encryption are opened only if `allow_plaintext` is True.
    """

    store: Store
    catalogue: Catalogue
    keyring: Keyring
    allow_plaintext: bool = False

    def bound(self, stop: Interruption) -> Self:
        store = self.store.bound(stop)
        return replace(super().bound(stop), store=store, catalogue=self.catalogue.bound(store))

    def opening(self, record: Record) -> Opening:
        """Return an object that decrypts the stored slabs of one backup, for one run only.

        Raises:
            KeyNotHere, DataDamaged: the data key of the backup can't be unwrapped.
            PlaintextRefused: the backup isn't encrypted, and `allow_plaintext` is False.
        """
        if record.sealed:
            return OpeningStream(self.keyring.unwrap(record.keys), record.id.encode())
        if not self.allow_plaintext:
            raise PlaintextRefused(f"backup {record.id} is not encrypted")
        return PlainOpening()


@dataclass(frozen=True, kw_only=True)
class BackupResources(RestoreResources, InstanceResources):
    """The resources of a backup in the agent's own layout.

    Attributes:
        encrypt: True if the backups are encrypted.
        store_folder: the directory in which the store keeps its files. None if the store is not a
            directory on this machine.
        keep_key: is called before a record is signed by a key that may not be in a file yet.
    """

    instance_id: str
    encrypt: bool = True
    store_folder: Path | None = None
    keep_key: Callable[[], None] = _nothing
