"""Checks that the bytes of a COMPLETED backup are still in the store.

A record says which bytes were stored. It stays if someone deletes the bytes by other means. The
checks request single objects and don't rely on a listing.
"""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from agent.errors import DataDamaged, StoreMismatch, StoreNotFound
from agent.model import Record, Stored
from agent.records.object_names import (
    LIST_ENTRIES,
    Segment,
    attempt_prefix,
    decode_list,
    list_name,
    object_name,
    segment_name,
)
from agent.store.protocol import Container, Store

# In bytes. The longest list of LIST_ENTRIES segments has 46 KiB.
LIST_LIMIT = 1 << 20
# How many of the objects in a listing are requested one by one. If none answers, all count as
# deleted.
_MOST_CHECKED = 20


class _Expected(NamedTuple):
    """An object that must exist with this ETag and size."""

    container: Container
    name: str
    etag: str
    size: int


def missing(store: Store, record: Record) -> str | None:
    """Return the first difference between a backup's objects and its record, or None.

    The object that joins the segments, if the store joins any, the first and the last segment list,
    and the first and the last segment are checked. That is at most five small requests, for any
    size of the backup.

    Raises:
        StoreError: the store doesn't answer.
    """
    if record.stored is None:
        return "its record names no stored bytes"
    try:
        for expected in _expected(store, record, record.stored):
            found = store.stat(expected.container, expected.name)
            if found.etag != expected.etag or found.size not in (None, expected.size):
                return f"{expected.name} does not have the bytes that were stored"
    except StoreNotFound as error:
        return f"not in the store: {error}"
    except (DataDamaged, StoreMismatch) as error:
        return str(error)
    return None


def _expected(store: Store, record: Record, stored: Stored) -> Iterator[_Expected]:
    if store.joiner is not None:
        name = object_name(record.id, sealed=record.sealed)
        yield _Expected(Container.OBJECTS, name, stored.slo_etag, stored.stored_bytes)
    last = len(stored.lists) - 1
    for number in sorted({0, last}) if stored.lists else ():
        segments = read_list(store, record, stored, number)
        if number == 0:
            yield _segment(record, 0, segments[0])
        if number == last:
            yield _segment(record, last * LIST_ENTRIES + len(segments) - 1, segments[-1])


def _segment(record: Record, number: int, segment: Segment) -> _Expected:
    name = segment_name(record.id, record.attempt, number)
    return _Expected(Container.SEGMENTS, name, segment.md5, segment.size)


def any_left(store: Store, record: Record) -> bool:
    """Return True if the store still has any of a backup's segments and lists.

    A listing may lag behind. So it only shows which names to check, and only an answer to such a
    check counts.
    """
    return any(_answers(store, name) for name in _names_to_check(store, record))


def _names_to_check(store: Store, record: Record) -> Iterator[str]:
    """Yield names, the most likely ones first.

    The container is listed only if none of the first names answers.
    """
    yield list_name(record.id, record.attempt, 0)
    yield segment_name(record.id, record.attempt, 0)
    rows = store.list(Container.SEGMENTS, attempt_prefix(record.id, record.attempt))
    yield from (row.name for row in islice(rows, _MOST_CHECKED))


def _answers(store: Store, name: str) -> bool:
    try:
        store.stat(Container.SEGMENTS, name)
    except StoreNotFound:
        return False
    return True


def read_list(store: Store, record: Record, stored: Stored, number: int) -> list[Segment]:
    """Return the segments of one list.

    Raises:
        DataDamaged: it isn't the list that was stored.
    """
    name = list_name(record.id, record.attempt, number)
    try:
        encoded = store.get(Container.SEGMENTS, name, LIST_LIMIT)
    except (StoreMismatch, StoreNotFound) as error:
        raise DataDamaged(
            f"segment list {number} of backup {record.id} is not as it was stored: {error}"
        ) from error
    return decode_list(encoded, stored.lists[number])
