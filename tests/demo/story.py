"""The demo's output: numbered steps, the commands it runs, and the proofs of each step."""

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class DemoFailed(Exception):
    """A claim of the demo is false, or a program failed. The message holds the reason."""


def megabytes(count: float) -> str:
    """Return a number of bytes as text in MB of 10^6 bytes."""
    return f"{count / 1e6:,.1f} MB"


def rate(count: float, seconds: float) -> str:
    """Return bytes and seconds as text in MB/s."""
    return f"{count / 1e6 / max(seconds, 0.001):,.0f} MB/s"


class Story:
    """A writer to standard output. `total` is the number of steps."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._number = 0
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Return the seconds since the demo began."""
        return time.monotonic() - self._began

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Print the title of a numbered step, and its time unless it fails."""
        self._number += 1
        began = time.monotonic()
        self._print(f"\n[{self._number}/{self._total}] {title}")
        yield
        self._print(f"      {time.monotonic() - began:.1f} s")

    def note(self, text: str) -> None:
        self._print(f"      {text}")

    def proved(self, text: str) -> None:
        self._print(f"   OK {text}")

    def command(self, argv: Sequence[str]) -> None:
        self._print(f"    $ {shlex.join(argv)}")

    def text(self, text: str) -> None:
        """Print the output of a program unchanged."""
        self._print(text.rstrip("\n"))

    def _print(self, line: str) -> None:
        print(line, flush=True)
        # a progress bar may write to the same terminal through standard error
        sys.stderr.flush()
