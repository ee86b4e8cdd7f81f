"""A progress bar on standard error, with bytes, rate and time left."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Self

from tqdm import tqdm

from agent.cli.streams import wants_notes
from agent.model import Progress
from agent.pipeline.meter import Meter, every

_REFRESH_SECONDS = 0.2
_USUAL: Final = (80, 24)


class ProgressBar:
    """A bar that shows `Progress` snapshots.

    It prints nothing if standard error is not a terminal, or with `--quiet`.
    """

    def __init__(self, label: str) -> None:
        columns, rows = _shape()
        self._bar = tqdm(
            desc=label,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            disable=not (sys.stderr.isatty() and wants_notes()),
            file=sys.stderr,
            ncols=columns,
            nrows=rows,
            leave=True,
        )

    def show(self, progress: Progress) -> None:
        if progress.percent:
            self._bar.total = int(progress.raw_bytes / progress.percent * 100)
        self._bar.update(progress.raw_bytes - self._bar.n)

    def finish(self, raw_bytes: int) -> None:
        """Show that the work is done, with `raw_bytes` as the total."""
        self._bar.total = raw_bytes
        self._bar.update(raw_bytes - self._bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.close()


def _shape() -> tuple[int, int] | tuple[None, None]:
    """Return the columns and rows for tqdm, or None for both if tqdm should find them itself.

    A terminal that reports a width of 0 columns gets a usual shape, because tqdm would show nothing
    in it.
    """
    try:
        known = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):  # no terminal, or no file at all
        return None, None
    return (None, None) if known else _USUAL


@contextmanager
def above_bars() -> Iterator[None]:
    """Remove the bars from the terminal while the block writes a line, and draw them below it."""
    with tqdm.external_write_mode(file=sys.stderr):
        yield


@contextmanager
def watch(meter: Meter, bar: ProgressBar) -> Iterator[None]:
    """Show the progress of a meter of this process while the block runs."""
    try:
        with every(_REFRESH_SECONDS, lambda: bar.show(meter.progress())):
            yield
    finally:
        bar.show(meter.progress())
