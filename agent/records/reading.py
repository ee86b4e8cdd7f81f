"""All records of a container, in order of their names, read several at a time.

One record that can't be read hides no other; a store that is away is an error. Memory is
bounded whatever lies in the container: few records are under way at a time, and they are
parsed one after the other, by whoever iterates.

With a cache, a record isn't fetched where the container's listing shows the MD5 of bytes that
are in it. Only what has ended is cached, so that anything at work is read anew each time. But
Swift's listing follows its objects with a delay (a second, or minutes on a busy cluster):
a backup may appear late, and one that was deleted, made again or re-keyed a moment ago may be
shown as it was. `Catalogue.read` and all that acts on a backup never use the cache; a delete
uses it to look who descends from whom, which is the same under the same hash.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import NamedTuple, TypeAlias

from agent.errors import StoreBusy, StoreError, StoreMismatch, StoreNotFound, StoreRejected
from agent.keys.keyring import RecordState
from agent.model import BackupStatus, Record, is_uuid
from agent.records.cache import CachePass, RecordCache
from agent.records.object_names import RECORD_SUFFIX
from agent.store.protocol import Container, Store, StoredObject

# A record is about 2 KiB, and 100 bytes for each list of 1000 segments (16 GiB of stored
# bytes): 4 MiB is enough for half a petabyte, and a bound against a hostile container.
RECORD_LIMIT = 4 << 20
# Reading small objects is waiting for answers; benchmarks/listing.py shows what more would gain.
CONNECTIONS = 8
# Records under way or waiting for their turn: at most 64 MiB of them, all hostile.
_WINDOW = 2 * CONNECTIONS
# A store may fail on some objects alone, as where a disk was lost; one that fails on this many
# in a row is failing.
_FAILURES = 8
_ENDED = (BackupStatus.COMPLETED, BackupStatus.FAILED, BackupStatus.CANCELLED)


class ListedRecord(NamedTuple):
    """One row of the catalogue; `record` is None where the bytes make no record.

    `failure` says why the store gave no bytes: then nothing is known of the record.
    """

    backup_id: str
    state: RecordState
    record: Record | None
    failure: StoreError | None = None


class _Got(NamedTuple):
    """What came of reading one object: its bytes, None where it is gone, or why it didn't work."""

    raw: bytes | None
    failure: StoreBusy | StoreMismatch | StoreRejected | None = None


Judge: TypeAlias = Callable[[str, bytes], ListedRecord]
_Row: TypeAlias = tuple[str, _Got | Future[_Got]]


def list_records(
    store: Store, judge: Judge, cache: RecordCache | None = None
) -> Iterator[ListedRecord]:
    """Every record of the container, readable or not, in order of ids; StoreError where it fails.

    `judge` makes a row of a record object's bytes; `cache` may save reading some of them.
    """
    with ExitStack() as stack:
        known = stack.enter_context(cache.use()) if cache else None
        pool = ThreadPoolExecutor(CONNECTIONS, "list")
        # whoever stops early need not wait for what is under way
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        in_a_row = 0
        for backup_id, got in _in_order(_asked(store, pool, known)):
            in_a_row = in_a_row + 1 if isinstance(got.failure, StoreBusy) else 0
            if got.failure is not None:
                if in_a_row >= _FAILURES:
                    raise got.failure
                yield ListedRecord(backup_id, RecordState.BAD, None, _unread(got.failure))
            elif got.raw is not None:
                listed = judge(backup_id, got.raw)
                if known is not None and _may_keep(listed):
                    known.keep(backup_id, got.raw)
                yield listed


def record_objects(store: Store) -> Iterator[tuple[str, StoredObject]]:
    """The id of each backup that has a record, and the record's row of the container's listing."""
    for row in store.list(Container.OBJECTS):
        backup_id = row.name.removesuffix(RECORD_SUFFIX)
        if row.name != backup_id and is_uuid(backup_id):
            yield backup_id, row


def _in_order(rows: Iterator[_Row]) -> Iterator[tuple[str, _Got]]:
    """The rows with what was read, in the order they were asked for, a window ahead of it."""
    waiting: deque[_Row] = deque()
    for row in rows:
        waiting.append(row)
        if len(waiting) >= _WINDOW:
            yield _awaited(waiting.popleft())
    while waiting:
        yield _awaited(waiting.popleft())


def _awaited(row: _Row) -> tuple[str, _Got]:
    backup_id, got = row
    return backup_id, got.result() if isinstance(got, Future) else got


def _asked(store: Store, pool: ThreadPoolExecutor, known: CachePass | None) -> Iterator[_Row]:
    for backup_id, row in record_objects(store):
        if row.size > RECORD_LIMIT:
            yield backup_id, _Got(None, StoreMismatch(f"{row.name} is too large for a record"))
        elif known is not None and (raw := known.find(backup_id, row.etag)) is not None:
            yield backup_id, _Got(raw)
        else:
            yield backup_id, pool.submit(_read, store, row)


def _read(store: Store, row: StoredObject) -> _Got:
    try:
        return _Got(store.get(Container.OBJECTS, row.name, RECORD_LIMIT))
    except StoreNotFound:
        return _Got(None)
    except (StoreBusy, StoreMismatch, StoreRejected) as error:
        return _Got(None, error)


def _unread(failure: StoreError) -> StoreError | None:
    """Return the failure if it is the store's; bytes that differ are the record's own fault."""
    return None if isinstance(failure, StoreMismatch) else failure


def _may_keep(listed: ListedRecord) -> bool:
    """Whether it can be shown from the cache: not what may be at work just now."""
    return listed.record is None or listed.record.status in _ENDED
