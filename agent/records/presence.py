"""Whether the bytes of a COMPLETED backup are still in the store: by asking it, not a listing.

A record says what was stored. It stays if someone removes the bytes by other means.
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

# The longest list of LIST_ENTRIES segments has 46 KiB.
LIST_LIMIT = 1 << 20
# Objects that a listing names, asked for one by one before all are taken for gone.
_ASKED = 20


class _Expected(NamedTuple):
    """An object that has to answer, with this ETag and size."""

    shelf: Container
    name: str
    etag: str
    size: int


def missing(store: Store, record: Record) -> str | None:
    """Say which of a backup's objects is not there as it was stored; None if all asked for are.

    Asked for are the object that joins the segments, the first and last segment list, and the
    first and last segment: at most five small requests, whatever the backup's size. Raises
    StoreError if the store doesn't answer.
    """
    if record.stored is None:
        return "its record names no stored bytes"
    try:
        for expected in _expected(store, record, record.stored):
            found = store.stat(expected.shelf, expected.name)
            if found.etag != expected.etag or found.size not in (None, expected.size):
                return f"{expected.name} has other bytes than were stored"
    except StoreNotFound as error:
        return f"not in the store: {error}"
    except (DataDamaged, StoreMismatch) as error:
        return str(error)
    return None


def _expected(store: Store, record: Record, stored: Stored) -> Iterator[_Expected]:
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
    """Return whether the store still has anything of a backup's segments and lists.

    The listing is only where to look: it may lag behind, so what it names has to answer, too.
    """
    return any(_answers(store, name) for name in _to_ask(store, record))


def _to_ask(store: Store, record: Record) -> Iterator[str]:
    """Yield names in order of likelihood; nothing is listed if one of the first answers."""
    yield list_name(record.id, record.attempt, 0)
    yield segment_name(record.id, record.attempt, 0)
    rows = store.list(Container.SEGMENTS, attempt_prefix(record.id, record.attempt))
    yield from (row.name for row in islice(rows, _ASKED))


def _answers(store: Store, name: str) -> bool:
    try:
        store.stat(Container.SEGMENTS, name)
    except StoreNotFound:
        return False
    return True


def read_list(store: Store, record: Record, stored: Stored, number: int) -> list[Segment]:
    """Return the segments of one list; DataDamaged if it isn't the one that was stored."""
    name = list_name(record.id, record.attempt, number)
    try:
        encoded = store.get(Container.SEGMENTS, name, LIST_LIMIT)
    except (StoreMismatch, StoreNotFound) as error:
        raise DataDamaged(
            f"segment list {number} of backup {record.id} is not as stored: {error}"
        ) from error
    return decode_list(encoded, stored.lists[number])
