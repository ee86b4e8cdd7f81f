"""The memory of the data path, which has a fixed number of buffers within a budget."""

import threading
import time
from typing import NamedTuple

from agent.codec.aead import SLAB
from agent.errors import ConfigInvalid
from agent.stop import Stop

MIB = 1 << 20
BLOCK = MIB
# A slot has a raw block and the gzip member made of it, which is at most a little larger.
_SLOT_BYTES = 2 * BLOCK + 64 * 1024


class Pool:
    """A pool of at most `count` buffers of `size` bytes, made when first needed and reused.

    `waited` is the seconds that threads waited for a buffer.
    """

    def __init__(self, count: int, size: int, stop: Stop) -> None:
        self._left = count
        self._size = size
        self._stop = stop
        self._free: list[memoryview] = []
        self._changed = threading.Condition()
        self.waited = 0.0

    def take(self) -> memoryview:
        """Return a buffer with any content, and wait for one if none is free.

        Raise the cause if a stop is requested.
        """
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
        """Return a buffer to the pool, of which no view may be in use any more."""
        with self._changed:
            self._free.append(buffer)
            self._changed.notify()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class Plan(NamedTuple):
    """The layout of one run of the data path, which needs `memory_bytes` of memory."""

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
    """Divide a memory budget between slots for (de)compression and segments.

    The slots are planned first. They take at most half of the budget, but there are at least four,
    and leave room for two segments. So a machine with many cores may use only some of them. The
    rest of the budget is for segments. One segment is filled or emptied while the others are
    transferred. So there is at least one segment in memory more than connections.

    Raises:
        ConfigInvalid: the budget is too small for two segments.
    """
    slabs = max(1, segment_bytes // SLAB)
    for_slots = min(memory_bytes // 2, memory_bytes - 2 * slabs * SLAB)
    cores = max(1, min(cores, (for_slots // _SLOT_BYTES - 2) // 2))
    slots = 2 * cores + 2
    segments = (memory_bytes - slots * _SLOT_BYTES) // (slabs * SLAB)
    if segments < 2:
        raise ConfigInvalid(
            f"[pipeline] memory_bytes = {memory_bytes} is too small for two segments of "
            f"{slabs} MiB and {slots} blocks for {cores} cores",
            hint="raise [pipeline] memory_bytes, or lower segment_bytes or cores",
        )
    lanes = max(1, min(connections, segments - 1))
    return Plan(cores, lanes, slots, slabs, min(segments, 2 * lanes + 1))
