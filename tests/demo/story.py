"""What the demo says: numbered steps, the commands it runs, and what each step proved."""

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class DemoFailed(Exception):
    """Something that the demo claims is not so, or a program failed; the message says what."""


def megabytes(count: float) -> str:
    """Bytes for a reader, in MB of 10^6."""
    return f"{count / 1e6:,.1f} MB"


def rate(count: float, seconds: float) -> str:
    """Bytes and seconds as MB/s."""
    return f"{count / 1e6 / max(seconds, 0.001):,.0f} MB/s"


class Story:
    """Prints to standard output; `total` is the number of steps to come."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._number = 0
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the demo began."""
        return time.monotonic() - self._began

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """One numbered step; says how long it took unless it failed."""
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
        """What a program printed, as it is."""
        self._print(text.rstrip("\n"))

    def _print(self, line: str) -> None:
        print(line, flush=True)
        # a progress bar may be on the same terminal, over standard error
        sys.stderr.flush()
