"""One backup's stored bytes into a folder, for an engine to prepare.

Every block of the stream is parsed before the extractor gets it: the extractor acts on a chunk as
soon as it has read its head, and checks less. What an engine would be led out of the folder by is
taken away afterwards.
"""

import hashlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, overload

from agent.catalogue import Catalogue
from agent.codec.mariadb_stream import MendedStream
from agent.codec.stream_paths import MAX_FULL, MAX_OPENED
from agent.engine.backup_options import disarm
from agent.engine.checkpoints import read_checkpoints
from agent.engine.protocol import Engine
from agent.errors import (
    ConfigInvalid,
    ContentRefused,
    DataDamaged,
    StoreMismatch,
    StoreNotFound,
    StreamInvalid,
    TargetRefused,
)
from agent.layout import LIST_ENTRIES, Segment, segment_name
from agent.model import Record, Stored
from agent.operations.parts import RestoreParts
from agent.operations.target import too_long, usable
from agent.pipeline.buffers import Plan
from agent.pipeline.download import Download, Opening
from agent.pipeline.meter import Meter
from agent.pipeline.stop import Stop
from agent.store.protocol import Shelf

log = logging.getLogger(__name__)

# Downloads run ahead of the reader by less than one list's segments.
_LISTS_KEPT: Final = 2


class Gate:
    """Hands an xbstream on to `write`, each block only when all of it has been judged.

    What mbstream can't read though the engine wrote it is mended on the way: backups were stored
    as the engine made them.

    ContentRefused for a path that leads out of the folder, for anything else that is no xbstream,
    for more bytes than the record says, and for more names than MOST_FILES and MOST_FOLDERS.
    TargetRefused where a file's path behind that of the folder is more than an engine takes.
    """

    def __init__(
        self,
        write: Callable[[bytes], None],
        backup_id: str,
        raw_bytes: int,
        folder: Path | None = None,
    ) -> None:
        """`folder` is that of an incremental; the engine works in that of a full backup."""
        self._write = write
        self._folder = folder
        self._longest = MAX_OPENED - len(os.fsencode(folder)) - 1 if folder else MAX_FULL
        self._backup_id = backup_id
        self._raw_bytes = raw_bytes
        # the extractor checks the sums, and what was sealed or signed was not changed since
        self._parser = MendedStream(proving=False)

    def write(self, block: bytes) -> None:
        """Judge the next block and hand it on."""
        if self._parser.raw_bytes + len(block) > self._raw_bytes:
            raise self._refused(f"it has more than the {self._raw_bytes} bytes of its record")
        try:
            mended = self._parser.passed(memoryview(block))
        except StreamInvalid as error:
            raise self._refused(str(error)) from error
        incremental = self._folder is not None
        path = self._parser.unopenable(longest=self._longest, incremental=incremental)
        if path is not None:
            raise self._unopenable(path)
        self._write(block if mended is None else mended)

    def finish(self) -> None:
        """Check that the stream ended between two chunks, and has as many bytes as recorded."""
        found = self._parser.raw_bytes
        if found != self._raw_bytes:
            raise DataDamaged(
                f"backup {self._backup_id} gave {found} bytes, its record says {self._raw_bytes}"
            )
        try:
            self._parser.finish()
        except StreamInvalid as error:
            raise self._refused(str(error)) from error

    def _unopenable(self, path: bytes) -> ContentRefused | TargetRefused:
        excess = len(path) - self._longest
        if self._folder is not None and excess > 0:
            return too_long(excess)
        return ContentRefused(
            f"backup {self._backup_id} holds the path {path!r} of {len(path)} bytes, which no "
            "engine can open"
        )

    def _refused(self, why: str) -> ContentRefused:
        return ContentRefused(f"backup {self._backup_id} is not what an engine makes: {why}")


class SegmentSizes(Sequence[int]):
    """The sizes of a backup's segments, all alike but the last; none of them is stored."""

    def __init__(self, stored: Stored) -> None:
        self._count = stored.segment_count
        self._size = stored.segment_size
        self._last = stored.stored_bytes - (self._count - 1) * self._size
        if self._count < 1 or not 0 < self._last <= self._size:
            raise DataDamaged(
                f"{self._count} segments of {self._size} bytes are not {stored.stored_bytes} bytes"
            )

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(self._count))]
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._last if index == self._count - 1 else self._size


class SegmentLists:
    """The signed rows of a backup's segments, of which two lists at most are in memory."""

    def __init__(self, catalogue: Catalogue, record: Record, stored: Stored) -> None:
        self._catalogue = catalogue
        self._record = record
        self._stored = stored
        self.sizes = SegmentSizes(stored)
        self._lock = threading.Lock()
        self._lists: OrderedDict[int, list[Segment]] = OrderedDict()
        rows = [ref.count for ref in stored.lists]
        if sum(rows) != len(self.sizes):
            raise DataDamaged(
                f"backup {record.id} has {sum(rows)} segments in its lists, "
                f"{len(self.sizes)} in its record"
            )
        if any(count != LIST_ENTRIES for count in rows[:-1]) or rows[-1] > LIST_ENTRIES:
            raise DataDamaged(
                f"backup {record.id} has a segment list of {max(rows)} rows; all but the last have "
                f"{LIST_ENTRIES}, and none has more"
            )

    def row(self, number: int) -> Segment:
        """Return the row of a segment; DataDamaged if its list is not as recorded."""
        at, place = divmod(number, LIST_ENTRIES)
        with self._lock:
            if at not in self._lists:
                self._lists[at] = self._catalogue.segment_list(self._record, self._stored, at)
                if len(self._lists) > _LISTS_KEPT:
                    self._lists.popitem(last=False)
            found = self._lists[at][place]
        if found.size != self.sizes[number]:
            raise DataDamaged(f"segment {number} of backup {self._record.id} has another size")
        return found


class Extraction:
    """Fetches, opens, inflates, judges and extracts backups, one after the other."""

    def __init__(self, parts: RestoreParts, meter: Meter, stop: Stop) -> None:
        self._parts = parts
        self._meter = meter
        self._stop = stop

    def plan(self, record: Record) -> Plan:
        """Return the data path's layout for the segments as this backup has them."""
        size = record.stored.segment_size if record.stored else None
        try:
            return self._parts.path.plan(segment_bytes=size)
        except ConfigInvalid as error:
            raise ConfigInvalid(
                f"the segments of backup {record.id} are too large for this machine: {error}",
                hint="raise [pipeline] memory_bytes",
            ) from error

    def run(
        self,
        engine: Engine,
        record: Record,
        opening: Opening,
        folder: Path,
        as_user: Callable[[Callable[[], None]], None],
    ) -> None:
        """Extract one backup into `folder`, which is empty, and disarm it.

        `as_user` calls what works on the extracted files, with the rights of their owner.
        """
        log.info("extracting backup %s into %s", record.id, folder)
        if record.stored is None:
            raise DataDamaged(f"the record of backup {record.id} names no stored bytes")
        lists = SegmentLists(self._parts.catalogue, record, record.stored)
        named = None if record.parent_id is None else folder.resolve()
        with (
            engine.extract(folder) as extract_run,
            self._stop.on_stop(extract_run.interrupt),
        ):
            gate = Gate(extract_run.write, record.id, record.stored.raw_bytes, named)
            Download(
                lists.sizes,
                lambda number, buffer: self._fetch(record, lists, number, buffer),
                opening,
                gate.write,
                plan=self.plan(record),
                meter=self._meter,
                stop=self._stop,
            ).run()
            gate.finish()
            extract_run.finish()
        as_user(partial(_settle, record, folder, self._stop.check))

    def _fetch(self, record: Record, lists: SegmentLists, number: int, buffer: memoryview) -> None:
        row = lists.row(number)
        name = segment_name(record.id, record.attempt, number)
        try:
            self._parts.store.get_into(Shelf.SEGMENTS, name, buffer)
        except (StoreMismatch, StoreNotFound) as error:
            raise DataDamaged(
                f"segment {number} of backup {record.id} is not as it was stored: {error}"
            ) from error
        # get_into compares with what the store announces now, which whoever changed the bytes
        # changed too. Sealed bytes need no more: their tags tell.
        if not record.sealed and _md5(buffer) != row.md5:
            raise DataDamaged(f"segment {number} of backup {record.id} is not as it was stored")


def _settle(record: Record, folder: Path, check: Callable[[], None]) -> None:
    """Disarm the extracted backup, and check that it is the record's."""
    with usable(folder):
        disarm(folder, check)
    _check_lsns(record, folder)


def _check_lsns(record: Record, folder: Path) -> None:
    found = read_checkpoints(folder)
    if (found.from_lsn, found.to_lsn) != (record.from_lsn, record.to_lsn):
        raise DataDamaged(
            f"backup {record.id} goes from LSN {found.from_lsn} to {found.to_lsn}, its "
            f"record says {record.from_lsn} to {record.to_lsn}"
        )


def _md5(data: memoryview) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
