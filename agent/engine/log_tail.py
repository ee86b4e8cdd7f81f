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
# The whole text of somebody's statement; XtraBackup 2.4 ends neither with a newline of its own.
_STATEMENT = re.compile(
    r"(Waiting for query \d+ \(duration \d+ sec\)): .*?(Unable to obtain lock\..*)?$", re.DOTALL
)
# Fifty a second, and nothing in them.
_NOISE = re.compile(
    r"\.*(\[\d\d\] )?[-\dTZ:.+ ]*(\[Note\] \[MY-\d+\] \[Xtrabackup\] )?"
    r">> log scanned up to \(\d+\)|\.+"
)


class LogTail:
    """The end of a child's standard error, bounded whatever the child writes.

    It holds the last 40 lines and, so that a flood can't push a cause out, the first 20
    that match `keep`. Lines that only count the redo log are left out, and so is the text of
    other people's statements. A line is cut at 1000 bytes. `heard` is when (time.monotonic) the
    last bytes came. Safe to read from any thread.
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
        line = piece[:LINE_BYTES].decode(errors="replace").rstrip()
        if not line or _NOISE.fullmatch(line):
            return
        line = _STATEMENT.sub(r"\1 ... \2", _SECRET.sub("IDENTIFIED ...", line)).rstrip()
        self._lines.append(line)
        if self._keep and len(self._kept) < KEPT_LINES and self._keep.search(line):
            self._kept.append(line)
