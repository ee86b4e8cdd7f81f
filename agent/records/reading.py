"""Read all records of a container, in order of their names, several at a time.

A record that can't be read does not hide the others. A store that does not answer is an error.
Memory is bounded for any content of the container. Only a few records are being read at a time, and
the thread of the caller parses them one after the other.

With a cache, a record isn't fetched if the container's listing shows the MD5 of bytes that the
cache has. Only records of ended backups, and objects that are no readable record, are cached. So
the record of a backup that may be running is read each time. But Swift's listing follows its
objects with a delay of a second, or of minutes on a busy cluster. A backup may appear late in it. A
backup that was deleted, made again or re-keyed a moment ago may be shown in its earlier state.

`Catalogue.read` and the actions on a backup don't use the cache. There are two exceptions. A delete
uses it to find descendants. That is safe, because a record with the same MD5 names the same parent.
`gc` uses it to find orphans, and reads each record again before it removes anything.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from typing import NamedTuple, TypeAlias

from agent.errors import StoreBusy, StoreError, StoreMismatch, StoreNotFound, StoreRejected
from agent.keys.keyring import RecordState
from agent.model import BackupStatus, Record, is_uuid
from agent.records.cache import CachePass, RecordCache
from agent.records.object_names import RECORD_SUFFIX
from agent.store.protocol import Container, Store, StoredObject
from agent.threads import Workers

# In bytes. A record has about 2 KiB, and 100 bytes for each list of 1000 segments (16 GiB of stored
# bytes). So 4 MiB is enough for half a petabyte. It is also a bound against a hostile container.
RECORD_LIMIT = 4 << 20
# A reader of small objects mostly waits for answers. benchmarks/listing.py shows the gain of more
# connections.
CONNECTIONS = 8
# How many records are being read or wait for their turn. They take at most 64 MiB, even if all are
# hostile.
_WINDOW = 2 * CONNECTIONS
# A store may fail on a few objects only, for example after the loss of a disk. If it fails on this
# many objects in a row, the store itself fails.
_FAILURES = 8
_ENDED = (BackupStatus.COMPLETED, BackupStatus.FAILED, BackupStatus.CANCELLED)


class LaterRecord(NamedTuple):
    """The fields of a later agent's record that records of every format have."""

    instance_id: str
    parent_id: str | None


class ListedRecord(NamedTuple):
    """One row of the catalogue.

    `record` is None if the bytes are not a record, or if they can't be trusted and are too large to
    keep. `failure` is the reason if the store returned no bytes. The record is then unknown.
    `later` is what is known of a record that a later agent wrote, which this one can't read.
    """

    backup_id: str
    state: RecordState
    record: Record | None
    failure: StoreError | None = None
    later: LaterRecord | None = None

    @property
    def instance_id(self) -> str | None:
        """Return the id of the backup's instance, or None if it is unknown."""
        known = self.record or self.later
        return known.instance_id if known else None


class _ReadResult(NamedTuple):
    """The result of reading one object.

    `raw` is None if the object was deleted or could not be read. In the latter case `failure` is
    the reason.
    """

    raw: bytes | None
    failure: StoreBusy | StoreMismatch | StoreRejected | None = None


Judge: TypeAlias = Callable[[str, bytes], ListedRecord]
_Row: TypeAlias = tuple[str, _ReadResult | Future[_ReadResult]]


def list_records(
    store: Store, judge: Judge, cache: RecordCache | None = None
) -> Iterator[ListedRecord]:
    """Yield every record of the container in order of ids, also those that can't be read.

    `judge` makes a row of the bytes of a record object. `cache` saves reading some of them.

    Raises:
        StoreError: the store fails.
    """
    with ExitStack() as stack:
        known = stack.enter_context(cache.use()) if cache else None
        pool = Workers(CONNECTIONS, "list")
        # A caller that stops early need not wait for the reads that are running.
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        in_a_row = 0
        for backup_id, got in _in_order(_start_reads(store, pool, known)):
            in_a_row = in_a_row + 1 if isinstance(got.failure, StoreBusy) else 0
            if got.failure is not None:
                if in_a_row >= _FAILURES:
                    raise got.failure
                yield ListedRecord(backup_id, RecordState.BAD, None, _store_failure(got.failure))
            elif got.raw is not None:
                listed = judge(backup_id, got.raw)
                if known is not None and _may_keep(listed):
                    known.keep(backup_id, got.raw)
                yield listed


def record_objects(store: Store) -> Iterator[tuple[str, StoredObject]]:
    """Yield the id of each backup that has a record, and the record's row in the listing."""
    for row in store.list(Container.OBJECTS):
        backup_id = row.name.removesuffix(RECORD_SUFFIX)
        if row.name != backup_id and is_uuid(backup_id):
            yield backup_id, row


def _in_order(rows: Iterator[_Row]) -> Iterator[tuple[str, _ReadResult]]:
    """Yield the rows with their results in the order of the requests, up to _WINDOW read ahead."""
    waiting: deque[_Row] = deque()
    for row in rows:
        waiting.append(row)
        if len(waiting) >= _WINDOW:
            yield _awaited(waiting.popleft())
    while waiting:
        yield _awaited(waiting.popleft())


def _awaited(row: _Row) -> tuple[str, _ReadResult]:
    backup_id, got = row
    return backup_id, got.result() if isinstance(got, Future) else got


def _start_reads(store: Store, pool: Workers, known: CachePass | None) -> Iterator[_Row]:
    for backup_id, row in record_objects(store):
        if row.size > RECORD_LIMIT:
            yield (
                backup_id,
                _ReadResult(None, StoreMismatch(f"{row.name} is too large for a record")),
            )
        elif known is not None and (raw := known.find(backup_id, row.etag)) is not None:
            yield backup_id, _ReadResult(raw)
        else:
            yield backup_id, pool.submit(_read, store, row)


def _read(store: Store, row: StoredObject) -> _ReadResult:
    try:
        return _ReadResult(store.get(Container.OBJECTS, row.name, RECORD_LIMIT))
    except StoreNotFound:
        return _ReadResult(None)
    except (StoreBusy, StoreMismatch, StoreRejected) as error:
        return _ReadResult(None, error)


def _store_failure(failure: StoreError) -> StoreError | None:
    """Return the failure if the store caused it, or None if the record's bytes did."""
    return None if isinstance(failure, StoreMismatch) else failure


def _may_keep(listed: ListedRecord) -> bool:
    """Return True if the row may be cached.

    The record of a backup that may be running must not be cached.
    """
    return listed.record is None or listed.record.status in _ENDED
