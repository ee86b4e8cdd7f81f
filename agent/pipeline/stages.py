"""The seconds and bytes of the data path's stages, as metrics show them.

A stage that works on each block adds to a `Tally` of its own thread, without a lock. The tally
passes the sum to the run's meter every 16 blocks. So measuring costs two looks at the clock a MiB.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Self

from agent.model import StageTotal
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


class StageWork:
    """The work of the stages in one run, which its owner keeps from time to time."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._kept: Mapping[str, StageTotal] = {}

    @contextmanager
    def rest(self) -> Iterator[dict[str, StageTotal]]:
        """Yield the work that is not kept yet. It is kept if the block raises nothing.

        One thread at a time may use this.
        """
        done = self._meter.stages()
        yield _difference(done, self._kept)
        self._kept = done


def _difference(
    done: Mapping[str, StageTotal], kept: Mapping[str, StageTotal]
) -> dict[str, StageTotal]:
    nothing = StageTotal(0.0, 0)
    return {
        stage: StageTotal(total.seconds - before.seconds, total.bytes - before.bytes)
        for stage, total in done.items()
        for before in (kept.get(stage, nothing),)
        if total != before
    }
