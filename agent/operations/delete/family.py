"""Delete a backup and all that descend from it.

The root is marked DELETING first: from then on nothing is begun or completed on its chain.
Then its descendants go, the deepest first, and it goes last. Of each backup the order is:
record DELETING, object, segments and lists of every attempt, checks, record gone. So what
has no record is gone altogether, and a delete that was cut off anywhere is repeated.
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
from agent.operations.backup.abandon import each_segment
from agent.pipeline.meter import Meter
from agent.records.catalogue import Catalogue, ListedRecord
from agent.records.descendants import BackupNode, Family
from agent.records.object_names import backup_prefix, checks_name, object_name, record_name
from agent.stop import Stop
from agent.store.protocol import Container, Store, StoredObject

log = logging.getLogger(__name__)

# How long whoever makes a backup has to say that it has stopped: it looks every 3 s
# (operations/watch.py), the engine takes 3 s at most to end, then its segments go.
PATIENCE_SECONDS = 60.0
_LOOK_SECONDS = 0.5
# How often something may turn up anew below a root that is DELETING, or in a backup that is
# being removed, before the delete gives up: once is a race, five times is a defect.
_ROUNDS = 5


class DeleteOperation:
    """One delete of one backup and its descendants; `run` it once.

    `on_begin` is called with the root as it will be, before anything is changed. `meter`
    counts the stored bytes that went. `at_rest` are attempts that nobody makes any more, so they
    are not waited for. `children` tells the parent of each incremental that the journal knows: a
    listing may lack them. `planned` are the ids of what is to go,
    set before `on_begin`; `deleted` names the backups that are gone.
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
        children: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._store = store.bound(stop)
        self._catalogue = catalogue.bound(self._store)
        self._connections = connections
        self._meter = meter
        self._stop = stop
        self._on_begin = on_begin
        self._patience_seconds = patience_seconds
        self._waited = set(at_rest)
        self._known_children = children
        self._warned: set[str] = set()
        self.planned: list[str] = []
        self.deleted: list[BackupNode] = []

    def family(self, backup_id: str) -> Family:
        """What `run` would delete; nothing is changed.

        BackupUnknown, RecordDamaged where its own record can't be trusted, KeyNotHere where
        its own or a descendant's can't be checked.
        """
        self._store.open(create=False)
        return self._look(self._root(backup_id))

    def run(self, backup_id: str) -> Record:
        """Delete; return the root's last record. Errors as of `family`, before anything goes.

        BackupBusy where backups keep appearing below the root.
        """
        self._store.open(create=False)
        root = self._root(backup_id)
        self.planned = [kin.id for kin in self._look(root).plan()]
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
                f"{error}, so nobody can tell whether it is to be deleted",
                hint="if it is, remove by hand what descends from it, then "
                f"{object_name(backup_id)}, everything under {backup_prefix(backup_id)} in the "
                f"segment container, and {record_name(backup_id)} last",
            ) from error

    def _look(self, root: Record) -> Family:
        """The family by the records as they are now; KeyNotHere where a key is missing."""
        family = Family(root, self._rows())
        known, asked = self._known_children(), set(family.members)
        # a child that is found may have children that were listed, or that the journal knows
        while hidden := [child for child in known if known[child] in asked and child not in asked]:
            asked.update(hidden)
            family.add(row for child in hidden for row in self._again(child))
            asked.update(family.members)
        self._warn(root, family)
        family.check()
        return family

    def _warn(self, root: Record, family: Family) -> None:
        fresh = [claim for claim in family.bad if claim.id not in self._warned]
        for claim in fresh:
            self._warned.add(claim.id)
            log.warning(
                "backup %s claims to descend from backup %s, but its record fails its MAC: "
                "it is left as it is",
                claim.id,
                root.id,
            )
        if fresh and family.bad_count > len(family.bad):
            log.warning("and so do %d more", family.bad_count - len(family.bad))

    def _rows(self) -> Iterator[ListedRecord]:
        """All records.

        One that the store failed on might be a descendant: it is asked again.
        """
        for row in self._catalogue.records():
            self._stop.check()
            if row.record is not None:
                yield row
                continue
            yield from self._again(row.backup_id)

    def _again(self, backup_id: str) -> Iterator[ListedRecord]:
        """Read one record past the listing, if there is one."""
        self._stop.check()
        try:
            row = self._catalogue.look(backup_id)
        except (StoreMismatch, StoreRejected) as error:
            log.warning("whose child backup %s is can't be read: %s", backup_id, error)
            return
        if row is not None:
            yield row

    def _delete_descendants(self, root: Record) -> None:
        """Delete until a look after the root was marked finds none; the root has stopped, too."""
        for _ in range(_ROUNDS):
            self._stop.check()
            plan = self._look(root).plan()
            self._end_running(plan)
            *descendants, _ = plan
            if not descendants:
                return
            for kin in descendants:
                self._delete(kin.id)
                self.deleted.append(kin)
        raise BackupBusy(f"backups keep appearing on top of backup {root.id}")

    def _end_running(self, plan: Sequence[BackupNode]) -> None:
        """Have those that may be in the making stopped, and wait until they say so."""
        waiting: dict[str, str] = {}
        for kin in plan:
            if kin.status in (BackupStatus.BUILDING, BackupStatus.DELETING):
                record = self._condemn(kin.id)
                if record and _may_run(record) and record.attempt not in self._waited:
                    waiting[record.id] = record.attempt
        self._waited.update(waiting.values())
        deadline = time.monotonic() + self._patience_seconds
        while waiting := {i: a for i, a in waiting.items() if not self._has_stopped(i, a)}:
            if time.monotonic() > deadline:
                log.warning("nobody says that %s stopped: deleted all the same", ", ".join(waiting))
                return
            self._stop.wait(_LOOK_SECONDS)

    def _has_stopped(self, backup_id: str, attempt: str) -> bool:
        there = self._catalogue.read(backup_id)
        return (
            there is None or there.attempt != attempt or there.status is not BackupStatus.DELETING
        )

    def _delete(self, backup_id: str) -> None:
        """Remove one backup that has no descendants; nothing happens where it is gone."""
        for _ in range(_ROUNDS):
            self._stop.check()
            if self._condemn(backup_id) is None:
                return
            self._remove_bytes(backup_id)
            reached(Point.DELETE_BYTES)
            self._stop.check()
            there = self._catalogue.read(backup_id)
            # else somebody who had not seen the mark wrote the record once more
            if there is None or there.status is BackupStatus.DELETING:
                self._catalogue.forget(backup_id)
                reached(Point.DELETE_FORGOTTEN)
                log.info("backup %s is deleted", backup_id)
                return
        raise BackupBusy(f"the record of backup {backup_id} keeps being written by someone else")

    def _condemn(self, backup_id: str) -> Record | None:
        """Mark a backup DELETING; where the store lacks room even for that, its object makes some.

        Our own readers don't need the object, so a backup whose delete ends there is whole.
        """
        try:
            return self._catalogue.condemn(backup_id)
        except StoreFull:
            self._remove_object(backup_id)
            return self._catalogue.condemn(backup_id)

    def _remove_object(self, backup_id: str) -> None:
        for sealed in (True, False):
            self._store.delete(Container.OBJECTS, object_name(backup_id, sealed=sealed))

    def _remove_bytes(self, backup_id: str) -> None:
        self._remove_object(backup_id)
        prefix = backup_prefix(backup_id)
        each_segment(self._store, prefix, self._connections, self._remove_segment)
        self._store.delete(Container.OBJECTS, checks_name(backup_id))

    def _remove_segment(self, row: StoredObject) -> None:
        self._stop.check()
        self._store.delete(Container.SEGMENTS, row.name)
        self._meter.add(stored=row.size)


def _may_run(record: Record) -> bool:
    """Whether someone may be making it: it was neither completed nor given up."""
    return record.stored is None and record.error is None
