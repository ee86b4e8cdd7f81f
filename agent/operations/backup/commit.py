"""Commit a backup, at its end or after a crash.

A commit writes the object that joins the segments, if the store joins any, and then the COMPLETED
record.
"""

from pydantic import ValidationError

from agent.errors import DataDamaged, RecordDamaged, StoreMismatch
from agent.model import Record
from agent.operations.backup.chain import check_stored
from agent.operations.resources import BackupResources
from agent.records.manifest import Manifest
from agent.records.part_names import AttemptNames
from agent.records.presence import missing


def resume_commit(resources: BackupResources, journalled: str) -> Record:
    """Repeat the end of a commit from the finished record in the journal.

    Raises:
        Fenced: the backup can't be completed any more.
        DataDamaged: the stored segments are not the segments of the record.
        RecordDamaged: the record in the journal can't be read.
        ParentUnusable: the bytes of an ancestor are missing or changed.
        StoreMismatch: a segment of this backup is missing or changed.
        Cancelled: a delete removed the bytes meanwhile.
    """
    record = parse_journalled(journalled)
    resources.catalogue.fence(record)
    limits = resources.store.limits()
    names = AttemptNames(record.id, record.attempt, record.sealed)
    manifest = Manifest(resources.store, limits, names)
    for number, segment in enumerate(resources.catalogue.segments(record)):
        manifest.add(number, segment)
    if record.stored is None or manifest.finish().etag != record.stored.slo_etag:
        raise DataDamaged(f"the segments of backup {record.id} are not those of its record")
    publish(resources, record, manifest)
    resources.catalogue.write(record)
    return record


def parse_journalled(journalled: str) -> Record:
    """Parse a record from the journal. Raise RecordDamaged if it can't be read."""
    try:
        return Record.model_validate_json(journalled)
    except ValidationError as error:
        raise RecordDamaged("can't read the record in the journal") from error


def publish(resources: BackupResources, finished: Record, manifest: Manifest) -> None:
    """Check that this attempt may still complete its backup, then write the object.

    No object is written if the store joins no segments.

    Raises:
        Fenced: the backup belongs to another attempt, has another status, or its chain changed.
        ParentUnusable: the bytes of an ancestor are missing or changed.
        StoreMismatch: a segment of this backup is missing or changed.
    """
    chain = resources.catalogue.fence(finished)
    check_stored(resources, chain)
    manifest.publish(_headers(finished, chain[-1] if chain else None))
    # segments of a large backup were compared hours ago, and a delete may have begun to remove them
    if lost := missing(resources.store, finished):
        raise StoreMismatch(f"backup {finished.id} is not as it was stored: {lost}")


def _headers(record: Record, parent: Record | None) -> dict[str, str]:
    """Return the object headers that Trove's own readers look for."""
    headers = {
        "X-Object-Meta-Lsn": str(record.to_lsn),
        "X-Object-Meta-Datastore": record.datastore.type,
        "X-Object-Meta-Datastore-Version": record.datastore.version or "",
    }
    if parent is not None and parent.stored is not None:
        headers["X-Object-Meta-Parent-Location"] = parent.locationRef or ""
        headers["X-Object-Meta-Parent-Checksum"] = parent.stored.slo_etag
    return headers
