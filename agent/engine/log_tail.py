"""The end of what a child process says on standard error, for messages and causes."""

import re
import threading
import time
from collections import deque

TAIL_LINES = 40
KEPT_LINES = 20
LINE_BYTES = 1000
# An identifier has at most 64 characters, and each may be a line's end.
_NAME_LINES = 64
# mariadb-backup's, that of xtrabackup 2.4 and early 8.0, and that of the servers' own logs; mysys
# rings the bell before some of its messages
_HEAD = re.compile(
    r"^\a*(\[\d\d\] )?(FATAL ERROR: )?(\d{6} [\d:]{8} )?"
    r"(\d{4}-\d\d-\d\d[ T] ?[\d:.]+(Z|[+-]\d\d:\d\d)? (\d+ )?)?"
    r"(\[\w+\] \[MY-\d+\] \[\w+\] )?"
)
# Lines that tell of no trouble, and hold names that anybody may have chosen.
_ROUTINE = re.compile(
    r" *(Copied file|Skip table|Copying|Streaming|Skipping|Compressing|Encrypting|"
    r"(Start|Stop) copying|aria table file|Done: |\.\.\.done)"
)
# How those end in which mariadb-backup writes a name as it is, with the line ends in it.
_NAMING = re.compile(r"Copied file|Skip table")
_NAMED = re.compile(r"at it is in exclude list$|, \d+ bytes$")
# From the first to the last backtick: nobody escapes those in a name. And paths.
_NAMES = re.compile(r"`.*`|\S*/\S*")
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
    last bytes came. `keep` is looked for in messages (`message_of`), so no table's name matches.
    `lost` is the first message that `losses` matches at its start. Safe to read from any thread.
    """

    def __init__(
        self, keep: re.Pattern[str] | None = None, losses: re.Pattern[str] | None = None
    ) -> None:
        self._keep = keep
        self._losses = losses
        self.lost: str | None = None
        self._name_lines = 0
        self._messages: deque[str] = deque(maxlen=TAIL_LINES)
        self._kept_messages: list[str] = []
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

    def messages(self) -> list[str]:
        """Return what the kept and then the last lines tell, without names."""
        with self._lock:
            return [*self._kept_messages, *self._messages]

    def _add(self, piece: bytes) -> None:
        line = piece[:LINE_BYTES].decode(errors="replace").rstrip()
        if not line or _NOISE.fullmatch(line):
            return
        line = _STATEMENT.sub(r"\1 ... \2", _SECRET.sub("IDENTIFIED ...", line)).rstrip()
        self._lines.append(line)
        if self.lost is None and self._losses and self._losses.match(without_head(line)):
            self.lost = without_head(line)
        message = "" if self._is_of_a_name(line) else message_of(line)
        self._messages.append(message)
        if self._keep and len(self._kept) < KEPT_LINES and self._keep.search(message):
            self._kept.append(line)
            self._kept_messages.append(message)

    def _is_of_a_name(self, line: str) -> bool:
        """Tell whether a line goes on with, or ends, a routine line that a name's line end cut."""
        if not self._name_lines:
            if _NAMING.match(without_head(line)) and not _NAMED.search(line):
                self._name_lines = _NAME_LINES
            return False
        self._name_lines = 0 if _NAMED.search(line) else self._name_lines - 1
        return True


def without_head(line: str) -> str:
    """Return a line without the time and the other things that each begins with."""
    return _HEAD.sub("", line)


def message_of(line: str) -> str:
    """Return a line without the names in it; nothing of a line that is routine."""
    return "" if _ROUTINE.match(without_head(line)) else _NAMES.sub("...", line)
