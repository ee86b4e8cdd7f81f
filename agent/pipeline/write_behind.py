"""Blocks that a thread of their own writes in order, with a limit of those that wait."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Generic, TypeVar

from agent.pipeline.meter import Meter
from agent.pipeline.stages import Tally
from agent.stop import Stop
from agent.threads import Thread

Write = Callable[[bytes], None]
_Job = TypeVar("_Job")


class WriteBehind(Generic[_Job]):
    """A thread that takes the block of each job in order, and writes it.

    `take` returns the block of a job, and may wait for it or raise. At most `slots` jobs wait.
    """

    def __init__(
        self, take: Callable[[_Job], bytes], write: Write, *, slots: int, meter: Meter, stop: Stop
    ) -> None:
        self._take = take
        self._write = write
        self._meter = meter
        self._stop = stop
        self._slots = threading.Semaphore(slots)
        self._in_order: SimpleQueue[_Job | None] = SimpleQueue()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Write until the block ends. Then write what is left, or drop it after a stop."""
        with self._stop.on_stop(self._slots.release):
            writer = Thread(self._write_all, name="write")
            writer.start()
            try:
                yield
            finally:
                self._in_order.put(None)
                self._stop.join(writer)

    def reserve(self) -> None:
        """Wait for a slot for the next job. Raise the cause if a stop is requested."""
        self._slots.acquire()
        self._stop.check()

    def put(self, job: _Job) -> None:
        """Add a job, for which the caller has reserved a slot."""
        self._in_order.put(job)

    def _write_all(self) -> None:
        with self._stop.guard(), Tally(self._meter, "write") as written:
            while (job := self._in_order.get()) is not None:
                self._stop.check()
                block = self._take(job)
                started = time.monotonic()
                self._write(block)
                written.add(time.monotonic() - started, len(block))
                self._meter.add(raw=len(block))
                self._slots.release()
