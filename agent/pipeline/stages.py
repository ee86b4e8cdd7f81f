"""The seconds and bytes of the data path's stages, as metrics show them.

A stage that works on each block adds to a `Tally` of its own thread, without a lock. The tally
passes the sum to the run's meter every 16 blocks. So measuring costs two looks at the clock a MiB.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Self

from agent.model import STAGES, StageTotal
from agent.pipeline.meter import Meter

_AT_ONCE: Final = 16


class Tally:
    """The work of one stage that one thread adds. The end of the block passes on the rest."""

    def __init__(self, meter: Meter, stage: str) -> None:
        self._meter = meter
        self._stage = stage
        self._seconds = 0.0
        self._bytes = 0
        self._waiting = 0

    def add(self, seconds: float, size: int) -> None:
        self._seconds += seconds
        self._bytes += size
        self._waiting += 1
        if self._waiting == _AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Pass the sum to the meter."""
        self._meter.add_stage(self._stage, self._seconds, self._bytes)
        self._seconds, self._bytes, self._waiting = 0.0, 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.flush()


class StageTotals:
    """The totals of all stages. They begin with `before`, those of earlier processes.

    They never decrease. Runs that have not ended are included.
    """

    def __init__(self, before: Mapping[str, StageTotal]) -> None:
        self._lock = threading.Lock()
        nothing = StageTotal(0.0, 0)
        self._ended = {stage: before.get(stage, nothing) for stage in STAGES}
        self._running: list[Meter] = []

    @contextmanager
    def counted(self, meter: Meter) -> Iterator[None]:
        """Count the work of a run while the block runs, and keep it after the end."""
        with self._lock:
            self._running.append(meter)
        try:
            yield
        finally:
            with self._lock:
                self._running.remove(meter)
                self._ended = _sum(self._ended, meter.stages())

    def read(self) -> dict[str, StageTotal]:
        """Return the totals of all stages."""
        with self._lock:
            found = self._ended
            for meter in self._running:
                found = _sum(found, meter.stages())
            return found


def _sum(one: Mapping[str, StageTotal], more: Mapping[str, StageTotal]) -> dict[str, StageTotal]:
    nothing = StageTotal(0.0, 0)
    return {
        stage: StageTotal(total.seconds + added.seconds, total.bytes + added.bytes)
        for stage, total in one.items()
        for added in (more.get(stage, nothing),)
    }
