"""What becomes of a backup that will not be finished: its record says so, its bytes go."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from agent.crash_points import Point, reached
from agent.errors import Cancelled, Fenced, StoreError, StoreFull
from agent.model import BackupStatus, ErrorInfo, Record, utc_now
from agent.operations.resources import BackupResources
from agent.records.object_names import attempt_prefix, object_name
from agent.store.protocol import Container, Store, StoredObject

log = logging.getLogger(__name__)

_BATCH = 1000  # rows of a listing held in memory at a time


def abandon_record(
    resources: BackupResources, record: Record, error: ErrorInfo, *, remove: bool = True
) -> Record | None:
    """Write the record of a backup that will not be finished, then remove its object and segments.

    They go only after the store has confirmed that nobody takes the backup for a good one.
    Without `remove` they stay: for where a write of the COMPLETED record may still be under
    way to the store, and would make a good one of a backup without bytes. Where the record
    turns out COMPLETED already, that one is returned; None where the store has no record of
    this attempt.
    """
    there = resources.catalogue.read(record.id)
    if there is None or there.attempt != record.attempt:
        if remove:
            # it was never committed and can't be any more, whoever has the id now
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
        # nothing is committing it, and what fills the store may be its own bytes
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
    """Return the COMPLETED record that an agent with the same journal has written; else None.

    Nothing was removed yet, so that backup is whole. See also Catalogue.retract.
    """
    there = resources.catalogue.read(record.id)
    if there is None or there.attempt != record.attempt:
        return None
    return there if there.status is BackupStatus.COMPLETED else None


def _give_way(
    resources: BackupResources, record: Record, error: ErrorInfo, *, remove: bool
) -> Record:
    """Tell whoever waits to delete this backup that its making has ended.

    The record is the signal, so it comes last; nobody takes a DELETING backup for a good one.
    """
    if remove:
        _remove(resources, record, error)
    cancelled = record.model_copy(
        update={"status": BackupStatus.CANCELLED, "updated": utc_now(), "error": error}
    )
    try:
        resources.catalogue.write(cancelled)
    except Fenced as fenced:
        log.info("nobody waited for it: %s", fenced)
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

    The record is looked at once more afterwards: one that names the attempt as COMPLETED by
    then becomes FAILED.
    """

    def remove(row: StoredObject) -> None:
        resources.store.delete(Container.SEGMENTS, row.name)

    each_segment(
        resources.store, attempt_prefix(backup_id, attempt), resources.path.connections, remove
    )
    resources.catalogue.retract(backup_id, (attempt,), error)


def each_segment(
    store: Store, prefix: str, connections: int, remove: Callable[[StoredObject], None]
) -> None:
    """Have everything on the segment shelf removed whose name begins with `prefix`, in parallel.

    Raises what `remove` raises, after those that are under way.
    """
    rows = store.list(Container.SEGMENTS, prefix)
    with ThreadPoolExecutor(connections, "remove") as workers:
        while batch := list(islice(rows, _BATCH)):
            list(workers.map(remove, batch))
