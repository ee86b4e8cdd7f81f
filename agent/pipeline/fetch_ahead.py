"""Stored bytes that are fetched in advance, into a fixed number of buffers."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from agent.pipeline.buffers import Plan
from agent.pipeline.meter import Meter
from agent.stop import Stop
from agent.threads import Workers

Fetch = Callable[[int, memoryview], None]


class _Fetched(NamedTuple):
    buffer: memoryview
    size: int


class FetchAhead:
    """Segments that several connections fetch, and that one thread takes in order.

    `sizes` has the size of each segment in bytes. `fetch(number, buffer)` fills the buffer with
    the bytes of segment `number`, and may raise.
    """

    def __init__(
        self, sizes: Sequence[int], fetch: Fetch, *, plan: Plan, meter: Meter, stop: Stop
    ) -> None:
        self._sizes = sizes
        self._fetch = fetch
        self._plan = plan
        self._meter = meter
        self._stop = stop

    def segments(self, fetchers: Workers) -> Iterator[memoryview]:
        """Yield the bytes of each segment in order, while `fetchers` fetch the next ones.

        A buffer is filled with other bytes as soon as the next segment is requested.
        """
        ahead: deque[Future[_Fetched]] = deque()
        size = max(self._sizes, default=0)
        count = min(self._plan.segments_in_memory, len(self._sizes))
        buffers = [memoryview(bytearray(size)) for _ in range(count)]
        for number in range(len(self._sizes)):
            while buffers and number + len(ahead) < len(self._sizes):
                ahead.append(fetchers.submit(self._fetch_one, number + len(ahead), buffers.pop()))
            started = time.monotonic()
            fetched = ahead.popleft().result()
            self._meter.add_wait("store", time.monotonic() - started)
            yield fetched.buffer[: fetched.size]
            buffers.append(fetched.buffer)

    def _fetch_one(self, number: int, buffer: memoryview) -> _Fetched:
        self._stop.check()
        size, started = self._sizes[number], time.monotonic()
        self._fetch(number, buffer[:size])
        self._meter.add_stage("fetch", time.monotonic() - started, size)
        self._meter.add(stored=size)
        return _Fetched(buffer, size)
