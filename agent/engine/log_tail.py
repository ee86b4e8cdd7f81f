"""The end of what a child process says on standard error, for messages and causes."""

import re
import threading
import time
from collections import deque

TAIL_LINES = 40
KEPT_LINES = 20
LINE_BYTES = 1000
# SHOW GRANTS, which the engine prints when it lacks a privilege, holds the password's hash.
_SECRET = re.compile(r"\bIDENTIFIED\b.*")


class LogTail:
    """The end of a child's standard error, bounded whatever the child writes.

    It holds the last 40 lines and, so that a flood can't push a cause out, the first 20
    that match `keep`. A line is cut at 1000 bytes. `heard` is when (time.monotonic) the last
    bytes came. Safe to read from any thread.
    """

    def __init__(self, keep: re.Pattern[str] | None = None) -> None:
        self._keep = keep
        self._lines: deque[str] = deque(maxlen=TAIL_LINES)
        self._kept: list[str] = []
        self._partial = b""
        self.heard = time.monotonic()
        self._lock = threading.Lock()

    def feed(self, block: bytes) -> None:
        """Take the next bytes of standard error."""
        self.heard = time.monotonic()
        with self._lock:
            pieces = (self._partial + block).split(b"\n")
            self._partial = pieces.pop()[:LINE_BYTES]
            for piece in pieces:
                self._add(piece)

    def end(self) -> None:
        """Take what stands behind the last newline as a line."""
        self.feed(b"\n")

    def lines(self) -> list[str]:
        with self._lock:
            return list(self._lines)

    def kept(self) -> list[str]:
        with self._lock:
            return list(self._kept)

    def _add(self, piece: bytes) -> None:
        line = _SECRET.sub("IDENTIFIED ...", piece[:LINE_BYTES].decode(errors="replace").rstrip())
        if not line:
            return
        self._lines.append(line)
        if self._keep and len(self._kept) < KEPT_LINES and self._keep.search(line):
            self._kept.append(line)
