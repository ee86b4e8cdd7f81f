"""Mark a backup that will not be finished as FAILED or CANCELLED, and remove its bytes."""

import logging
from collections.abc import Callable
from itertools import islice

from agent.crash_points import Point, reached
from agent.errors import Cancelled, Fenced, StoreError, StoreFull
from agent.model import BackupStatus, ErrorInfo, Record, utc_now
from agent.operations.resources import BackupResources
from agent.records.object_names import attempt_prefix, object_name
from agent.store.protocol import Container, Store, StoredObject
from agent.threads import Workers

log = logging.getLogger(__name__)

_BATCH = 1000  # rows of a listing in memory at a time


def abandon_record(
    resources: BackupResources, record: Record, error: ErrorInfo, *, remove: bool = True
) -> Record | None:
    """Mark a backup FAILED or CANCELLED, then remove its object and segments.

    The status is CANCELLED if `error` is a cancel, or if another process is deleting the backup.
    The bytes are removed only after the store has confirmed the record, because then no reader
    takes the backup for a good one. If the store refuses the record for certain, the bytes are
    removed before a second write. Without `remove` the bytes stay. That is for a write of the
    COMPLETED record that may still reach the store, and mark a backup without bytes as good. If a
    delete goes on, see `_give_way`. Return the record, which is COMPLETED if the backup turns out
    to be complete. Return None if the store has no record of this attempt.

    Raises:
        Fenced: this attempt may not change the record any more.
        StoreError: the store can't be read or written.
    """
    there = resources.catalogue.read(record.id)
    if there is None or there.attempt != record.attempt:
        if remove:
            # This attempt was never committed and never can be. If another attempt has the record,
            # the object may belong to it, so the object stays.
            _remove(resources, record, error, keep_object=there is not None)
        return None
    if there.status is BackupStatus.COMPLETED and resources.catalogue.verify_or_condemn(there):
        return there
    if there.status in (BackupStatus.COMPLETED, BackupStatus.DELETING):
        return _give_way(resources, record, error, remove=remove)
    cancelled = error.code == Cancelled.code
    status = BackupStatus.CANCELLED if cancelled else BackupStatus.FAILED
    failed = record.model_copy(update={"status": status, "updated": utc_now(), "error": error})
    try:
        resources.catalogue.write(failed)
    except Fenced:
        if late := _completed_meanwhile(resources, record):
            return late
        raise
    except StoreError as refusal:
        if not (remove and (refusal.without_effect or isinstance(refusal, StoreFull))):
            raise
        # No request can still commit the backup, and its own bytes may be what fills the store.
        _remove(resources, record, error)
        resources.catalogue.write(failed)
    reached(Point.RECORD_FAILED)
    if remove:
        if late := _completed_meanwhile(resources, record):
            return late
        _remove(resources, record, error)
        reached(Point.BYTES_REMOVED)
    return failed


def _completed_meanwhile(resources: BackupResources, record: Record) -> Record | None:
    """Return the COMPLETED record if an agent with the same journal has written it, else None.

    No bytes have been removed at this point, so that backup is complete. See also
    Catalogue.retract.
    """
    there = resources.catalogue.read(record.id)
    if there is None or there.attempt != record.attempt:
        return None
    return there if there.status is BackupStatus.COMPLETED else None


def _give_way(
    resources: BackupResources, record: Record, error: ErrorInfo, *, remove: bool
) -> Record:
    """Mark a backup CANCELLED, so that a waiting delete task sees that it has stopped.

    The record is the signal for the delete task, so it is written last. The bytes may be removed
    before, because no reader takes a DELETING backup for a good one.
    """
    if remove:
        _remove(resources, record, error)
    cancelled = record.model_copy(
        update={"status": BackupStatus.CANCELLED, "updated": utc_now(), "error": error}
    )
    try:
        resources.catalogue.write(cancelled)
    except Fenced as fenced:
        log.info("no delete task waits for the end of this backup: %s", fenced)
    return cancelled


def _remove(
    resources: BackupResources, record: Record, error: ErrorInfo, *, keep_object: bool = False
) -> None:
    if not keep_object:
        resources.store.delete(Container.OBJECTS, object_name(record.id, sealed=record.sealed))
    remove_attempt(resources, record.id, record.attempt, error)


def remove_attempt(
    resources: BackupResources, backup_id: str, attempt: str, error: ErrorInfo
) -> None:
    """Remove the segments and lists of an attempt that failed with `error`.

    Then read the record once more. If it names this attempt as COMPLETED by then, mark it FAILED
    with `error`.
    """

    def remove(row: StoredObject) -> None:
        resources.store.delete(Container.SEGMENTS, row.name)

    remove_segments(
        resources.store, attempt_prefix(backup_id, attempt), resources.path.connections, remove
    )
    resources.catalogue.retract(backup_id, (attempt,), error)


def remove_segments(
    store: Store, prefix: str, connections: int, remove: Callable[[StoredObject], None]
) -> None:
    """Call `remove` for each object in the segment container with a name that begins with `prefix`.

    The calls run in parallel, over `connections` threads. If a call raises an error, the error is
    raised here after the calls that are under way have ended.
    """
    rows = store.list(Container.SEGMENTS, prefix)
    with Workers(connections, "remove") as workers:
        while batch := list(islice(rows, _BATCH)):
            list(workers.map(remove, batch))
