"""The end of a backup: its object and its COMPLETED record, written now or after a crash."""

from pydantic import ValidationError

from agent.errors import DataDamaged, RecordDamaged
from agent.model import Record
from agent.operations.backup.chain import check_stored
from agent.operations.resources import BackupResources
from agent.records.manifest import Manifest


def resume_commit(resources: BackupResources, journalled: str) -> Record:
    """Repeat the end of a commit from the finished record as it was journalled.

    Fenced where the backup can't be completed any more; DataDamaged or RecordDamaged where
    what is stored or journalled doesn't make it whole.
    """
    record = as_kept(journalled)
    resources.catalogue.fence(record)
    limits = resources.store.limits()
    manifest = Manifest(resources.store, limits, record.id, record.attempt, sealed=record.sealed)
    for number, segment in enumerate(resources.catalogue.segments(record)):
        manifest.add(number, segment)
    if record.stored is None or manifest.finish().etag != record.stored.slo_etag:
        raise DataDamaged(f"the segments of backup {record.id} are not those of its record")
    publish(resources, record, manifest)
    resources.catalogue.write(record)
    return record


def as_kept(journalled: str) -> Record:
    """A record as the journal holds it; RecordDamaged."""
    try:
        return Record.model_validate_json(journalled)
    except ValidationError as error:
        raise RecordDamaged("the record in the journal can't be read") from error


def publish(resources: BackupResources, finished: Record, manifest: Manifest) -> None:
    """Write the object of a backup that still is this attempt's to complete; else Fenced.

    ParentUnusable if the bytes of an ancestor are gone by now.
    """
    chain = resources.catalogue.fence(finished)
    check_stored(resources, chain)
    manifest.publish(_headers(finished, chain[-1] if chain else None))


def _headers(record: Record, parent: Record | None) -> dict[str, str]:
    """The object headers that Trove's own readers look for."""
    headers = {
        "X-Object-Meta-Lsn": str(record.to_lsn),
        "X-Object-Meta-Datastore": record.datastore.type,
        "X-Object-Meta-Datastore-Version": record.datastore.version or "",
    }
    if parent is not None and parent.stored is not None:
        headers["X-Object-Meta-Parent-Location"] = parent.locationRef or ""
        headers["X-Object-Meta-Parent-Checksum"] = parent.stored.slo_etag
    return headers
