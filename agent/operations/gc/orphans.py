"""What in a store belongs to no backup any more, told from what lies there: it changes nothing.

All that is stored under one backup's id is looked at together, and only once all of it has been
untouched for a day by the store's own clock. What counts as this instance's: attempts with its
mark (agent/records/object_names.py), and those that a record of this instance names. A record is
believed only with a good MAC; what one without would give up is told, and left alone.
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
    attempt_of,
    checks_name,
    object_name,
    record_name,
)
from agent.store.protocol import Container, Store, StoredObject

AGE_SECONDS: Final = 24 * 3600.0
# Without a journal nobody can say that no task is at work on a BUILDING backup. No backup takes
# this long, and one that is stored touches its segments all the time.
AGE_WITHOUT_JOURNAL_SECONDS: Final = 7 * 24 * 3600.0
_UUID_LENGTH: Final = 36
# Attempts of one backup that are told apart: far more than any agent makes.
_MOST: Final = 10_000


class OrphanKind(StrEnum):
    """Why something is an orphan; LEFT_ALONE is what would be one if somebody could tell."""

    NO_RECORD = "no record"
    OLDER_ATTEMPT = "older attempt"
    GIVEN_UP = "given up"
    INTERRUPTED = "interrupted"
    DELETING = "unfinished delete"
    SELF_TEST = "self-test"
    LEFT_ALONE = "left alone"


# What a record says of bytes that nobody needs, once no task is at work on them.
_UNFINISHED: Final = {
    BackupStatus.FAILED: OrphanKind.GIVEN_UP,
    BackupStatus.CANCELLED: OrphanKind.GIVEN_UP,
    BackupStatus.BUILDING: OrphanKind.INTERRUPTED,
    BackupStatus.DELETING: OrphanKind.DELETING,
}


class Orphan(NamedTuple):
    """What goes, or is left alone, of one backup: `objects` in number, `stored_bytes` together.

    `names` are on the shelf of objects, `attempts` on that of segments. `record` is the one by
    which it was judged; where it has become another one, the judgement is void.
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
        """The same as something that stays, and why."""
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
    """All that is stored under one backup's id; of its segments only how many and how large.

    `youngest` is when anything but its checks was written last, in Unix seconds; `unknown` says
    whether anything lies there that no version of this program has a name for.
    """

    backup_id: str
    listed: ListedRecord | None = None
    youngest: float = -math.inf
    unknown: bool = False
    objects: dict[str, int] = field(default_factory=dict)
    attempts: dict[str, _Tally] = field(default_factory=lambda: defaultdict(_Tally))

    def add(self, row: ListedRecord | StoredObject, shelf: Container) -> None:
        """Take the record, or count one row of the store's listing."""
        if isinstance(row, ListedRecord):
            self.listed = row
            return
        if row.name != checks_name(self.backup_id):
            # a verify run touches no more than the checks, and may come every day
            self.youngest = max(self.youngest, moment(row.modified))
        attempt = attempt_in(row.name) if shelf is Container.SEGMENTS else None
        if attempt is not None and (attempt in self.attempts or len(self.attempts) < _MOST):
            self.attempts[attempt].add(row.size)
        elif shelf is Container.OBJECTS and row.name in _known_names(self.backup_id):
            self.objects[row.name] = row.size
        else:
            self.unknown = True

    def marked(self, instance_id: str) -> frozenset[str]:
        """The attempts that are the instance's by their own mark."""
        return frozenset(one for one in self.attempts if attempt_of(one, instance_id))

    def of_self_test(self, instance_id: str) -> bool:
        """Whether a self-test of the instance made it."""
        return attempt_of(self.backup_id, instance_id) and (
            SELF_TEST in self.attempts
            or any(name in self.objects for name in _self_test_names(self.backup_id))
        )

    @property
    def has_record(self) -> bool:
        """Whether the store's listing shows a record."""
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
        """What goes of it: those attempts, and the objects of those names that are there."""
        going = tuple(sorted(one for one in attempts if one in self.attempts))
        there = tuple(name for name in names if name in self.objects)
        count = sum(self.attempts[one].count for one in going) + len(there)
        size = sum(self.attempts[one].size for one in going)
        size += sum(self.objects[name] for name in there if not _joins(self.backup_id, name))
        return Orphan(what, self.backup_id, going, there, count, size, why, record)


def piles(store: Store, catalogue: Catalogue) -> Iterator[BackupObjects]:
    """The store by backup ids, in their order: never more than one in memory, and its neighbours.

    StoreError where a listing fails; some records may come from the catalogue's cache.
    """
    rows = merge(
        _rows(store, Container.OBJECTS),
        _rows(store, Container.SEGMENTS),
        (_Row(listed.backup_id, listed) for listed in catalogue.records()),
        key=attrgetter("backup_id"),
    )
    for backup_id, group in groupby(rows, key=attrgetter("backup_id")):
        pile = BackupObjects(backup_id)
        for row in group:
            pile.add(row.found, row.shelf)
        yield pile


class _Row(NamedTuple):
    backup_id: str
    found: ListedRecord | StoredObject
    shelf: Container = Container.OBJECTS


def _rows(store: Store, shelf: Container) -> Iterator[_Row]:
    last, known = "", False
    for row in store.list(shelf):
        backup_id = row.name[:_UUID_LENGTH]
        if backup_id != last:
            last, known = backup_id, is_uuid(backup_id)
        if known:
            yield _Row(backup_id, row, shelf)


def without_record(pile: BackupObjects, instance_id: str) -> Orphan | None:
    """The orphan in a pile of which no read finds a record."""
    backup_id = pile.backup_id
    marked = pile.marked(instance_id)
    if pile.of_self_test(instance_id) and not (marked or pile.has_record):
        return pile.orphan(
            OrphanKind.SELF_TEST,
            "a self-test was ended before it had removed it",
            attempts=frozenset({SELF_TEST}),
            names=_self_test_names(backup_id),
        )
    if not marked:
        return None
    names = () if _shared(pile, marked) else (*_object_names(backup_id), checks_name(backup_id))
    orphan = pile.orphan(
        OrphanKind.NO_RECORD, "there is no record of it", attempts=marked, names=names
    )
    if pile.has_record:
        return orphan.left("the listing shows a record, but it can't be found")
    return orphan


def with_record(
    pile: BackupObjects,
    listed: ListedRecord,
    instance_id: str,
    busy: frozenset[str] | None,
    idle_seconds: float,
) -> Orphan | None:
    """The orphan in a pile that has a record; None where all of it is as it should be.

    `busy` are the ids of backups that tasks are at work on, None where nobody knows;
    `idle_seconds` is how long nothing of it was touched.
    """
    record, marked = listed.record, pile.marked(instance_id)
    if record is None:
        why = str(listed.failure) if listed.failure else _distrust(listed.state)
        orphan = pile.orphan(OrphanKind.LEFT_ALONE, why, attempts=marked)
        return orphan if marked else None
    kind = _UNFINISHED.get(record.status) if record.instance_id == instance_id else None
    if kind is not None:
        orphan = _unfinished(pile, record, marked | {record.attempt}, busy, idle_seconds)
    else:
        older = marked - {record.attempt}
        why = f"the backup's record names the attempt {record.attempt}"
        orphan = pile.orphan(OrphanKind.OLDER_ATTEMPT, why, attempts=older, record=record)
    if not orphan.objects and kind not in (OrphanKind.INTERRUPTED, OrphanKind.DELETING):
        return None
    if listed.state is not RecordState.OK:
        return orphan.left(_distrust(listed.state))
    return orphan


def _unfinished(
    pile: BackupObjects,
    record: Record,
    ours: frozenset[str],
    busy: frozenset[str] | None,
    idle_seconds: float,
) -> Orphan:
    what, why = _UNFINISHED[record.status], f"the backup's record says {record.status}"
    names = () if _shared(pile, ours) else _object_names(record.id)
    if what is OrphanKind.DELETING:  # somebody asked for all of it to go
        ours = frozenset(pile.attempts)
        names = (*_object_names(record.id), checks_name(record.id), record_name(record.id))
    orphan = pile.orphan(what, why, attempts=ours, names=names, record=record)
    if busy is not None and record.id in busy:
        return orphan.left(f"{why}, and a task of the journal is at work on it")
    if (
        busy is None
        and what is OrphanKind.INTERRUPTED
        and idle_seconds < AGE_WITHOUT_JOURNAL_SECONDS
    ):
        return orphan.left(f"{why}, and without a journal it counts after 7 days only")
    return orphan


def _shared(pile: BackupObjects, ours: frozenset[str]) -> bool:
    """Whether more lies there than is ours: then nobody knows whose object joins what."""
    return pile.unknown or not ours.issuperset(pile.attempts)


def _distrust(state: RecordState) -> str:
    if state is RecordState.KEY_NOT_HERE:
        return "no key on this machine can check the backup's record (key-not-here)"
    if state is RecordState.OTHER_KEY:
        return "the backup's record is signed by another key of the same id (other-key)"
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


def _joins(backup_id: str, name: str) -> bool:
    """Whether its bytes are those of segments, which are counted already."""
    return name in (*_object_names(backup_id), f"{backup_id}.{SELF_TEST}-manifest")


def moment(modified: str) -> float:
    """Unix seconds of a listing's time, which is UTC; what can't be read is never old enough."""
    try:
        read = datetime.fromisoformat(modified)
    except ValueError:
        return math.inf
    return (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()
