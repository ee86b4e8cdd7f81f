"""Find stored objects that belong to no backup, and change nothing in the store.

All objects under one backup's id are judged together, and only if none of them changed within a
day, by the store's own clock. An attempt belongs to this instance if it has the instance's mark
(agent/records/object_names.py), or if a record of this instance names it. A record is trusted only
if its MAC is good. Objects that are orphans only by a record that can't be trusted are reported and
left alone.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from heapq import merge
from itertools import groupby
from operator import attrgetter
from typing import Final, NamedTuple

from agent.keys.keyring import RecordState
from agent.model import BackupStatus, Record, is_uuid
from agent.records.catalogue import Catalogue, ListedRecord
from agent.records.object_names import (
    SELF_TEST,
    attempt_in,
    checks_name,
    is_attempt_of,
    object_name,
    record_name,
)
from agent.store.protocol import Container, Store, StoredObject

AGE_SECONDS: Final = 24 * 3600.0
# For BUILDING backups if there is no journal, because then a task may still be working on them. No
# backup takes this long, and a running backup stores segments all the time.
AGE_WITHOUT_JOURNAL_SECONDS: Final = 7 * 24 * 3600.0
_UUID_LENGTH: Final = 36
# Attempts of one backup that are counted separately. No agent makes nearly as many.
_MOST_ATTEMPTS: Final = 10_000


class OrphanKind(StrEnum):
    """The reason why objects are an orphan.

    LEFT_ALONE means that they may be an orphan, but that this can't be decided for certain.
    """

    NO_RECORD = "no record"
    OLDER_ATTEMPT = "older attempt"
    GIVEN_UP = "given up"
    INTERRUPTED = "interrupted"
    DELETING = "unfinished delete"
    SELF_TEST = "self-test"
    LEFT_ALONE = "left alone"


# The statuses of unfinished backups. Their bytes are not needed after all tasks on them have ended.
_UNFINISHED: Final = {
    BackupStatus.FAILED: OrphanKind.GIVEN_UP,
    BackupStatus.CANCELLED: OrphanKind.GIVEN_UP,
    BackupStatus.BUILDING: OrphanKind.INTERRUPTED,
    BackupStatus.DELETING: OrphanKind.DELETING,
}


class Orphan(NamedTuple):
    """The orphaned objects of one backup, to be removed or left alone.

    `objects` is their number, `stored_bytes` is their size together. `names` are in the container
    of objects, `attempts` are in the container of segments. The decision rests on `record`. If the
    record changes, the decision is void.
    """

    what: OrphanKind
    backup_id: str
    attempts: tuple[str, ...]
    names: tuple[str, ...]
    objects: int
    stored_bytes: int
    why: str
    record: Record | None = None

    def left(self, why: str) -> "Orphan":
        """Return this orphan as one that is left alone, with the reason."""
        return self._replace(what=OrphanKind.LEFT_ALONE, why=why)


@dataclass
class _Tally:
    count: int = 0
    size: int = 0

    def add(self, size: int) -> None:
        self.count += 1
        self.size += size


@dataclass
class BackupObjects:
    """All objects under one backup's id, with only the number and the size of its segments.

    `youngest` is the time of the last write to any object except the checks, in Unix seconds.
    `unknown` is True if there is an object with a name that no version of this program uses.
    """

    backup_id: str
    listed: ListedRecord | None = None
    youngest: float = -math.inf
    unknown: bool = False
    objects: dict[str, int] = field(default_factory=dict)
    attempts: dict[str, _Tally] = field(default_factory=lambda: defaultdict(_Tally))

    def add(self, row: ListedRecord | StoredObject, container: Container) -> None:
        """Note the record, or count one row of the store's listing."""
        if isinstance(row, ListedRecord):
            self.listed = row
            return
        if row.name != checks_name(self.backup_id):
            # The checks don't count, because a verify run writes only them, perhaps every day.
            self.youngest = max(self.youngest, unix_seconds(row.modified))
        attempt = attempt_in(row.name) if container is Container.SEGMENTS else None
        if attempt is not None and (
            attempt in self.attempts or len(self.attempts) < _MOST_ATTEMPTS
        ):
            self.attempts[attempt].add(row.size)
        elif container is Container.OBJECTS and row.name in _known_names(self.backup_id):
            self.objects[row.name] = row.size
        else:
            self.unknown = True

    def marked(self, instance_id: str) -> frozenset[str]:
        """Return the attempts that have the mark of the instance."""
        return frozenset(one for one in self.attempts if is_attempt_of(one, instance_id))

    def of_self_test(self, instance_id: str) -> bool:
        """Return True if a self-test of the instance made these objects."""
        return is_attempt_of(self.backup_id, instance_id) and (
            SELF_TEST in self.attempts
            or any(name in self.objects for name in _self_test_names(self.backup_id))
        )

    @property
    def has_record(self) -> bool:
        """Return True if the store's listing shows a record."""
        return record_name(self.backup_id) in self.objects

    def orphan(
        self,
        what: OrphanKind,
        why: str,
        *,
        attempts: frozenset[str] = frozenset(),
        names: tuple[str, ...] = (),
        record: Record | None = None,
    ) -> Orphan:
        """Return an orphan with those of `attempts` and `names` that are in the store."""
        going = tuple(sorted(one for one in attempts if one in self.attempts))
        there = tuple(name for name in names if name in self.objects)
        count = sum(self.attempts[one].count for one in going) + len(there)
        size = sum(self.attempts[one].size for one in going)
        size += sum(self.objects[name] for name in there if not _only_joins(self.backup_id, name))
        return Orphan(what, self.backup_id, going, there, count, size, why, record)


def stored_backups(store: Store, catalogue: Catalogue) -> Iterator[BackupObjects]:
    """Yield the objects of each backup in the store, in order of backup ids.

    Only one backup and its neighbours are in memory at a time. Some records may come from the
    catalogue's cache.

    Raises:
        StoreError: a listing fails.
    """
    rows = merge(
        _rows(store, Container.OBJECTS),
        _rows(store, Container.SEGMENTS),
        (_Row(listed.backup_id, listed) for listed in catalogue.records()),
        key=attrgetter("backup_id"),
    )
    for backup_id, group in groupby(rows, key=attrgetter("backup_id")):
        stored = BackupObjects(backup_id)
        for row in group:
            stored.add(row.found, row.container)
        yield stored


class _Row(NamedTuple):
    backup_id: str
    found: ListedRecord | StoredObject
    container: Container = Container.OBJECTS


def _rows(store: Store, container: Container) -> Iterator[_Row]:
    last, known = "", False
    for row in store.list(container):
        backup_id = row.name[:_UUID_LENGTH]
        if backup_id != last:
            last, known = backup_id, is_uuid(backup_id)
        if known:
            yield _Row(backup_id, row, container)


def without_record(stored: BackupObjects, instance_id: str) -> Orphan | None:
    """Return the orphan among the objects of a backup without a record, None if there is none."""
    backup_id = stored.backup_id
    marked = stored.marked(instance_id)
    if stored.of_self_test(instance_id) and not (marked or stored.has_record):
        return stored.orphan(
            OrphanKind.SELF_TEST,
            "a self-test ended before it had removed these objects",
            attempts=frozenset({SELF_TEST}),
            names=_self_test_names(backup_id),
        )
    if not marked:
        return None
    names = () if _shared(stored, marked) else (*_object_names(backup_id), checks_name(backup_id))
    orphan = stored.orphan(
        OrphanKind.NO_RECORD, "the backup has no record", attempts=marked, names=names
    )
    if stored.has_record:
        return orphan.left("the listing shows a record, but the store doesn't find it")
    return orphan


def with_record(
    stored: BackupObjects,
    listed: ListedRecord,
    instance_id: str,
    busy: frozenset[str] | None,
    idle_seconds: float,
) -> Orphan | None:
    """Return the orphan among the objects of a backup with a record, None if there is none.

    `busy` are the ids of the backups that unfinished tasks are working on, None if there is no
    journal. `idle_seconds` is the time since the last change of any of the objects.
    """
    record, marked = listed.record, stored.marked(instance_id)
    if record is None:
        why = str(listed.failure) if listed.failure else _distrust(listed.state)
        orphan = stored.orphan(OrphanKind.LEFT_ALONE, why, attempts=marked)
        return orphan if marked else None
    kind = _UNFINISHED.get(record.status) if record.instance_id == instance_id else None
    if kind is not None:
        orphan = _unfinished(stored, record, marked | {record.attempt}, busy, idle_seconds)
    else:
        older = marked - {record.attempt}
        why = f"the backup's record names the attempt {record.attempt}"
        orphan = stored.orphan(OrphanKind.OLDER_ATTEMPT, why, attempts=older, record=record)
    if not orphan.objects and kind not in (OrphanKind.INTERRUPTED, OrphanKind.DELETING):
        return None
    if listed.state is not RecordState.OK:
        return orphan.left(_distrust(listed.state))
    return orphan


def _unfinished(
    stored: BackupObjects,
    record: Record,
    ours: frozenset[str],
    busy: frozenset[str] | None,
    idle_seconds: float,
) -> Orphan:
    what, why = _UNFINISHED[record.status], f"the backup's record says {record.status}"
    names = () if _shared(stored, ours) else _object_names(record.id)
    if what is OrphanKind.DELETING:  # a delete task has requested that all of it is removed
        ours = frozenset(stored.attempts)
        names = (*_object_names(record.id), checks_name(record.id), record_name(record.id))
    orphan = stored.orphan(what, why, attempts=ours, names=names, record=record)
    if busy is not None and record.id in busy:
        return orphan.left(f"{why}, and a task in the journal is working on it")
    if (
        busy is None
        and what is OrphanKind.INTERRUPTED
        and idle_seconds < AGE_WITHOUT_JOURNAL_SECONDS
    ):
        return orphan.left(f"{why}, and without a journal it is an orphan only after 7 days")
    return orphan


def _shared(stored: BackupObjects, ours: frozenset[str]) -> bool:
    """Return True if the backup has unknown objects or attempts besides `ours`.

    Then the object may join the segments of any of these attempts.
    """
    return stored.unknown or not ours.issuperset(stored.attempts)


def _distrust(state: RecordState) -> str:
    if state is RecordState.KEY_NOT_HERE:
        return "no key on this machine can check the backup's record (key-not-here)"
    if state is RecordState.OTHER_KEY:
        return "the backup's record is signed by another key of the same id (other-key)"
    if state is RecordState.UNSUPPORTED:
        return "a later agent wrote the backup's record, which this one can't read (unsupported)"
    return f"the backup's record can't be trusted or read ({state.value})"


def _object_names(backup_id: str) -> tuple[str, ...]:
    return (object_name(backup_id), object_name(backup_id, sealed=False))


def _self_test_names(backup_id: str) -> tuple[str, ...]:
    return (f"{backup_id}.{SELF_TEST}", f"{backup_id}.{SELF_TEST}-manifest")


def _known_names(backup_id: str) -> tuple[str, ...]:
    return (
        record_name(backup_id),
        checks_name(backup_id),
        *_object_names(backup_id),
        *_self_test_names(backup_id),
    )


def _only_joins(backup_id: str, name: str) -> bool:
    """Return True if the object only joins segments, so that its bytes are counted already."""
    return name in (*_object_names(backup_id), f"{backup_id}.{SELF_TEST}-manifest")


def unix_seconds(modified: str) -> float:
    """Return a time from a listing, which is in UTC, in Unix seconds.

    Return infinity if the time can't be read, so that the object is never old enough.
    """
    try:
        read = datetime.fromisoformat(modified)
    except ValueError:
        return math.inf
    return (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()
