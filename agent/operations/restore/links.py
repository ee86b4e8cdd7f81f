"""The members of a chain, from which a restore gets the raw bytes.

A restore needs only the facts and the stream that `ChainLink` names. So the members of a chain may
be stored in different ways. `RecordLink` is a backup that a record describes.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

from agent.errors import ConfigInvalid, DataDamaged, StoreMismatch, StoreNotFound
from agent.model import Record, Stored
from agent.operations.resources import PathSettings, RestoreResources
from agent.operations.restore.segments import SegmentLists
from agent.pipeline.buffers import Plan
from agent.pipeline.download import Download, Opening
from agent.pipeline.meter import Meter
from agent.records.object_names import Segment, segment_name
from agent.stop import Stop
from agent.store.protocol import Container


class ChainLink(Protocol):
    """One member of a chain, for one restore.

    Its calls to the store must end at once when the restore is stopped.
    """

    @property
    def backup_id(self) -> str:
        """Return the id of the backup."""

    @property
    def incremental(self) -> bool:
        """Return False for the full backup that begins a chain, else True."""

    @property
    def engine(self) -> str:
        """Return the name of the engine that made the backup, such as `mariadb-backup`."""

    @property
    def engine_version(self) -> str | None:
        """Return the version of that engine, or None if it is unknown."""

    @property
    def raw_bytes(self) -> int | None:
        """Return the size of the raw stream in bytes, or None if it is unknown."""

    @property
    def least_bytes(self) -> int:
        """Return the number of bytes that the extracted backup takes at least.

        This is `raw_bytes` if that is known. Else it is an estimate, such as the stored size.
        """

    @property
    def longest_path(self) -> int:
        """Return the length of the longest path that a prepare opens, in bytes, or 0 if unknown.

        `Gate` checks each path.
        """

    @property
    def from_lsn(self) -> int | None:
        """Return the LSN at which the backup begins, 0 for a full backup, or None if unknown."""

    @property
    def to_lsn(self) -> int | None:
        """Return the LSN at which the backup ends, or None if it is unknown."""

    def check_memory(self) -> None:
        """Check that the configured memory is enough for `stream`.

        Raises:
            ConfigInvalid: it is too small.
        """

    def stream(self, write: Callable[[bytes], None], meter: Meter, stop: Stop) -> None:
        """Pass the raw xbstream to `write`, in order. Call it once.

        All calls of `write` have ended when this method returns or raises. `write` may be called on
        another thread, and the errors that it raises are raised here. The stored, compressed and
        raw bytes are added to `meter`.

        Raises:
            DataDamaged: stored bytes were changed or are missing.
        """


class SegmentSource(Protocol):
    """The place in the store of one backup's segments and segment lists."""

    def rows(self, number: int) -> Sequence[Segment]:
        """Return the rows of segment list `number`.

        Raises:
            DataDamaged: the list differs from the record.
        """

    def read_into(self, number: int, buffer: memoryview) -> None:
        """Read segment `number`, which has exactly `len(buffer)` bytes.

        Raises:
            StoreNotFound, StoreMismatch: the segment is missing or has other bytes.
        """


class AttemptSegments:
    """The segments and segment lists of an attempt, by the names of docs/format.md."""

    def __init__(self, resources: RestoreResources, record: Record, stored: Stored) -> None:
        self._resources = resources
        self._record = record
        self._stored = stored

    def rows(self, number: int) -> Sequence[Segment]:
        """Return the rows of segment list `number`. Raise DataDamaged if the list was changed."""
        return self._resources.catalogue.segment_list(self._record, self._stored, number)

    def read_into(self, number: int, buffer: memoryview) -> None:
        """Read segment `number`. Raise StoreNotFound or StoreMismatch if it has other bytes."""
        name = segment_name(self._record.id, self._record.attempt, number)
        self._resources.store.get_into(Container.SEGMENTS, name, buffer)


def record_link(resources: RestoreResources, record: Record) -> "RecordLink":
    """Return the link of a backup in the agent's own layout.

    `resources` must be bound to the stop of the restore.

    Raises:
        DataDamaged: the record names no stored bytes, or its data key can't be unwrapped.
        KeyNotHere: the key that unwraps its data key is not on this machine.
        PlaintextRefused: the backup isn't encrypted, and such backups are not allowed.
    """
    stored = record.stored
    if stored is None:
        raise DataDamaged(f"the record of backup {record.id} names no stored bytes")
    if record.to_lsn is None:
        raise DataDamaged(f"the record of backup {record.id} names no LSN at which it ends")
    source = AttemptSegments(resources, record, stored)
    return RecordLink(record, stored, source, resources.opening(record), resources.path)


class RecordLink:
    """A backup that a COMPLETED record describes. `stored` is that of the record.

    `source` is the place of its segments. `opening` decrypts them, for this link only.
    """

    def __init__(
        self,
        record: Record,
        stored: Stored,
        source: SegmentSource,
        opening: Opening,
        path: PathSettings,
    ) -> None:
        self._record = record
        self._stored = stored
        self._source = source
        self._opening = opening
        self._path = path

    @property
    def backup_id(self) -> str:
        return self._record.id

    @property
    def incremental(self) -> bool:
        return self._record.parent_id is not None

    @property
    def engine(self) -> str:
        return self._record.engine

    @property
    def engine_version(self) -> str:
        return self._record.engine_version

    @property
    def raw_bytes(self) -> int:
        return self._stored.raw_bytes

    @property
    def least_bytes(self) -> int:
        return self._stored.raw_bytes

    @property
    def longest_path(self) -> int:
        return self._stored.longest_path or 0

    @property
    def from_lsn(self) -> int:
        return self._record.from_lsn

    @property
    def to_lsn(self) -> int | None:
        return self._record.to_lsn

    def check_memory(self) -> None:
        """Check that the configured memory is enough for the backup's segments.

        Raises:
            ConfigInvalid: it is too small.
        """
        self._plan()

    def stream(self, write: Callable[[bytes], None], meter: Meter, stop: Stop) -> None:
        """Fetch the segments, decrypt them, inflate them, and pass the raw bytes to `write`.

        Raises:
            DataDamaged: stored bytes were changed or are missing, or the record doesn't fit them.
        """
        lists = SegmentLists(self.backup_id, self._stored, self._source.rows)
        Download(
            lists.sizes,
            lambda number, buffer: self._fetch(lists, number, buffer),
            self._opening,
            write,
            plan=self._plan(),
            meter=meter,
            stop=stop,
        ).run()

    def _plan(self) -> Plan:
        try:
            return self._path.plan(segment_bytes=self._stored.segment_size)
        except ConfigInvalid as error:
            raise ConfigInvalid(
                f"the segments of backup {self.backup_id} are too large for this machine: {error}",
                hint="raise [pipeline] memory_bytes",
            ) from error

    def _fetch(self, lists: SegmentLists, number: int, buffer: memoryview) -> None:
        row = lists.row(number)
        try:
            self._source.read_into(number, buffer)
        except (StoreMismatch, StoreNotFound) as error:
            raise DataDamaged(
                f"segment {number} of backup {self.backup_id} is not as it was stored: {error}"
            ) from error
        # The store compares the bytes only with the ETag that it states at this time. An attacker
        # who changed the bytes has changed that, too. So the bytes of a backup without encryption
        # are compared with the signed list. Sealed bytes are checked by their tags.
        if not self._record.sealed and _md5(buffer) != row.md5:
            raise DataDamaged(
                f"segment {number} of backup {self.backup_id} is not as it was stored"
            )


def _md5(data: memoryview) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
