"""What the operations work with, built by the faces and handed down as plain values."""

from dataclasses import dataclass
from pathlib import Path

from agent.catalogue import Catalogue
from agent.database import Database
from agent.engine.protocol import Engine
from agent.keys import Keyring
from agent.pipeline.buffers import Plan, plan
from agent.store.protocol import Store


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


@dataclass(frozen=True, kw_only=True)
class RestoreParts:
    """What a restore needs: no database, no broker."""

    store: Store
    catalogue: Catalogue
    keyring: Keyring
    engine: Engine
    path: PathSettings
    prepare_memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class BackupParts(RestoreParts):
    """What a backup needs on top: the instance, its database, a folder for scratch files."""

    instance_id: str
    database: Database
    scratch: Path
