"""The download turns stored segments into the raw stream.

It fetches segments in advance, decrypts ("opens") them in order, decompresses in parallel, and
writes in order.

    fetch x connections ─▶ opener ─▶ inflate x cores ─▶ writer ─▶ sink
                          (caller)                     (1 thread)

Each MiB is authenticated before a byte of it is decompressed. So the sink never gets bytes that
were changed, truncated or moved to another place. A backup that isn't encrypted has no
authentication, so `fetch` must check its bytes.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import NamedTuple, Protocol

from agent.codec.aead import SLAB
from agent.codec.gzip_members import MemberSplitter, inflate_member
from agent.errors import DataDamaged
from agent.pipeline.buffers import Plan
from agent.pipeline.meter import Meter
from agent.pipeline.stages import Tally
from agent.stop import Stop
from agent.threads import Thread, Workers

Fetch = Callable[[int, memoryview], None]
Write = Callable[[bytes], None]


class Opening(Protocol):
    """A codec that turns stored slabs into plaintext, in place.

    The implementations are in codec/aead.py and codec/plain.py.
    """

    def open(self, slab: memoryview, index: int, last: bool) -> memoryview:
        """Return the plaintext of one whole slab.

        Raises:
            DataDamaged: the slab differs from the stored one.
        """


class _Fetched(NamedTuple):
    buffer: memoryview
    size: int


class _Inflated(NamedTuple):
    block: bytes
    seconds: float


class Download:
    """One run of the download.

    `sizes` has the size of each segment in bytes. `fetch(number, buffer)` fills the buffer with
    the bytes of segment `number`, and may raise.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        fetch: Fetch,
        opening: Opening,
        write: Write,
        *,
        plan: Plan,
        meter: Meter,
        stop: Stop,
    ) -> None:
        self._sizes = sizes
        self._fetch = fetch
        self._opening = opening
        self._write = write
        self._plan = plan
        self._meter = meter
        self._stop = stop
        self._splitter = MemberSplitter()
        self._slots = threading.Semaphore(plan.slots)
        self._in_order: SimpleQueue[Future[_Inflated] | None] = SimpleQueue()
        self._index = 0

    def run(self) -> None:
        """Download the whole stream, or raise the first failure of any stage.

        No thread of this run is left after the return or the exception.
        """
        with (
            self._stop.on_stop(self._slots.release),
            Workers(self._plan.connections, "fetch") as fetchers,
            Workers(self._plan.cores, "inflate") as inflaters,
        ):
            writer = Thread(self._write_all, name="write")
            writer.start()
            with self._stop.guard():
                self._open_all(fetchers, inflaters)
            self._in_order.put(None)
            self._stop.join(writer)
        self._stop.check()

    def _open_all(self, fetchers: Workers, inflaters: Workers) -> None:
        """Open the segments in order while the next ones are fetched.

        Raises:
            DataDamaged: the backup has no segments, or its bytes are damaged.
        """
        if not self._sizes:
            raise DataDamaged("the backup has no segments")
        ahead: deque[Future[_Fetched]] = deque()
        size = max(self._sizes)
        count = min(self._plan.segments_in_memory, len(self._sizes))
        buffers = [memoryview(bytearray(size)) for _ in range(count)]
        for number in range(len(self._sizes)):
            while buffers and number + len(ahead) < len(self._sizes):
                ahead.append(fetchers.submit(self._fetch_one, number + len(ahead), buffers.pop()))
            started = time.monotonic()
            fetched = ahead.popleft().result()
            self._meter.add_wait("store", time.monotonic() - started)
            self._open_segment(fetched, number == len(self._sizes) - 1, inflaters)
            buffers.append(fetched.buffer)
        self._splitter.finish()

    def _fetch_one(self, number: int, buffer: memoryview) -> _Fetched:
        self._stop.check()
        size, started = self._sizes[number], time.monotonic()
        self._fetch(number, buffer[:size])
        self._meter.add_stage("fetch", time.monotonic() - started, size)
        self._meter.add(stored=size)
        return _Fetched(buffer, size)

    def _open_segment(self, fetched: _Fetched, last: bool, inflaters: Workers) -> None:
        with Tally(self._meter, "open") as opened:
            for at in range(0, fetched.size, SLAB):
                end = min(at + SLAB, fetched.size)
                ends_stream = last and end == fetched.size
                started = time.monotonic()
                plain = self._opening.open(fetched.buffer[at:end], self._index, ends_stream)
                opened.add(time.monotonic() - started, len(plain))
                self._index += 1
                for member in self._splitter.feed(plain):
                    self._inflate_later(member, inflaters)

    def _inflate_later(self, member: bytes, inflaters: Workers) -> None:
        self._slots.acquire()
        self._stop.check()
        self._meter.add(compressed=len(member))
        self._in_order.put(inflaters.submit(_inflate, member))

    def _write_all(self) -> None:
        with (
            self._stop.guard(),
            Tally(self._meter, "inflate") as inflated,
            Tally(self._meter, "write") as written,
        ):
            while (job := self._in_order.get()) is not None:
                self._stop.check()
                block, seconds = job.result()
                inflated.add(seconds, len(block))
                started = time.monotonic()
                self._write(block)
                written.add(time.monotonic() - started, len(block))
                self._meter.add(raw=len(block))
                self._slots.release()


def _inflate(member: bytes) -> _Inflated:
    started = time.monotonic()
    block = inflate_member(member)
    return _Inflated(block, time.monotonic() - started)
