"""Extract the stored bytes of one backup into a directory, for an engine to prepare.

Each block of the stream is parsed before the extractor gets it. The extractor acts on a chunk as
soon as it has read its head, and checks less than this parser. Afterwards everything that could
lead an engine out of the directory is removed.
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

from agent.codec.mariadb_stream import MendingParser
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
from agent.model import Record, Stored
from agent.operations.resources import RestoreResources
from agent.operations.restore.target import errors_translated, too_long
from agent.pipeline.buffers import Plan
from agent.pipeline.download import Download, Opening
from agent.pipeline.meter import Meter
from agent.records.catalogue import Catalogue
from agent.records.object_names import LIST_ENTRIES, Segment, segment_name
from agent.stop import Stop
from agent.store.protocol import Container

log = logging.getLogger(__name__)

# Segment lists in memory. Two are enough, because downloads run ahead of the reader by less than
# the segments of one list.
_LISTS_KEPT: Final = 2


class Gate:
    """A gate that passes an xbstream on to `write`, each block only after all of it was checked.

    Engines write some streams that mbstream can't read. Backups may be stored in this form, so such
    a stream is repaired on the way.

    Raises ContentRefused for each of these:

    - a path that leads out of the directory
    - bytes that are no xbstream
    - more bytes than the record states
    - more files than MOST_FILES, or more directories than MOST_FOLDERS
    - a path of a full backup that is longer than MAX_FULL

    Raises TargetRefused if a path of an incremental, behind its directory, is longer than
    MAX_OPENED.
    """

    def __init__(
        self,
        write: Callable[[bytes], None],
        backup_id: str,
        raw_bytes: int,
        folder: Path | None = None,
    ) -> None:
        """Prepare to judge one backup.

        `folder` is the directory of an incremental. It is None for a full backup, in whose
        directory the engine works.
        """
        self._write = write
        self._folder = folder
        self._longest = MAX_OPENED - len(os.fsencode(folder)) - 1 if folder else MAX_FULL
        self._backup_id = backup_id
        self._raw_bytes = raw_bytes
        # Without the checks of a proof: the extractor checks the checksums, and sealed or signed
        # bytes were not changed after they were stored.
        self._parser = MendingParser(proving=False)

    def write(self, block: bytes) -> None:
        """Check the next block and pass it on."""
        if self._parser.raw_bytes + len(block) > self._raw_bytes:
            raise self._refused(f"it has more than the {self._raw_bytes} bytes of its record")
        try:
            mended = self._parser.mend(memoryview(block))
        except StreamInvalid as error:
            raise self._refused(str(error)) from error
        incremental = self._folder is not None
        path = self._parser.unopenable(longest=self._longest, incremental=incremental)
        if path is not None:
            raise self._unopenable(path)
        self._write(block if mended is None else mended)

    def finish(self) -> None:
        """Check that the stream ended between two chunks, with the number of bytes in the record.

        Raises:
            DataDamaged: the number of bytes differs.
            ContentRefused: the last chunk or a file is incomplete.
        """
        found = self._parser.raw_bytes
        if found != self._raw_bytes:
            raise DataDamaged(
                f"backup {self._backup_id} has {found} bytes, but its record says {self._raw_bytes}"
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
        return ContentRefused(f"backup {self._backup_id} holds data that no engine writes: {why}")


class SegmentSizes(Sequence[int]):
    """The sizes in bytes of a backup's segments, computed from its record.

    All segments have the same size, except the last. Raises DataDamaged if the numbers in the
    record contradict each other.
    """

    def __init__(self, stored: Stored) -> None:
        self._count = stored.segment_count
        self._size = stored.segment_size
        self._last = stored.stored_bytes - (self._count - 1) * self._size
        if self._count < 1 or not 0 < self._last <= self._size:
            raise DataDamaged(
                f"the backup's record contradicts itself: {self._count} segments of {self._size} "
                f"bytes are not {stored.stored_bytes} bytes"
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
    """The signed rows of a backup's segments, with at most two segment lists in memory.

    Raises DataDamaged if the lists of the record don't fit its segments.
    """

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
                f"backup {record.id} has {sum(rows)} segments in its lists, but {len(self.sizes)} "
                "in its record"
            )
        if any(count != LIST_ENTRIES for count in rows[:-1]) or rows[-1] > LIST_ENTRIES:
            raise DataDamaged(
                f"backup {record.id} has a segment list of {max(rows)} rows, but each list except "
                f"the last must have {LIST_ENTRIES}, and no list may have more"
            )

    def row(self, number: int) -> Segment:
        """Return the row of a segment.

        Raises:
            DataDamaged: its list or its size differs from the record.
        """
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
    """An extraction of backups, one after the other.

    It fetches the segments of a backup, decrypts them, inflates them, checks the stream and
    extracts its files.
    """

    def __init__(self, resources: RestoreResources, meter: Meter, stop: Stop) -> None:
        self._resources = resources
        self._meter = meter
        self._stop = stop

    def plan(self, record: Record) -> Plan:
        """Return the data path's plan for the segment size of this backup.

        Raises:
            ConfigInvalid: the configured memory is too small for it.
        """
        size = record.stored.segment_size if record.stored else None
        try:
            return self._resources.path.plan(segment_bytes=size)
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

        Disarming removes everything that could lead an engine out of the directory. `as_user` calls
        a function with the rights of the owner of the extracted files.

        Raises:
            DataDamaged: stored bytes were changed or are missing, or the record doesn't fit them.
            ContentRefused: the backup holds something that no engine writes.
        """
        log.info("extracting backup %s into %s", record.id, folder)
        if record.stored is None:
            raise DataDamaged(f"the record of backup {record.id} names no stored bytes")
        lists = SegmentLists(self._resources.catalogue, record, record.stored)
        named = None if record.parent_id is None else folder.resolve()
        with (
            engine.start_extract(folder) as extract_run,
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
        as_user(partial(_disarm_and_check, record, folder, self._stop.check))

    def _fetch(self, record: Record, lists: SegmentLists, number: int, buffer: memoryview) -> None:
        row = lists.row(number)
        name = segment_name(record.id, record.attempt, number)
        try:
            self._resources.store.get_into(Container.SEGMENTS, name, buffer)
        except (StoreMismatch, StoreNotFound) as error:
            raise DataDamaged(
                f"segment {number} of backup {record.id} is not as it was stored: {error}"
            ) from error
        # get_into compares the bytes only with the ETag that the store states at this time. An
        # attacker who changed the bytes has changed that, too. So the bytes of a backup without
        # encryption are compared with the signed list. Sealed bytes are checked by their tags.
        if not record.sealed and _md5(buffer) != row.md5:
            raise DataDamaged(f"segment {number} of backup {record.id} is not as it was stored")


def _disarm_and_check(record: Record, folder: Path, check: Callable[[], None]) -> None:
    """Disarm the extracted backup, and check that its LSNs are the LSNs of the record."""
    with errors_translated(folder):
        disarm(folder, check)
    _check_lsns(record, folder)


def _check_lsns(record: Record, folder: Path) -> None:
    found = read_checkpoints(folder)
    if (found.from_lsn, found.to_lsn) != (record.from_lsn, record.to_lsn):
        raise DataDamaged(
            f"backup {record.id} goes from LSN {found.from_lsn} to {found.to_lsn}, but its record "
            f"says {record.from_lsn} to {record.to_lsn}"
        )


def _md5(data: memoryview) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
