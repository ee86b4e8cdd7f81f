"""The counters of a run, the stage that the others wait for, and a periodic look at them."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from agent.model import Measured, Progress, StageTotal
from agent.threads import Thread


@contextmanager
def every(seconds: float, look: Callable[[], None], name: str = "progress") -> Iterator[None]:
    """Call `look` every `seconds` on a separate thread while the block runs."""
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(seconds):
            look()

    ticker = Thread(tick, name=name, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        ended.set()
        ticker.join()


class Meter:
    """The counters of a run, to which the stages add and which the reporting thread reads."""

    def __init__(self, expected_raw_bytes: int | None = None) -> None:
        self.expected_raw_bytes = expected_raw_bytes
        self.raw_bytes = 0
        self.compressed_bytes = 0
        self.stored_bytes = 0
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._waits: dict[str, float] = {}
        self._stages: dict[str, StageTotal] = {}

    def add(self, *, raw: int = 0, compressed: int = 0, stored: int = 0) -> None:
        with self._lock:
            self.raw_bytes += raw
            self.compressed_bytes += compressed
            self.stored_bytes += stored

    def add_wait(self, stage: str, seconds: float) -> None:
        """Add `seconds` to the time that other stages waited for `stage`."""
        with self._lock:
            self._waits[stage] = self._waits.get(stage, 0.0) + seconds

    def add_stage(self, stage: str, seconds: float, size: int) -> None:
        """Add to the work of a stage. Call it once a segment. For blocks, use a `Tally`."""
        with self._lock:
            before = self._stages.get(stage, StageTotal(0.0, 0))
            self._stages[stage] = StageTotal(before.seconds + seconds, before.bytes + size)

    def stages(self) -> dict[str, StageTotal]:
        """Return the work of each stage so far."""
        with self._lock:
            return dict(self._stages)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def measured(self) -> Measured:
        """Return the seconds since the start, and the stage for which the others waited most."""
        with self._lock:
            bottleneck = max(self._waits, key=lambda stage: self._waits[stage], default="none")
        return Measured(seconds=round(self.seconds, 3), bottleneck=bottleneck)

    def progress(self) -> Progress:
        """Return the current progress.

        Percent and seconds left are None if the expected size is unknown.
        """
        rate = self.raw_bytes / max(self.seconds, 1e-3)
        percent = left = None
        if self.expected_raw_bytes:
            share = min(self.raw_bytes / self.expected_raw_bytes, 0.999)
            percent = round(100 * share, 1)
            if rate:
                left = round(max(self.expected_raw_bytes - self.raw_bytes, 0) / rate, 1)
        return Progress(
            raw_bytes=self.raw_bytes,
            stored_bytes=self.stored_bytes,
            bytes_per_second=round(rate, 1),
            percent=percent,
            seconds_left=left,
        )
