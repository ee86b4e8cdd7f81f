"""Remove what belongs to no backup: orphans of this instance, by the rules of orphans.py.

It may run beside the daemon, and beside another of its kind. Nothing is touched that changed
within a day by the store's own clock; a BUILDING or DELETING backup only where the journal has
no task for it. What is to go was found by name, so an attempt that begins meanwhile is not among
it; and right before each backup's removal its record is read again, and must be what it was.
Where there is none, two reads some time apart have to say so, and the store's listing.

The record says FAILED before a backup's bytes go, and of those the object goes first and the
segments last: what is left when this ends anywhere is an orphan still, for the next run.
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
from agent.operations.backup.abandon import each_segment
from agent.operations.delete.family import DeleteOperation
from agent.operations.gc.orphans import (
    AGE_SECONDS,
    BackupObjects,
    Orphan,
    OrphanKind,
    moment,
    piles,
    with_record,
    without_record,
)
from agent.pipeline.meter import Meter
from agent.records.ancestry import Ancestry, Unrestorable
from agent.records.catalogue import Catalogue, ListedRecord
from agent.records.object_names import attempt_in, attempt_prefix
from agent.stop import Stop
from agent.store.protocol import Container, Store, StoredObject

log = logging.getLogger(__name__)

# Between two reads that are to find no record: an answer of one moment is no proof.
GAP_SECONDS: Final = 2.0
# Orphans that are known before the first of them goes.
_BATCH: Final = 1000
_CUT_OFF: Final = ErrorInfo.of(
    Interrupted("the backup was cut off, and no task is at work on it any more")
)
CHANGED: Final = "it has changed since it was looked at"


class GcOperation:
    """One collection in one store; `run` it once.

    `busy` tells the ids of the backups that unfinished tasks are about, None where there is no
    journal; `children` the parent of each incremental that the journal knows. With `dry_run`
    nothing is changed. After a run `young` is how many backups have something that may be an
    orphan and was touched within a day; `broken` names the COMPLETED ones that lack an ancestor.
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
        children: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._store = store.bound(stop)
        self._catalogue = catalogue.bound(self._store)
        self._instance_id = instance_id
        self._busy = busy
        self._children = children
        self._connections = connections
        self._stop = stop
        self.dry_run = dry_run
        self._gap_seconds = gap_seconds
        self._now = -math.inf
        self._ancestry = Ancestry()
        self.young = 0
        self.broken: list[Unrestorable] = []

    def run(self) -> Iterator[Orphan]:
        """Collect, and tell of each orphan what became of it: it is gone, or left alone.

        StoreError where the store can't be asked or refuses, JournalError where the journal
        can't be read; whatever was not told of is untouched then, but perhaps the next one.
        """
        try:
            self._store.open(create=False)
            self._now = self._store.clock()
        except StoreNotFound as error:
            log.info("there is nothing to collect: %s", error)
            return
        found = self._find()
        while batch := list(islice(found, _BATCH)):
            yield from batch if self.dry_run else self._collect(batch)
        self.broken = self._ancestry.broken(self._catalogue.look)

    def _find(self) -> Iterator[Orphan]:
        for pile in piles(self._store, self._catalogue):
            self._stop.check()
            if pile.listed is not None:
                self._ancestry.add(pile.listed)
            orphan, youngest = self._judge(pile)
            if orphan and self._now - youngest < AGE_SECONDS:
                self.young += 1
            elif orphan:
                yield orphan

    def _judge(self, pile: BackupObjects) -> tuple[Orphan | None, float]:
        """Return what may go of a pile, and when anything of it was touched last."""
        listed = pile.listed
        if listed is None or listed.record is None:
            orphan = without_record(pile, self._instance_id)
            if orphan is None:
                return None, pile.youngest  # nothing in it is known to be this instance's
            try:
                listed = self._catalogue.look(pile.backup_id)
            except (StoreMismatch, StoreRejected) as error:
                return orphan.left(f"its record can't be read: {error}"), pile.youngest
            if listed is None:
                return orphan, pile.youngest
        # the record may be of a later moment than the listing, which says nothing of its age then
        youngest = max(pile.youngest, moment(listed.record.updated) if listed.record else -math.inf)
        idle_seconds = self._now - youngest
        orphan = with_record(pile, listed, self._instance_id, self._busy(), idle_seconds)
        return orphan, youngest

    def _collect(self, batch: list[Orphan]) -> Iterator[Orphan]:
        if any(orphan.record is None for orphan in batch):
            self._stop.wait(self._gap_seconds)
        reached(Point.GC_FOUND)
        for orphan in batch:
            self._stop.check()
            yield orphan if orphan.what is OrphanKind.LEFT_ALONE else self._take(orphan)

    def _take(self, orphan: Orphan) -> Orphan:
        """Remove an orphan, if it is one still."""
        try:
            if not self._unchanged(orphan):
                return orphan.left(CHANGED)
            if orphan.what is OrphanKind.DELETING:
                self._finish_delete(orphan)
            else:
                self._remove(orphan)
        except BackupUnknown:
            return orphan  # somebody else has finished it
        except (Fenced, DataError, BackupBusy) as error:
            return orphan.left(str(error))
        log.info("removed what was left of backup %s: %s", orphan.backup_id, orphan.why)
        reached(Point.GC_REMOVED)
        return orphan

    def _unchanged(self, orphan: Orphan) -> bool:
        there = self._catalogue.look(orphan.backup_id)
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
        update = {"status": BackupStatus.FAILED, "updated": utc_now(), "error": _CUT_OFF}
        failed = record.model_copy(update=update)
        try:
            self._catalogue.write(failed)
        except StoreFull:
            # nobody can complete it, and what fills the store may be its own bytes
            self._remove_bytes(orphan)
            self._catalogue.write(failed)

    def _remove_bytes(self, orphan: Orphan) -> None:
        for name in orphan.names:
            self._store.delete(Container.OBJECTS, name)
        for attempt in orphan.attempts:
            prefix = attempt_prefix(orphan.backup_id, attempt)
            each_segment(self._store, prefix, self._connections, self._remove_segment)
        self._catalogue.retract(orphan.backup_id, orphan.attempts, _CUT_OFF)

    def _remove_segment(self, row: StoredObject) -> None:
        self._stop.check()
        old = self._now - moment(row.modified) >= AGE_SECONDS
        if old and attempt_in(row.name) is not None:
            self._store.delete(Container.SEGMENTS, row.name)

    def _finish_delete(self, orphan: Orphan) -> None:
        DeleteOperation(
            self._store,
            self._catalogue,
            connections=self._connections,
            meter=Meter(),
            stop=self._stop,
            on_begin=lambda record: log.info("delete of backup %s goes on", record.id),
            children=self._children,
            at_rest=[orphan.record.attempt] if orphan.record else (),
        ).run(orphan.backup_id)
