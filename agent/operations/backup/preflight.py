"""Look at the server, its lineage and the parent, and plan a backup before it begins."""

import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from agent.codec.aead import SLAB
from agent.database.datadir import Rules, Survey, longest_path
from agent.database.server import Database, ServerInfo
from agent.engine.choice import EngineVersion
from agent.engine.protocol import Engine
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
from agent.machine.host import datadir_around, datadir_bytes, uncopied_bytes
from agent.model import CreateTask, Lineage, Record
from agent.operations.backup.chain import check_stored
from agent.operations.backup.completeness import Completeness, Listing
from agent.operations.backup.imports import Check, ParentTables, check_imports, check_path
from agent.operations.resources import BackupResources, InstanceResources, PathSettings
from agent.pipeline.buffers import Plan
from agent.records.manifest import most_segments
from agent.store.protocol import StoreLimits

# Before a backup the agent can't know how well the database compresses, and the database grows
# while it is copied. So the segments are planned for this multiple of the datadir's size.
_STORED_AT_MOST = 1.25

_LOGS = (
    "log_bin_basename",
    "relay_log_basename",
    "slow_query_log_file",
    "general_log_file",
    "log_error",
)
# A counter of MariaDB.
_CHECKPOINT_AGE = "Innodb_checkpoint_age"

log = logging.getLogger(__name__)

ObserveLsn = Callable[[str, int], str]


class InstanceState(NamedTuple):
    """The state of the instance right before a backup.

    `lsn` is the server's current LSN. `datadir_bytes` is the size of the datadir, and
    `copied_bytes` is the part of it that a full backup reads.
    """

    server: ServerInfo
    lsn: int
    lineage: Lineage
    datadir_bytes: int
    chosen: EngineVersion
    copied_bytes: int = 0


def check_store_folder(folder: Path, datadirs: Iterable[Path]) -> None:
    """Check that the directory of a store is in no datadir.

    The engine would copy the backups as if they were tables, and the server would show them as a
    schema.

    Raises:
        ConfigInvalid: the directory is in a datadir.
    """
    if around := datadir_around(folder, datadirs):
        raise ConfigInvalid(
            f"the store's folder {folder} is in {around}",
            hint="name a folder outside of it by [store] url or --store, best on another disk",
        )


def observe_instance(resources: InstanceResources, observe_lsn: ObserveLsn) -> InstanceState:
    """Query the server and the host for the state of the instance.

    `observe_lsn` notes the LSN, and returns the generation of its lineage.

    Raises:
        EngineMissing, EngineUnsupported: no engine on this machine can copy that server.
    """
    server = resources.database.server()
    chosen = resources.engines.for_server(server.type, server.version, server.datadir)
    lsn, lineage = observe_lineage(resources, observe_lsn)
    size = datadir_bytes(server.datadir)
    copied = copied_bytes(resources.database, server.datadir, size)
    return InstanceState(server, lsn, lineage, size, chosen, copied)


def copied_bytes(database: Database, datadir: Path, size: int) -> int:
    """Return roughly how many bytes a full backup reads of a datadir with `size` bytes.

    A full backup doesn't copy the server's logs, nor InnoDB's temporary tablespaces and doublewrite
    files. Of InnoDB's redo log it copies only the part since the last checkpoint. The result
    includes that part if the server reports its length (MariaDB does).
    """
    logs = [datadir / value for value in database.variables(*_LOGS).values() if value]
    redo = database.counters(_CHECKPOINT_AGE).get(_CHECKPOINT_AGE, 0)
    return max(0, size - uncopied_bytes(datadir, logs)) + redo


def observe_lineage(resources: InstanceResources, observe_lsn: ObserveLsn) -> tuple[int, Lineage]:
    """Return the server's current LSN and its lineage, and note the LSN with `observe_lsn`.

    A volume that was rolled back keeps its inodes, so only a lower LSN shows the rollback. It
    shows only until the LSN has grown past the last one that was noted. So the agent calls this
    repeatedly between backups, too.
    """
    lsn = resources.database.lsn()
    bare = resources.database.lineage()
    key = f"{bare.server_uuid}:{bare.inode}:{bare.birth}"
    return lsn, bare.model_copy(update={"generation": observe_lsn(key, lsn)})


class ParentChain(NamedTuple):
    """The chain of records that an incremental continues, from the full backup to the parent.

    `checked_spaces` is the list of tablespaces that were checked for imports. For a full backup the
    chain is empty and `checked_spaces` is None.
    """

    chain: tuple[Record, ...] = ()
    checked_spaces: Listing | None = None

    @property
    def parent(self) -> Record | None:
        return self.chain[-1] if self.chain else None


def chain_to_continue(
    resources: BackupResources, task: CreateTask, found: InstanceState, check: Check
) -> ParentChain:
    """Return the chain that the requested backup continues, empty for a full backup.

    The backup is full if the task requests a full one. It is also full if the chain is broken and
    the task allows a full backup instead of an incremental. `check` is called repeatedly, and
    raises the cause if the task is stopped.

    Raises:
        ParentUnknown, ParentUnusable, LineageChanged: the parent can't be used, and the task
            doesn't allow a full backup instead.
        RecordDamaged, RecordUnsupported, KeyNotHere: a record of the chain can't be trusted. No
            full backup is made then.
    """
    parent_id = task.backup.parent_id
    if parent_id is None:
        return ParentChain()
    try:
        chain = whole_chain(resources, parent_id)
        check_continues(chain[-1], found, resources.instance_id)
        check_stored(resources, chain)
        return ParentChain(tuple(chain), check_pages(resources, chain[-1], found, check))
    except TaskRefused as error:
        if task.on_broken_chain != "full":
            raise
        log.warning("making a full backup instead of an incremental one: %s", error)
        return ParentChain()


def check_pages(
    resources: InstanceResources, parent: ParentTables, found: InstanceState, check: Check
) -> Listing:
    """Check that an incremental on `parent` would have all pages that the parent lacks.

    Return the list of tablespaces that was checked. `check` is called repeatedly, and raises the
    cause if the task is stopped.

    Raises:
        ParentUnusable, LineageChanged: a full backup is needed.
    """
    ignored = resources.database.ignored_directories()
    check_path(longest_path(found.server.datadir, ignored))
    spaces = resources.database.tablespaces()
    check_imports(parent, spaces, found.server.datadir, check)
    return spaces


def list_expected(
    resources: InstanceResources,
    found: InstanceState,
    check: Check,
    *,
    from_lsn: int | None,
    checked_spaces: Listing | None,
) -> Completeness:
    """List the files and tablespaces that the backup must hold.

    `from_lsn` is the LSN at which an incremental begins, and `checked_spaces` the result of
    `check_pages` for it. Both are None for a full backup.

    `check` is called repeatedly, and raises the cause if the task is stopped.

    Raises:
        DatadirUnfit: no backup of the datadir could be complete.
    """
    datadir = found.server.datadir
    survey = Survey(
        datadir,
        datadir_rules(resources.database, found.chosen.engine, resources.uncopied_engines),
    )
    listing = resources.database.tablespaces
    return Completeness(found.server, listing, survey, from_lsn, check, checked_spaces)


def datadir_rules(database: Database, engine: Engine, accepted: frozenset[str]) -> Rules:
    """Return the rules for the contents of a datadir that `engine` copies.

    `accepted` are the storage engines (lower case) with tables that may lack their data.
    """
    return Rules(
        ignored=database.ignored_directories(),
        hidden=engine.takes_hidden_names,
        accepted=accepted,
        backticks=engine.escapes_names,
    )


def plan_data_path(
    path: PathSettings, limits: StoreLimits, found: InstanceState, cores: int | None
) -> Plan:
    """Return the data path's plan, with segments so large that the store takes all of one backup.

    Raises:
        StoreRejected: the store doesn't take segments of this size, or the memory is too small for
            the size that the store requires.
        ConfigInvalid: the memory is too small for the configured segments.
    """
    expected = found.datadir_bytes * _STORED_AT_MOST
    least = math.ceil(expected / most_segments(limits) / SLAB) * SLAB
    size = max(path.segment_bytes, least)
    if size > limits.object_bytes:
        raise StoreRejected(
            f"the store takes objects of at most {limits.object_bytes} bytes, but the segments of "
            f"this backup need {size}",
            hint="lower [pipeline] segment_bytes" if size > least else None,
        )
    try:
        return path.plan(cores=cores, segment_bytes=size)
    except ConfigInvalid as error:
        if size == path.segment_bytes:
            raise
        raise StoreRejected(
            f"a backup in this store has at most {most_segments(limits)} segments, so those of a "
            f"database of {found.datadir_bytes} bytes must be larger than configured: {error}",
            hint=f"raise [pipeline] memory_bytes to {3 * size} or more",
        ) from error


def series(version: str) -> str:
    """Return the series of a version, such as `10.11` for `10.11.6-MariaDB-log`.

    An incremental needs a parent of the same series.
    """
    return ".".join(version.split("-")[0].split(".")[:2])


def whole_chain(resources: BackupResources, parent_id: str) -> list[Record]:
    """Return the chain from the full backup to the parent.

    Raises:
        ParentUnknown: the parent has no record.
        ParentUnusable: the chain is broken.
    """
    try:
        return resources.catalogue.chain(parent_id)
    except BackupUnknown as error:
        raise ParentUnknown(f"the parent can't be used: {error}") from error
    except BackupUnusable as error:
        raise ParentUnusable(f"the parent can't be used: {error}") from error


def check_continues(parent: Record, found: InstanceState, instance_id: str) -> None:
    """Check that an incremental of the instance can continue `parent`.

    Raises:
        ParentUnusable: it is a backup of another instance, server version or engine.
        LineageChanged: the datadir's history is another one.
    """
    parent_id = parent.id
    if parent.instance_id != instance_id:
        raise ParentUnusable(
            f"parent {parent_id} is a backup of another instance, {parent.instance_id}"
        )
    if parent.lineage != found.lineage:
        raise LineageChanged(
            f"the datadir is not the one that parent {parent_id} was made from: it has since been "
            "restored, replaced or rolled back"
        )
    if parent.to_lsn is None or parent.to_lsn > found.lsn:
        raise LineageChanged(
            f"parent {parent_id} ends at LSN {parent.to_lsn}, but the server is at {found.lsn}"
        )
    if series(parent.server_version) != series(found.server.version):
        raise ParentUnusable(
            f"parent {parent_id} is a backup of server version {parent.server_version}, but this "
            f"server has version {found.server.version}"
        )
    if parent.engine != found.chosen.engine.name:
        raise ParentUnusable(
            f"parent {parent_id} was made by {parent.engine}, but this server is copied by "
            f"{found.chosen.engine.name}"
        )
