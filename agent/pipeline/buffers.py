"""The memory of the data path: a fixed number of buffers, and how a budget is divided."""

import threading
import time
from typing import NamedTuple

from agent.codec.aead import SLAB
from agent.errors import ConfigInvalid
from agent.stop import Stop

MIB = 1 << 20
BLOCK = MIB
# A slot holds a raw block and the member made of it, which is at most a little larger.
_SLOT_BYTES = 2 * BLOCK + 64 * 1024


class Pool:
    """At most `count` buffers of `size` bytes, made when first needed and reused."""

    def __init__(self, count: int, size: int, stop: Stop) -> None:
        self._left = count
        self._size = size
        self._stop = stop
        self._free: list[memoryview] = []
        self._changed = threading.Condition()
        self.waited = 0.0

    def take(self) -> memoryview:
        """A buffer with any content; waits for one, raises the stop's cause."""
        started = time.monotonic()
        with self._stop.on_stop(self._wake), self._changed:
            while not self._free and not self._left:
                self._stop.check()
                self._changed.wait()
            self._stop.check()
            self.waited += time.monotonic() - started
            if self._free:
                return self._free.pop()
            self._left -= 1
        return memoryview(bytearray(self._size))

    def give(self, buffer: memoryview) -> None:
        """Hand a buffer back; nothing may hold a view of it any more."""
        with self._changed:
            self._free.append(buffer)
            self._changed.notify()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class Plan(NamedTuple):
    """How one run of the data path is laid out; `memory_bytes` says what it takes."""

    cores: int
    connections: int
    slots: int
    slabs_per_segment: int
    segments_in_memory: int

    @property
    def segment_bytes(self) -> int:
        return self.slabs_per_segment * SLAB

    @property
    def memory_bytes(self) -> int:
        return self.slots * _SLOT_BYTES + self.segments_in_memory * self.segment_bytes


def plan(memory_bytes: int, segment_bytes: int, connections: int, cores: int) -> Plan:
    """Divide a budget: slots for (de)compression first, the rest for segments.

    The slots take at most half of it, and leave room for two segments, so a machine with
    many cores uses fewer of them. One segment is filled or emptied while the others travel,
    so there are at most as many connections as segments in memory less one. ConfigInvalid
    where the budget doesn't hold two segments.
    """
    slabs = max(1, segment_bytes // SLAB)
    for_slots = min(memory_bytes // 2, memory_bytes - 2 * slabs * SLAB)
    cores = max(1, min(cores, (for_slots // _SLOT_BYTES - 2) // 2))
    slots = 2 * cores + 2
    segments = (memory_bytes - slots * _SLOT_BYTES) // (slabs * SLAB)
    if segments < 2:
        raise ConfigInvalid(
            f"[pipeline] memory_bytes = {memory_bytes} does not hold two segments of "
            f"{slabs} MiB and {slots} blocks for {cores} cores",
            hint="raise [pipeline] memory_bytes, or lower segment_bytes or cores",
        )
    lanes = max(1, min(connections, segments - 1))
    return Plan(cores, lanes, slots, slabs, min(segments, 2 * lanes + 1))
