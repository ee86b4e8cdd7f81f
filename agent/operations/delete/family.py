"""Delete a backup and all of its descendants.

The root is marked DELETING first. From then on no backup can begin or be completed on its chain.
Then the descendants are deleted, the deepest first, and the root is deleted last. Each backup is
deleted in this order: the record is marked DELETING, then the object, the segments and lists of
every attempt, the checks and the record are removed. So a backup without a record is deleted
completely, and a delete that was interrupted at any point can be repeated.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from agent.crash_points import Point, reached
from agent.errors import (
    BackupBusy,
    RecordDamaged,
    StoreFull,
    StoreMismatch,
    StoreRejected,
)
from agent.model import BackupStatus, Record
from agent.operations.backup.abandon import remove_segments
from agent.pipeline.meter import Meter
from agent.records.catalogue import Catalogue, ListedRecord
from agent.records.descendants import BackupNode, Family
from agent.records.object_names import backup_prefix, checks_name, object_name, record_name
from agent.stop import Stop
from agent.store.protocol import Container, Store, StoredObject
from agent.threads import about_backup

log = logging.getLogger(__name__)

# How long a delete waits for a running backup to report that it has stopped. The backup reads its
# record every 3 s (operations/backup/watch.py), the engine takes at most 3 s to end, then the
# segments are removed.
PATIENCE_SECONDS = 60.0
_LOOK_SECONDS = 0.5
# How many rounds a delete makes before it gives up. It needs another round if another backup
# appears below a root that is DELETING, or if the record of a backup is written during its removal.
# Once is a race, five times is a defect.
_ROUNDS = 5


class DeleteOperation:
    """One delete of one backup and its descendants.

    Call `run` once.

    Args:
        meter: counts the stored bytes that were removed.
        on_begin: is called with the root, already DELETING, before the store is changed.
        patience_seconds: how long to wait for running backups to stop.
        at_rest: attempts that have ended, so the delete doesn't wait for them.
        parents: returns the ids of the incrementals in the journal, each with its parent's id. A
            listing of the store may lack them.

    Attributes:
        deleted: the backups that were deleted.
    """

    def __init__(
        self,
        store: Store,
        catalogue: Catalogue,
        *,
        connections: int,
        meter: Meter,
        stop: Stop,
        on_begin: Callable[[Record], None],
        patience_seconds: float = PATIENCE_SECONDS,
        at_rest: Collection[str] = (),
        parents: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._store = store.bound(stop)
        self._catalogue = catalogue.bound(self._store)
        self._connections = connections
        self._meter = meter
        self._stop = stop
        self._on_begin = on_begin
        self._patience_seconds = patience_seconds
        self._waited = set(at_rest)
        self._known_parents = parents
        self._warned: set[str] = set()
        self._plan: Sequence[BackupNode] = ()
        self.deleted: list[BackupNode] = []

    def family(self, backup_id: str) -> Family:
        """Return the backups that `run` would delete, without changing the store.

        Raises:
            BackupUnknown: the backup has no record.
            RecordDamaged: the record of the backup can't be trusted.
            KeyNotHere: no key on this machine can check the record of the backup or of a
                descendant.
            RecordUnsupported: a later agent wrote the record of the backup or of a descendant.
        """
        self._store.open(create=False)
        return self._look(self._root(backup_id))

    @property
    def planned(self) -> list[str]:
        """Return the ids of the backups to delete, which are known when `on_begin` is called."""
        return [node.id for node in self._plan]

    def run(self, backup_id: str) -> Record:
        """Delete the backup and its descendants, and return the root's last record.

        Raises:
            BackupUnknown: the backup has no record.
            RecordDamaged, RecordUnsupported, KeyNotHere: a record can't be checked or read. Usually
                nothing is removed by then, but a record that appears later raises this, too.
            BackupBusy: new backups keep appearing below the root, or another process keeps writing
                the record of a backup.
        """
        self._store.open(create=False)
        root = self._root(backup_id)
        self._plan = self._look(root).plan()
        root = root.model_copy(update={"status": BackupStatus.DELETING})
        self._on_begin(root)
        root = self._condemn(backup_id) or root
        reached(Point.DELETE_CONDEMNED)
        self._delete_descendants(root)
        self._delete(root.id)
        self.deleted.append(BackupNode.of(root))
        return root

    def _root(self, backup_id: str) -> Record:
        try:
            return self._catalogue.need(backup_id)
        except RecordDamaged as error:
            raise RecordDamaged(
                f"{error}, so the agent can't tell if it may delete this backup",
                hint="to delete it all the same, remove its descendants by hand, then "
                f"{object_name(backup_id)}, everything under {backup_prefix(backup_id)} in the "
                f"segment container, and {record_name(backup_id)} last",
            ) from error

    def _look(self, root: Record) -> Family:
        """Read all records and return the root's family.

        Raises:
            KeyNotHere: the key for the record of a descendant is missing.
            RecordUnsupported: a later agent wrote the record of a descendant.
        """
        family = Family(root, self._rows())
        known, asked = self._known_parents(), set(family.members)
        # A child from the journal may have children itself, in the listing or in the journal.
        while hidden := [child for child in known if known[child] in asked and child not in asked]:
            asked.update(hidden)
            family.add(row for child in hidden for row in self._read_by_name(child))
            asked.update(family.members)
        self._warn(root, family)
        family.check()
        return family

    def _warn(self, root: Record, family: Family) -> None:
        fresh = [claim for claim in family.bad if claim.id not in self._warned]
        for claim in fresh:
            self._warned.add(claim.id)
            log.warning(
                "backup %s claims to descend from backup %s, but its record fails its MAC, so it "
                "is not deleted",
                claim.id,
                root.id,
            )
        if fresh and family.bad_count > len(family.bad):
            log.warning(
                "%d more backups claim the same with records that fail their MAC",
                family.bad_count - len(family.bad),
            )

    def _rows(self) -> Iterator[ListedRecord]:
        """Yield all records.

        A record that the store failed to return may be one of a descendant, so it is read again.
        """
        for row in self._catalogue.records():
            self._stop.check()
            if row.record is not None or row.later is not None:
                yield row
                continue
            yield from self._read_by_name(row.backup_id)

    def _read_by_name(self, backup_id: str) -> Iterator[ListedRecord]:
        """Yield the record of a backup, read by its name and not from the listing.

        Yield nothing if there is no record, or if it can't be read.
        """
        self._stop.check()
        try:
            row = self._catalogue.find(backup_id)
        except (StoreMismatch, StoreRejected) as error:
            log.warning(
                "can't read the record of backup %s, so its parent is unknown: %s",
                backup_id,
                error,
            )
            return
        if row is not None:
            yield row

    def _delete_descendants(self, root: Record) -> None:
        """Delete the root's descendants until no more are found, and wait for the root to stop.

        The root is marked DELETING before.

        Raises:
            BackupBusy: new descendants keep appearing.
        """
        for _ in range(_ROUNDS):
            self._stop.check()
            plan = self._look(root).plan()
            self._end_running(plan)
            *descendants, _ = plan
            if not descendants:
                return
            for node in descendants:
                with about_backup(node.id):
                    self._delete(node.id)
                self.deleted.append(node)
        raise BackupBusy(f"new backups keep appearing on top of backup {root.id}")

    def _end_running(self, plan: Sequence[BackupNode]) -> None:
        """Stop the backups that may be running, and wait until their records show that they ended.

        After `patience_seconds` the delete goes on without them.
        """
        waiting: dict[str, str] = {}
        for node in plan:
            if node.status in (BackupStatus.BUILDING, BackupStatus.DELETING):
                record = self._condemn(node.id)
                if record and _may_run(record) and record.attempt not in self._waited:
                    waiting[record.id] = record.attempt
        self._waited.update(waiting.values())
        deadline = time.monotonic() + self._patience_seconds
        while waiting := {i: a for i, a in waiting.items() if not self._has_stopped(i, a)}:
            if time.monotonic() > deadline:
                log.warning(
                    "these backups have not reported that they stopped, and are deleted all the "
                    "same: %s",
                    ", ".join(waiting),
                )
                return
            self._stop.wait(_LOOK_SECONDS)

    def _has_stopped(self, backup_id: str, attempt: str) -> bool:
        there = self._catalogue.read(backup_id)
        return (
            there is None or there.attempt != attempt or there.status is not BackupStatus.DELETING
        )

    def _delete(self, backup_id: str) -> None:
        """Delete one backup that has no descendants, if it isn't deleted already.

        Raises:
            BackupBusy: another process keeps writing its record.
        """
        for _ in range(_ROUNDS):
            self._stop.check()
            if self._condemn(backup_id) is None:
                return
            self._remove_bytes(backup_id)
            reached(Point.DELETE_BYTES)
            self._stop.check()
            there = self._catalogue.read(backup_id)
            # Else another process, which had not seen the mark, has written the record again.
            if there is None or there.status is BackupStatus.DELETING:
                self._catalogue.forget(backup_id)
                reached(Point.DELETE_FORGOTTEN)
                log.info("backup %s is deleted", backup_id)
                return
        raise BackupBusy(f"another process keeps writing the record of backup {backup_id}")

    def _condemn(self, backup_id: str) -> Record | None:
        """Mark a backup DELETING and return its record, None if the backup is deleted.

        If the store is too full for the record, make room first. Remove the backup's object, which
        the agent's readers don't need. If a directory is still too full, remove a segment of the
        deepest descendant (`_harm_deepest`).

        Raises:
            StoreFull: there is no room all the same.
        """
        try:
            return self._catalogue.condemn(backup_id)
        except StoreFull:
            self._remove_object(backup_id)
        try:
            return self._catalogue.condemn(backup_id)
        except StoreFull:
            # Swift counts a quota per container, and segments are in a container of their own
            harmed = self._harm_deepest() if self._store.joiner is None else None
            if harmed is None:
                raise
        try:
            return self._catalogue.condemn(backup_id)
        except StoreFull as error:
            raise StoreFull(
                f"{error}; backup {harmed} has lost a segment and can't be restored",
                hint="make room for a few small files, then repeat the delete",
            ) from error

    def _remove_object(self, backup_id: str) -> None:
        for sealed in (True, False):
            self._store.delete(Container.OBJECTS, object_name(backup_id, sealed=sealed))

    def _harm_deepest(self) -> str | None:
        """Remove the first segment of the deepest complete backup that is to be deleted.

        No other backup descends from it, so a delete that ends here costs no other backup. Its
        record is still COMPLETED, but agent.records.presence finds that it lacks the segment.
        Return the backup's id, or None if no backup has a segment.
        """
        for node in self._plan:
            rows = self._store.list(Container.SEGMENTS, backup_prefix(node.id))
            if node.status is not BackupStatus.BUILDING and (row := next(rows, None)):
                log.warning(
                    "the store is full: removing a segment of backup %s, which is to be deleted, "
                    "to make room for the marks of the delete",
                    node.id,
                )
                self._remove_segment(row)
                return node.id
        return None

    def _remove_bytes(self, backup_id: str) -> None:
        self._remove_object(backup_id)
        prefix = backup_prefix(backup_id)
        remove_segments(self._store, prefix, self._connections, self._remove_segment)
        self._store.delete(Container.OBJECTS, checks_name(backup_id))

    def _remove_segment(self, row: StoredObject) -> None:
        self._stop.check()
        self._store.delete(Container.SEGMENTS, row.name)
        self._meter.add(stored=row.size)


def _may_run(record: Record) -> bool:
    """Return True if a backup may be running, because it was neither completed nor given up."""
    return record.stored is None and record.error is None
