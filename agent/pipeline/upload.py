"""The upload turns a raw stream into stored segments.

It reads, compresses in parallel, encrypts ("seals") in order, and sends in parallel.

    source ─ reader ─▶ deflate x cores ─▶ sealer ─▶ send x connections
             (caller)                     (1 thread)

A slot is a raw block and its gzip member. The reader takes a slot and the sealer returns it. The
sealer takes a slab and the sender returns it. So a slow stage makes the earlier stages wait for
one of the two pools, and the memory stays within the plan for a database of any size.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import NamedTuple, Protocol

from agent.codec.aead import SLAB
from agent.codec.gzip_members import deflate_member
from agent.pipeline.buffers import BLOCK, Plan, Pool
from agent.pipeline.meter import Meter
from agent.pipeline.rate_limit import RateLimit
from agent.pipeline.stages import Tally
from agent.stop import Stop
from agent.threads import Thread, Workers


class Source(Protocol):
    """A source of raw bytes."""

    def read_into(self, buffer: memoryview) -> int:
        """Read the next bytes into the buffer, and return their number.

        Return 0 only at an end of the stream that is proved to be successful.
        """


class Sealing(Protocol):
    """A codec that turns slabs of plaintext into stored bytes, in place.

    The implementations are in codec/aead.py and codec/plain.py.
    """

    def start(self, index: int) -> int:
        """Return the offset of the plaintext in slab `index`."""

    def room(self, index: int) -> int:
        """Return the number of plaintext bytes in a full slab `index`."""

    def seal(self, slab: memoryview, index: int, length: int, last: bool) -> int:
        """Seal `length` bytes from offset start(index) on, and return how many bytes to store.

        The bytes to store begin at the start of the slab.
        """


class _Deflated(NamedTuple):
    block: memoryview
    member: bytes
    seconds: float


Send = Callable[[int, list[memoryview]], None]


class Upload:
    """One run of the upload.

    `send(number, parts)` stores the segment `number` and may raise. `level` is the level of
    compression.
    """

    def __init__(
        self,
        source: Source,
        sealing: Sealing,
        send: Send,
        *,
        plan: Plan,
        level: int,
        rate_limit: RateLimit,
        meter: Meter,
        stop: Stop,
    ) -> None:
        self._source = source
        self._send = send
        self._plan = plan
        self._level = level
        self._rate_limit = rate_limit
        self._meter = meter
        self._stop = stop
        self._blocks = Pool(plan.slots, BLOCK, stop)
        self._slabs = Pool(plan.slabs_per_segment * plan.segments_in_memory, SLAB, stop)
        self._sealed = _Sealed(sealing, self._slabs, Tally(meter, "seal"))
        self._in_order: SimpleQueue[Future[_Deflated] | None] = SimpleQueue()
        self._segments = 0

    def run(self) -> int:
        """Upload the whole stream and return the number of segments, or raise the first failure.

        The failure may come from any stage. No thread of this run is left after the return or the
        exception.
        """
        with (
            Workers(self._plan.cores, "deflate") as deflaters,
            Workers(self._plan.connections, "send") as senders,
        ):
            sealer = Thread(self._seal_all, senders, name="seal")
            sealer.start()
            with self._stop.guard():
                self._read_all(deflaters)
            self._in_order.put(None)
            self._stop.join(sealer)
        self._note_waits()
        self._stop.check()
        return self._segments

    def _read_all(self, deflaters: Workers) -> None:
        with Tally(self._meter, "read") as read:
            while True:
                block = self._blocks.take()
                started = time.monotonic()
                count = self._source.read_into(block)
                waited = time.monotonic() - started
                self._meter.add_wait("engine", waited)
                read.add(waited, count)
                if not count:
                    return
                self._meter.add(raw=count)
                self._in_order.put(deflaters.submit(self._deflate, block, count))
                self._rate_limit.spend(count)

    def _deflate(self, block: memoryview, count: int) -> _Deflated:
        started = time.monotonic()
        member = deflate_member(block[:count], self._level)
        return _Deflated(block, member, time.monotonic() - started)

    def _seal_all(self, senders: Workers) -> None:
        with self._stop.guard(), self._sealed.tally, Tally(self._meter, "deflate") as deflated:
            while (job := self._in_order.get()) is not None:
                self._stop.check()
                block, member, seconds = job.result()
                deflated.add(seconds, len(member))
                for parts in self._sealed.write(member, self._plan.slabs_per_segment):
                    self._dispatch(senders, parts)
                self._blocks.give(block)
                self._meter.add(compressed=len(member))
            # The last slab is sealed only here. So a failed stream never gets a valid end.
            self._stop.check()
            self._dispatch(senders, self._sealed.finish())

    def _dispatch(self, senders: Workers, parts: list[memoryview]) -> None:
        senders.submit(self._send_one, self._segments, parts)
        self._segments += 1

    def _send_one(self, number: int, parts: list[memoryview]) -> None:
        with self._stop.guard():
            self._stop.check()
            size, started = sum(len(part) for part in parts), time.monotonic()
            self._send(number, parts)
            self._meter.add_stage("send", time.monotonic() - started, size)
            self._meter.add(stored=size)
            for part in parts:
                self._slabs.give(_whole(part))

    def _note_waits(self) -> None:
        self._meter.add_wait("store", self._slabs.waited)
        self._meter.add_wait("deflate", max(0.0, self._blocks.waited - self._slabs.waited))


def _whole(part: memoryview) -> memoryview:
    """Return the full slab of a part, which may be a shorter view of it."""
    return memoryview(part.obj)


class _Sealed:
    """A packer that fills slabs with gzip members, and seals each full slab in place.

    `tally` counts the sealing.
    """

    def __init__(self, sealing: Sealing, slabs: Pool, tally: Tally) -> None:
        self._sealing = sealing
        self._slabs = slabs
        self.tally = tally
        self._done: list[memoryview] = []
        self._slab: memoryview | None = None
        self._index = 0
        self._filled = 0

    def write(self, member: bytes, slabs_per_segment: int) -> Iterator[list[memoryview]]:
        """Add the bytes of a member, and yield each segment that becomes complete."""
        rest = memoryview(member)
        while rest:
            whole = self._sealing.room(self._index)
            if self._filled == whole:
                self._seal(last=False)
                if len(self._done) == slabs_per_segment:
                    segment, self._done = self._done, []
                    yield segment
                continue
            if self._slab is None:
                self._slab = self._slabs.take()
            taken = min(len(rest), whole - self._filled)
            at = self._sealing.start(self._index) + self._filled
            self._slab[at : at + taken] = rest[:taken]
            self._filled += taken
            rest = rest[taken:]

    def finish(self) -> list[memoryview]:
        """Seal the last slab, and return the last segment."""
        if self._slab is None:
            self._slab = self._slabs.take()
        self._seal(last=True)
        return self._done

    def _seal(self, *, last: bool) -> None:
        assert self._slab is not None
        started = time.monotonic()
        used = self._sealing.seal(self._slab, self._index, self._filled, last)
        self.tally.add(time.monotonic() - started, used)
        self._done.append(self._slab[:used] if used < len(self._slab) else self._slab)
        self._slab = None
        self._index += 1
        self._filled = 0
