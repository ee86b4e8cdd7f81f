"""Read what an incremental must know of a parent that Trove's own code made.

Trove notes the LSN in the object's headers, and its releases 14 to 23 not even that for a large
backup. Nothing notes the history of the datadir. Both are in the stream: the LSNs in the engine's
own file at its end, and the history in the pages of the tables.
"""

import logging
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from agent.codec.gunzip import Gunzip
from agent.codec.metadata import Checkpoints, parse_checkpoints
from agent.codec.xbstream import XbstreamParser
from agent.errors import LineageChanged, ParentUnusable, StreamInvalid
from agent.model import utc
from agent.operations.backup.preflight import InstanceState, series
from agent.operations.trove.foreign_lineage import PageComparison
from agent.operations.trove.links import ForeignLink
from agent.operations.trove.resources import TroveResources
from agent.pipeline.meter import Meter
from agent.records.trove.objects import ForeignBackup, TroveBackup
from agent.stop import Stop

log = logging.getLogger(__name__)

# In seconds. How long before the end of its upload a foreign backup may have begun. Files that were
# changed since then are read before an incremental.
_LONGEST_BACKUP: Final = 2 * 86400.0
# In bytes. How much of the start of a parent is read at most, and at a time.
_MOST_RAW: Final = 64 << 30
_STEP: Final = 8 << 20
_FULL: Final = "make a full backup"
_VERSION: Final = re.compile(r"\d{1,3}\.\d")


class ForeignTables(NamedTuple):
    """What is known about the tables of a parent that Trove's own code made.

    It implements agent.operations.backup.imports.ParentTables.
    """

    id: str
    to_lsn: int
    created: str
    updated: str
    last_table_id: None = None
    absent_table_ids: tuple[int, ...] = ()
    listed_at: None = None


def check_foreign(
    resources: TroveResources, chain: Sequence[TroveBackup], found: InstanceState, stop: Stop
) -> ForeignTables:
    """Check that an incremental of this datadir can continue `chain`, whose last one is foreign.

    It must be a full backup: nothing shows of which datadir a foreign incremental is.

    Raises:
        ParentUnusable: it can't, or nothing shows that it can.
        LineageChanged: the datadir's history is another one.
        DataDamaged: the parent's bytes are not those that were stored.
    """
    parent = chain[-1]
    assert isinstance(parent, ForeignBackup)
    _check_facts(parent, found, full=len(chain) == 1)
    try:
        lsn = _check_history(resources, parent, found, stop)
    except StreamInvalid as error:
        raise ParentUnusable(
            f"parent {parent.backup_id} holds no stream of an engine: {error}", hint=_FULL
        ) from error
    if lsn > found.lsn:
        raise LineageChanged(
            f"parent {parent.backup_id} ends at LSN {lsn}, but the server is at {found.lsn}",
            hint=_FULL,
        )
    stored_at = parent.object.facts.stored_at
    return ForeignTables(parent.backup_id, lsn, utc(stored_at - _LONGEST_BACKUP), utc(stored_at))


def _check_facts(parent: ForeignBackup, found: InstanceState, *, full: bool) -> None:
    if not full:
        raise ParentUnusable(
            f"parent {parent.backup_id} is an incremental that Trove's own code made, and nothing "
            "shows that it is one of this datadir",
            hint=_FULL,
        )
    if parent.encrypted:
        raise ParentUnusable(
            f"parent {parent.backup_id} was encrypted with openssl, and Trove gives its key only "
            "for a restore",
            hint=_FULL,
        )
    noted = parent.object.facts.metadata.get("datastore-version", "")
    # the operator chooses the name of a version, and it need not be one
    if _VERSION.match(noted) and series(noted) != series(found.server.version):
        raise ParentUnusable(
            f"parent {parent.backup_id} is a backup of server version {noted}, but this server has "
            f"version {found.server.version}",
            hint=_FULL,
        )


def _check_history(
    resources: TroveResources, full: ForeignBackup, found: InstanceState, stop: Stop
) -> int:
    """Check that a full backup is one of this datadir, and return the LSN at which it ends."""
    comparison = PageComparison(full.backup_id, found.server.datadir, stop)
    lsn = full.to_lsn
    if lsn is None:
        lsn = _read_whole(resources, full, comparison, stop).to_lsn
    else:
        _read_start(full, comparison, stop)
    comparison.check()
    log.info(
        "parent %s was made by Trove's own code: %d pages of it are the same in this datadir, the "
        "newest with LSN %d",
        full.backup_id,
        comparison.equal,
        comparison.newest,
    )
    return lsn


def _read_start(full: ForeignBackup, comparison: PageComparison, stop: Stop) -> None:
    """Compare the tables in the first part of a full backup, as much of it as is of use."""
    gunzip = Gunzip()
    for at in range(0, full.data_bytes, _STEP):
        stop.check()
        stored = full.object.read(at, min(_STEP, full.data_bytes - at))
        for block in gunzip.feed(stored):
            comparison.feed(memoryview(block))
        if comparison.enough or comparison.raw_bytes > _MOST_RAW:
            return


def _read_whole(
    resources: TroveResources, parent: ForeignBackup, parser: XbstreamParser, stop: Stop
) -> Checkpoints:
    """Read a whole parent with `parser`, and return the LSNs in it."""
    log.warning(
        "the object of parent %s doesn't state the LSN at which the backup ends, so all of it is "
        "read before the backup begins: %d MiB. A full backup needs no such time",
        parent.backup_id,
        parent.data_bytes >> 20,
    )

    def feed(block: bytes) -> None:
        parser.feed(memoryview(block))

    link = ForeignLink(resources, parent, engine="", password="")
    link.stream(feed, Meter(), stop)
    parser.finish()
    if "checkpoints" not in parser.metadata:
        raise StreamInvalid("it has no xtrabackup_checkpoints")
    checkpoints = parse_checkpoints(parser.metadata["checkpoints"])
    if parent.parent is None and checkpoints.from_lsn:
        raise ParentUnusable(
            f"parent {parent.backup_id} is an incremental from LSN {checkpoints.from_lsn}, and its "
            "object doesn't name its own parent",
            hint=_FULL,
        )
    return checkpoints
