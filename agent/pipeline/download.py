"""The download turns stored segments into the raw stream.

It fetches segments in advance, decrypts ("opens") them in order, decompresses in parallel, and
writes in order.

    fetch x connections ─▶ opener ─▶ inflate x cores ─▶ writer ─▶ sink
                          (caller)                     (1 thread)

Each MiB is authenticated before a byte of it is decompressed. So the sink never gets bytes that
were changed, truncated or moved to another place. A backup that isn't encrypted has no
authentication, so `fetch` must check its bytes.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import NamedTuple, Protocol

from agent.codec.aead import SLAB
from agent.codec.gzip_members import MemberSplitter, inflate_member
from agent.errors import DataDamaged
from agent.pipeline.buffers import Plan
from agent.pipeline.fetch_ahead import Fetch, FetchAhead
from agent.pipeline.meter import Meter
from agent.pipeline.stages import Tally
from agent.pipeline.write_behind import Write, WriteBehind
from agent.stop import Stop
from agent.threads import Workers


class Opening(Protocol):
    """A codec that turns stored slabs into plaintext, in place.

    The implementations are in codec/aead.py and codec/plain.py.
    """

    def open(self, slab: memoryview, index: int, last: bool) -> memoryview:
        """Return the plaintext of one whole slab.

        Raises:
            DataDamaged: the slab differs from the stored one.
        """


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
        self._opening = opening
        self._plan = plan
        self._meter = meter
        self._stop = stop
        self._ahead = FetchAhead(
            len(sizes),
            sizes.__getitem__,
            fetch,
            largest=max(sizes, default=0),
            plan=plan,
            meter=meter,
            stop=stop,
        )
        self._splitter = MemberSplitter()
        self._inflated = Tally(meter, "inflate")
        self._writer = WriteBehind(
            self._take_inflated, write, slots=plan.slots, meter=meter, stop=stop
        )
        self._index = 0

    def run(self) -> None:
        """Download the whole stream, or raise the first failure of any stage.

        No thread of this run is left after the return or the exception.
        """
        with (
            Workers(self._plan.connections, "fetch") as fetchers,
            Workers(self._plan.cores, "inflate") as inflaters,
            self._inflated,
            self._writer.running(),
            self._stop.guard(),
        ):
            self._open_all(fetchers, inflaters)
        self._stop.check()

    def _open_all(self, fetchers: Workers, inflaters: Workers) -> None:
        """Open the segments in order while the next ones are fetched.

        Raises:
            DataDamaged: the backup has no segments, or its bytes are damaged.
        """
        if not self._sizes:
            raise DataDamaged("the backup has no segments")
        last = len(self._sizes) - 1
        for number, segment in enumerate(self._ahead.segments(fetchers)):
            self._open_segment(segment, number == last, inflaters)
        self._splitter.finish()

    def _open_segment(self, segment: memoryview, last: bool, inflaters: Workers) -> None:
        with Tally(self._meter, "open") as opened:
            for at in range(0, len(segment), SLAB):
                end = min(at + SLAB, len(segment))
                ends_stream = last and end == len(segment)
                started = time.monotonic()
                plain = self._opening.open(segment[at:end], self._index, ends_stream)
                opened.add(time.monotonic() - started, len(plain))
                self._index += 1
                for member in self._splitter.feed(plain):
                    self._inflate_later(member, inflaters)

    def _inflate_later(self, member: bytes, inflaters: Workers) -> None:
        self._writer.reserve()
        self._meter.add(compressed=len(member))
        self._writer.put(inflaters.submit(_inflate, member))

    def _take_inflated(self, job: Future[_Inflated]) -> bytes:
        block, seconds = job.result()
        self._inflated.add(seconds, len(block))
        return block


def _inflate(member: bytes) -> _Inflated:
    started = time.monotonic()
    block = inflate_member(member)
    return _Inflated(block, time.monotonic() - started)
