"""A progress bar on standard error: bytes, rate and time left."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from tqdm import tqdm

from agent.model import Progress
from agent.pipeline.meter import Meter, every

_REFRESH_SECONDS = 0.2


class ProgressBar:
    """Shows `Progress` snapshots; silent where standard error is no terminal."""

    def __init__(self, label: str) -> None:
        self._bar = tqdm(
            desc=label,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            disable=not sys.stderr.isatty(),
            file=sys.stderr,
            leave=True,
        )

    def show(self, progress: Progress) -> None:
        if progress.percent:
            self._bar.total = int(progress.raw_bytes / progress.percent * 100)
        self._bar.update(progress.raw_bytes - self._bar.n)

    def finish(self, raw_bytes: int) -> None:
        """Everything is done, which was that many bytes."""
        self._bar.total = raw_bytes
        self._bar.update(raw_bytes - self._bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.close()


@contextmanager
def watch(meter: Meter, bar: ProgressBar) -> Iterator[None]:
    """Show a meter of this process while the block runs."""
    try:
        with every(_REFRESH_SECONDS, lambda: bar.show(meter.progress())):
            yield
    finally:
        bar.show(meter.progress())
