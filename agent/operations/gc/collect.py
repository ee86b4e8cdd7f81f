"""Remove the orphans of this instance: stored objects that belong to no backup.

The rules for orphans are in orphans.py. A collection may run beside the daemon, and beside another
collection. These rules make that safe:

- Objects that changed within a day, by the store's own clock, stay.
- A BUILDING or DELETING backup is an orphan only if the journal has no task for it.
- Orphans are found by their names first. So an attempt that begins later is not among them.
- Right before the removal of each backup its record is read again, and must be unchanged.
- A backup counts as one without a record only if the store's listing and two reads, some time
  apart, find none.

The record of a BUILDING backup is marked FAILED before its bytes are removed. The object is removed
first and the segments last. So if a collection ends at any point, the rest is still an orphan for
the next collection.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Final

from agent.crash_points import Point, reached
from agent.errors import (
    BackupBusy,
    BackupUnknown,
    DataError,
    Fenced,
    Interrupted,
    StoreFull,
    StoreMismatch,
    StoreNotFound,
    StoreRejected,
)
from agent.keys.keyring import RecordState
from agent.model import BackupStatus, ErrorInfo, Record, utc_now
from agent.operations.backup.abandon import remove_segments
from agent.operations.delete.family import DeleteOperation
from agent.operations.gc.orphans import (
    AGE_SECONDS,
    BackupObjects,
    Orphan,
    OrphanKind,
    stored_backups,
    unix_seconds,
    with_record,
    without_record,
)
from agent.pipeline.meter import Meter
from agent.records.ancestry import Ancestry, Unrestorable
from agent.records.catalogue import Catalogue, ListedRecord
from agent.records.object_names import attempt_in, attempt_prefix
from agent.stop import Stop
from agent.store.protocol import Container, Store, StoredObject
from agent.threads import about_backup

log = logging.getLogger(__name__)

# Between the two reads that must find no record, because one read is no proof.
GAP_SECONDS: Final = 2.0
# Orphans that are found before the first of them is removed.
_BATCH: Final = 1000
_INTERRUPTED: Final = ErrorInfo.of(
    Interrupted("the backup was interrupted, and no task is working on it any more")
)
CHANGED: Final = "it has changed since the collection first read it"


class GcOperation:
    """One collection in one store.

    Call `run` once. With `dry_run` nothing is changed.

    Args:
        busy: returns the ids of the backups of all unfinished tasks, None if there is no journal.
        parents: returns the ids of the incrementals in the journal, each with its parent's id.
        gap_seconds: the time between the two reads that must find no record.

    Attributes:
        young: after a run, the number of backups with objects that may be orphans, but changed
            within a day.
        broken: after a run, the COMPLETED backups that lack an ancestor.
    """

    def __init__(
        self,
        store: Store,
        catalogue: Catalogue,
        instance_id: str,
        *,
        busy: Callable[[], frozenset[str] | None],
        connections: int,
        stop: Stop,
        dry_run: bool = False,
        gap_seconds: float = GAP_SECONDS,
        parents: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._store = store.bound(stop)
        self._catalogue = catalogue.bound(self._store)
        self._instance_id = instance_id
        self._busy = busy
        self._parents = parents
        self._connections = connections
        self._stop = stop
        self.dry_run = dry_run
        self._gap_seconds = gap_seconds
        self._now = -math.inf
        self._ancestry = Ancestry()
        self.young = 0
        self.broken: list[Unrestorable] = []

    def run(self) -> Iterator[Orphan]:
        """Remove the orphans, and yield each one, removed or left alone.

        After an error, orphans that were not yielded are untouched, except perhaps the next one.

        Raises:
            StoreError: the store doesn't answer, or refuses a request.
            JournalError: the journal can't be read.
        """
        try:
            self._store.open(create=False)
            self._now = self._store.clock()
        except StoreNotFound as error:
            log.info("there are no orphans to collect: %s", error)
            return
        found = self._find()
        while batch := list(islice(found, _BATCH)):
            yield from batch if self.dry_run else self._collect(batch)
        self.broken = self._ancestry.broken(self._catalogue.find)

    def _find(self) -> Iterator[Orphan]:
        for stored in stored_backups(self._store, self._catalogue):
            self._stop.check()
            if stored.listed is not None:
                self._ancestry.add(stored.listed)
            orphan, youngest = self._judge(stored)
            if orphan and self._now - youngest < AGE_SECONDS:
                self.young += 1
            elif orphan:
                yield orphan

    def _judge(self, stored: BackupObjects) -> tuple[Orphan | None, float]:
        """Return the orphan among a backup's objects, and the Unix time of the last change.

        The orphan is None if there is none.
        """
        listed = stored.listed
        if listed is None or listed.record is None:
            orphan = without_record(stored, self._instance_id)
            if orphan is None:
                return None, stored.youngest  # no object is known to belong to this instance
            try:
                listed = self._catalogue.find(stored.backup_id)
            except (StoreMismatch, StoreRejected) as error:
                return orphan.left(f"can't read its record: {error}"), stored.youngest
            if listed is None:
                return orphan, stored.youngest
        # The record may be newer than the listing, so the time in the record counts as well.
        youngest = max(
            stored.youngest, unix_seconds(listed.record.updated) if listed.record else -math.inf
        )
        idle_seconds = self._now - youngest
        orphan = with_record(stored, listed, self._instance_id, self._busy(), idle_seconds)
        return orphan, youngest

    def _collect(self, batch: list[Orphan]) -> Iterator[Orphan]:
        if any(orphan.record is None for orphan in batch):
            self._stop.wait(self._gap_seconds)
        reached(Point.GC_FOUND)
        for orphan in batch:
            self._stop.check()
            if orphan.what is not OrphanKind.LEFT_ALONE:
                with about_backup(orphan.backup_id):
                    orphan = self._take(orphan)
            yield orphan

    def _take(self, orphan: Orphan) -> Orphan:
        """Remove an orphan, if it is still one, and return it with its outcome."""
        try:
            if not self._unchanged(orphan):
                return orphan.left(CHANGED)
            if orphan.what is OrphanKind.DELETING:
                self._finish_delete(orphan)
            else:
                self._remove(orphan)
        except BackupUnknown:
            return orphan  # another process has finished the delete
        except (Fenced, DataError, BackupBusy) as error:
            return orphan.left(str(error))
        log.info("removed the orphaned objects of backup %s: %s", orphan.backup_id, orphan.why)
        reached(Point.GC_REMOVED)
        return orphan

    def _unchanged(self, orphan: Orphan) -> bool:
        there = self._catalogue.find(orphan.backup_id)
        if there is None or orphan.record is None:
            return there is None and orphan.record is None
        if orphan.what in (OrphanKind.INTERRUPTED, OrphanKind.GIVEN_UP, OrphanKind.DELETING):
            busy = self._busy() or frozenset()
            if orphan.backup_id in busy:
                return False
        return there == ListedRecord(orphan.backup_id, RecordState.OK, orphan.record)

    def _remove(self, orphan: Orphan) -> None:
        if orphan.what is OrphanKind.INTERRUPTED and orphan.record is not None:
            self._give_up(orphan, orphan.record)
        self._remove_bytes(orphan)

    def _give_up(self, orphan: Orphan, record: Record) -> None:
        update = {"status": BackupStatus.FAILED, "updated": utc_now(), "error": _INTERRUPTED}
        failed = record.model_copy(update=update)
        try:
            self._catalogue.write(failed)
        except StoreFull:
            # No task can complete the backup, and its own bytes may be what fills the store.
            self._remove_bytes(orphan)
            self._catalogue.write(failed)

    def _remove_bytes(self, orphan: Orphan) -> None:
        for name in orphan.names:
            self._store.delete(Container.OBJECTS, name)
        for attempt in orphan.attempts:
            prefix = attempt_prefix(orphan.backup_id, attempt)
            remove_segments(self._store, prefix, self._connections, self._remove_segment)
        self._catalogue.retract(orphan.backup_id, orphan.attempts, _INTERRUPTED)

    def _remove_segment(self, row: StoredObject) -> None:
        self._stop.check()
        old = self._now - unix_seconds(row.modified) >= AGE_SECONDS
        if old and attempt_in(row.name) is not None:
            self._store.delete(Container.SEGMENTS, row.name)

    def _finish_delete(self, orphan: Orphan) -> None:
        DeleteOperation(
            self._store,
            self._catalogue,
            connections=self._connections,
            meter=Meter(),
            stop=self._stop,
            on_begin=lambda record: log.info("continuing the delete of backup %s", record.id),
            parents=self._parents,
            at_rest=[orphan.record.attempt] if orphan.record else (),
        ).run(orphan.backup_id)
