"""The sizes and the rows of a backup's segments, as a restore needs them."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, overload

from agent.errors import DataDamaged
from agent.model import Stored
from agent.records.object_names import LIST_ENTRIES, Segment

# Segment lists in memory. Two are enough, because downloads run ahead of the reader by less than
# the segments of one list.
_LISTS_KEPT: Final = 2


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

    `read(number)` returns the rows of one list, and raises DataDamaged if the list differs from the
    record. Raises DataDamaged if the lists of the record don't fit its segments.
    """

    def __init__(
        self, backup_id: str, stored: Stored, read: Callable[[int], Sequence[Segment]]
    ) -> None:
        self._backup_id = backup_id
        self._read = read
        self.sizes = SegmentSizes(stored)
        self._lock = threading.Lock()
        self._lists: OrderedDict[int, Sequence[Segment]] = OrderedDict()
        rows = [ref.count for ref in stored.lists]
        if sum(rows) != len(self.sizes):
            raise DataDamaged(
                f"backup {backup_id} has {sum(rows)} segments in its lists, but {len(self.sizes)} "
                "in its record"
            )
        if any(count != LIST_ENTRIES for count in rows[:-1]) or rows[-1] > LIST_ENTRIES:
            raise DataDamaged(
                f"backup {backup_id} has a segment list of {max(rows)} rows, but each list except "
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
                self._lists[at] = self._read(at)
                if len(self._lists) > _LISTS_KEPT:
                    self._lists.popitem(last=False)
            found = self._lists[at][place]
        if found.size != self.sizes[number]:
            raise DataDamaged(f"segment {number} of backup {self._backup_id} has another size")
        return found
