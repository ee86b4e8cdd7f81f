"""What a backup finds before it begins: the server, its lineage, a usable parent, a plan."""

import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from agent.codec.aead import SLAB
from agent.database import Database, ServerInfo
from agent.datadir import Rules, Survey, longest_path
from agent.engine.choice import Chosen
from agent.errors import (
    BackupUnknown,
    BackupUnusable,
    ConfigInvalid,
    LineageChanged,
    ParentUnknown,
    ParentUnusable,
    StoreRejected,
    TaskRefused,
)
from agent.host import datadir_around, datadir_bytes, uncopied_bytes
from agent.manifest import most_segments
from agent.model import CreateTask, Lineage, Record
from agent.operations.ancestors import check_stored
from agent.operations.completeness import Completeness, Listing
from agent.operations.imports import Check, check_imports, check_path
from agent.operations.parts import BackupParts, PathSettings
from agent.pipeline.buffers import Plan
from agent.store.protocol import StoreLimits

# Nobody knows before how well a database compresses, and it grows while it is copied: room
# is planned for this multiple of the datadir.
_STORED_AT_MOST = 1.25

_LOGS = (
    "log_bin_basename",
    "relay_log_basename",
    "slow_query_log_file",
    "general_log_file",
    "log_error",
)
# MariaDB's
_CHECKPOINT_AGE = "Innodb_checkpoint_age"

log = logging.getLogger(__name__)

ObserveLsn = Callable[[str, int], str]


class Found(NamedTuple):
    """The instance as it is right before a backup; `lsn` is the server's present one.

    `copied_bytes` are those of the datadir that a full backup reads.
    """

    server: ServerInfo
    lsn: int
    lineage: Lineage
    datadir_bytes: int
    chosen: Chosen
    copied_bytes: int = 0


def check_place(folder: Path, datadirs: Iterable[Path]) -> None:
    """Check that a store's folder is in no datadir; ConfigInvalid.

    The engine would copy backups as if they were tables, and the server show them as a schema.
    """
    if around := datadir_around(folder, datadirs):
        raise ConfigInvalid(
            f"the store's folder {folder} is in {around}",
            hint="name a folder outside of it, best on another disk, by [store] url or --store",
        )


def look(parts: BackupParts, observe_lsn: ObserveLsn) -> Found:
    """Ask the server and the host; `observe_lsn` tells the generation of a lineage.

    EngineMissing or EngineUnsupported where no engine here can copy that server.
    """
    server = parts.database.server()
    chosen = parts.engines.for_server(server.type, server.version, server.datadir)
    lsn, lineage = look_at_lineage(parts, observe_lsn)
    size = datadir_bytes(server.datadir)
    copied = copied_bytes(parts.database, server.datadir, size)
    return Found(server, lsn, lineage, size, chosen, copied)


def copied_bytes(database: Database, datadir: Path, size: int) -> int:
    """Return how many bytes a full backup reads of a datadir of that size, more or less.

    That is all but the server's logs and InnoDB's redo log, of which only the part since the last
    checkpoint is copied, if the server tells how long that is.
    """
    logs = [datadir / value for value in database.variables(*_LOGS).values() if value]
    redo = database.counters(_CHECKPOINT_AGE).get(_CHECKPOINT_AGE, 0)
    return max(0, size - uncopied_bytes(datadir, logs)) + redo


def look_at_lineage(parts: BackupParts, observe_lsn: ObserveLsn) -> tuple[int, Lineage]:
    """The server's present LSN, and the lineage that it belongs to.

    A volume that was rolled back keeps its inodes: only the LSN shows it, and only until it
    has grown past the one seen last. So this is done now and then between backups, too.
    """
    lsn = parts.database.lsn()
    bare = parts.database.lineage()
    key = f"{bare.server_uuid}:{bare.inode}:{bare.birth}"
    return lsn, bare.model_copy(update={"generation": observe_lsn(key, lsn)})


class Base(NamedTuple):
    """What an incremental continues: the parent and its chain, the full backup first.

    `read` are the tablespaces that were looked at for imports. Both are empty for a full backup.
    """

    chain: tuple[Record, ...] = ()
    read: Listing | None = None

    @property
    def parent(self) -> Record | None:
        return self.chain[-1] if self.chain else None


def usable_base(parts: BackupParts, task: CreateTask, found: Found, check: Check) -> Base:
    """Return what the backup that is asked for continues, or nothing for a full backup.

    That is where one was asked for, or is made instead of an incremental on a broken chain.
    `check` is called now and then, to raise what stops the task.

    ParentUnknown, ParentUnusable or LineageChanged where the task doesn't allow a full one.
    """
    parent_id = task.backup.parent_id
    if parent_id is None:
        return Base()
    try:
        chain = _checked(parts, parent_id, found)
        check_stored(parts, chain)
        ignored = parts.database.ignored_directories()
        check_path(longest_path(found.server.datadir, ignored))
        read = parts.database.tablespaces()
        check_imports(chain[-1], read, found.server.datadir, check)
        return Base(tuple(chain), read)
    except TaskRefused as error:
        if task.on_broken_chain != "full":
            raise
        log.warning("making a full backup instead of an incremental one: %s", error)
        return Base()


def surveyed(parts: BackupParts, found: Found, base: Base, check: Check) -> Completeness:
    """Look at what there is to copy; DatadirUnfit if no backup of it could be whole.

    `check` is called now and then, to raise what stops the task.
    """
    datadir = found.server.datadir
    survey = Survey(
        datadir, datadir_rules(parts.database, found.chosen.engine.name, parts.uncopied_engines)
    )
    from_lsn = base.parent.to_lsn if base.parent else None
    listing = parts.database.tablespaces
    return Completeness(found.server, listing, survey, from_lsn, check, base.read)


def datadir_rules(database: Database, engine: str, accepted: frozenset[str]) -> Rules:
    """Return what may be in the datadir of a server that `engine` copies."""
    return Rules(
        ignored=database.ignored_directories(),
        # xbstream takes such names, and MyRocks needs one
        hidden=engine == "xtrabackup",
        accepted=accepted,
        # it locks tables one by one, and doesn't escape their names
        backticks=engine != "mariadb-backup",
    )


def laid_out(path: PathSettings, limits: StoreLimits, found: Found, cores: int | None) -> Plan:
    """The data path's plan, with segments so large that one object may join them all.

    StoreRejected where the store doesn't take such segments, or the memory doesn't hold them.
    """
    expected = found.datadir_bytes * _STORED_AT_MOST
    least = math.ceil(expected / most_segments(limits) / SLAB) * SLAB
    size = max(path.segment_bytes, least)
    if size > limits.object_bytes:
        raise StoreRejected(
            f"the store takes objects of at most {limits.object_bytes} bytes, segments of this "
            f"backup need {size}",
            hint="lower [pipeline] segment_bytes" if size > least else None,
        )
    try:
        return path.plan(cores=cores, segment_bytes=size)
    except ConfigInvalid as error:
        if size == path.segment_bytes:
            raise
        raise StoreRejected(
            f"the store joins at most {most_segments(limits)} segments, so those of a database "
            f"of {found.datadir_bytes} bytes must be larger than configured: {error}",
            hint=f"raise [pipeline] memory_bytes to {3 * size} or more",
        ) from error


def series(version: str) -> str:
    """`10.11` of `10.11.6-MariaDB-log`: incrementals don't cross from one to the next."""
    return ".".join(version.split("-")[0].split(".")[:2])


def whole_chain(parts: BackupParts, parent_id: str) -> list[Record]:
    """The parent and its chain, the full backup first; ParentUnknown or ParentUnusable."""
    try:
        return parts.catalogue.chain(parent_id)
    except BackupUnknown as error:
        raise ParentUnknown(f"the parent can't be used: {error}") from error
    except BackupUnusable as error:
        raise ParentUnusable(f"the parent can't be used: {error}") from error


def _checked(parts: BackupParts, parent_id: str, found: Found) -> list[Record]:
    chain = whole_chain(parts, parent_id)
    parent = chain[-1]
    if parent.instance_id != parts.instance_id:
        raise ParentUnusable(f"parent {parent_id} is of instance {parent.instance_id}")
    if parent.lineage != found.lineage:
        raise LineageChanged(
            f"the datadir is not the one that parent {parent_id} was made from: it was "
            "restored, replaced or rolled back since"
        )
    if parent.to_lsn is None or parent.to_lsn > found.lsn:
        raise LineageChanged(
            f"parent {parent_id} ends at LSN {parent.to_lsn}, the server is at {found.lsn}"
        )
    if series(parent.server_version) != series(found.server.version):
        raise ParentUnusable(
            f"parent {parent_id} is of server {parent.server_version}, "
            f"this server is {found.server.version}"
        )
    if parent.engine != found.chosen.engine.name:
        raise ParentUnusable(
            f"parent {parent_id} was made by {parent.engine}, "
            f"this server is copied by {found.chosen.engine.name}"
        )
    return chain
