"""Check the parent that Trove names for an incremental backup."""

from typing import NamedTuple

from agent.errors import BackupUnusable, DataDamaged, ParentUnusable
from agent.model import is_uuid
from agent.operations.backup.completeness import Listing
from agent.operations.backup.preflight import InstanceState, check_continues, check_pages
from agent.operations.trove.foreign_parent import check_foreign
from agent.operations.trove.resources import TroveResources
from agent.records.trove.objects import OwnBackup, Place, TroveBackup, read_backup, read_chain
from agent.stop import Stop

_FULL = "make a full backup"


class Parent(NamedTuple):
    """The place of a parent, the LSN at which it ends, and the tablespaces that were checked."""

    place: Place
    to_lsn: int
    checked_spaces: Listing


def check_parent(
    resources: TroveResources,
    place: Place,
    found: InstanceState,
    instance_id: str,
    stop: Stop,
) -> Parent:
    """Check that an incremental of this datadir can continue the backup at `place`.

    The objects of its whole chain must answer. The check ends at once if `stop` is requested.

    Raises:
        ParentUnusable: a backup of the chain is missing, damaged or doesn't fit.
        LineageChanged: the datadir's history is another one.
        RecordDamaged, KeyNotHere: a record can't be trusted.
    """
    if not is_uuid(place.location.backup_id):
        raise ParentUnusable(
            f"the parent's object {place.location.name!r} is not named after a backup", hint=_FULL
        )
    try:
        chain = read_chain(resources.store, place, resources.keyring)
        for backup in chain:
            stop.check()
            check_bytes(backup)
        last = chain[-1]
        if not isinstance(last, OwnBackup):
            tables = check_foreign(resources, chain, found, stop)
            spaces = check_pages(resources, tables, found, stop.check)
            return Parent(place, tables.to_lsn, spaces)
    except (BackupUnusable, DataDamaged) as error:
        raise ParentUnusable(f"the parent can't be used: {error}", hint=_FULL) from error
    check_continues(last.record, found, instance_id)
    spaces = check_pages(resources, last.record, found, stop.check)
    return Parent(place, last.record.to_lsn or 0, spaces)


def still_there(resources: TroveResources, place: Place) -> None:
    """Check once more, before the commit, that the parent's object answers.

    Raises:
        ParentUnusable: it doesn't, or it is another one.
    """
    try:
        check_bytes(read_backup(resources.store, place, resources.keyring))
    except (BackupUnusable, DataDamaged) as error:
        raise ParentUnusable(
            f"the parent was lost while the backup was made: {error}", hint=_FULL
        ) from error


def check_bytes(backup: TroveBackup) -> None:
    """Read the first and the last byte of a backup.

    Raises:
        DataDamaged: the store doesn't have them.
    """
    for offset in {0, max(0, backup.data_bytes - 1)}:
        backup.object.read(offset, 1)
