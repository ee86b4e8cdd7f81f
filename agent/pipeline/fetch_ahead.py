"""Stored bytes that are fetched in advance, into a fixed number of buffers."""

import time
from collections import deque
from collections.abc import Callable, Iterator
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

    `size_of(number)` returns the size of one of the `count` segments in bytes, which is at most
    `largest`. `fetch(number, buffer)` fills the buffer with the bytes of that segment, and may
    raise.
    """

    def __init__(
        self,
        count: int,
        size_of: Callable[[int], int],
        fetch: Fetch,
        *,
        largest: int,
        plan: Plan,
        meter: Meter,
        stop: Stop,
    ) -> None:
        self._count = count
        self._size_of = size_of
        self._largest = largest
        self._fetch = fetch
        self._plan = plan
        self._meter = meter
        self._stop = stop

    def segments(self, fetchers: Workers) -> Iterator[memoryview]:
        """Yield the bytes of each segment in order, while `fetchers` fetch the next ones.

        A buffer is filled with other bytes as soon as the next segment is requested.
        """
        ahead: deque[Future[_Fetched]] = deque()
        in_memory = min(self._plan.segments_in_memory, self._count)
        buffers = [memoryview(bytearray(self._largest)) for _ in range(in_memory)]
        for number in range(self._count):
            while buffers and number + len(ahead) < self._count:
                ahead.append(fetchers.submit(self._fetch_one, number + len(ahead), buffers.pop()))
            started = time.monotonic()
            fetched = ahead.popleft().result()
            self._meter.add_wait("store", time.monotonic() - started)
            yield fetched.buffer[: fetched.size]
            buffers.append(fetched.buffer)

    def _fetch_one(self, number: int, buffer: memoryview) -> _Fetched:
        self._stop.check()
        size, started = self._size_of(number), time.monotonic()
        self._fetch(number, buffer[:size])
        self._meter.add_stage("fetch", time.monotonic() - started, size)
        self._meter.add(stored=size)
        return _Fetched(buffer, size)
