"""The last lines of a child process's standard error, for messages and causes of failures."""

import re
import threading
import time
from collections import deque

TAIL_LINES = 40
KEPT_LINES = 20
LINE_BYTES = 1000
# An identifier has at most 64 characters, and each may be a newline.
_NAME_LINES = 64
# The start of a line, as mariadb-backup writes it, as xtrabackup 2.4 and early 8.0 write it, and as
# the servers write it in their own logs. The library mysys writes a bell character (\a) before some
# of its messages.
_HEAD = re.compile(
    r"^\a*(\[\d\d\] )?(FATAL ERROR: )?(\d{6} [\d:]{8} )?"
    r"(\d{4}-\d\d-\d\d[ T] ?[\d:.]+(Z|[+-]\d\d:\d\d)? (\d+ )?)?"
    r"(\[\w+\] \[MY-\d+\] \[\w+\] )?"
)
# Lines that report no problem, and hold names that any user of the database may have chosen.
_ROUTINE = re.compile(
    r" *(Copied file|Skip table|Copying|Streaming|Skipping|Compressing|Encrypting|"
    r"(Start|Stop) copying|aria table file|Done: |\.\.\.done)"
)
# mariadb-backup writes a name into these lines unescaped, with the newlines that the name holds.
# _NAME_LINE_START matches the start of such a line, and _NAME_LINE_END matches its end.
_NAME_LINE_START = re.compile(r"Copied file|Skip table")
_NAME_LINE_END = re.compile(r"at it is in exclude list$|, \d+ bytes$")
# A match goes from the first to the last backtick, because the programs don't escape backticks in a
# name. Paths match, too.
_NAMES = re.compile(r"`.*`|\S*/\S*")
# SHOW GRANTS, which the engine prints when it lacks a privilege, holds the password's hash.
_SECRET = re.compile(r"\bIDENTIFIED\b.*")
# XtraBackup logs the whole text of another client's statement. XtraBackup 2.4 ends neither of these
# two messages with a newline.
_STATEMENT = re.compile(
    r"(Waiting for query \d+ \(duration \d+ sec\)): .*?(Unable to obtain lock\..*)?$", re.DOTALL
)
# Up to fifty such lines come each second, and they hold no information.
_NOISE = re.compile(
    r"\.*(\[\d\d\] )?[-\dTZ:.+ ]*(\[Note\] \[MY-\d+\] \[Xtrabackup\] )?"
    r">> log scanned up to \(\d+\)|\.+"
)


class LogTail:
    """The last lines of a child's standard error, of bounded size for any output of the child.

    It holds the last 40 lines. It also holds the first 20 lines that match `keep`, so that many
    later lines can't displace a cause. Lines that only count the redo log are left out, and so is
    the text of other clients' statements. A line is cut at 1000 bytes. `heard` is the time
    (time.monotonic) at which the last bytes came. `keep` is searched in messages (`message_of`),
    so the name of a table can't match it. `lost` is the first message that `losses` matches at
    its start, and None if there is none. Any thread may read from it.
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
        """Add the next bytes of standard error."""
        self.heard = time.monotonic()
        with self._lock:
            pieces = (self._partial + block).split(b"\n")
            self._partial = pieces.pop()[:LINE_BYTES]
            for piece in pieces:
                self._add(piece)

    def end(self) -> None:
        """Add the bytes after the last newline as a line."""
        self.feed(b"\n")

    def lines(self) -> list[str]:
        """Return the last 40 lines."""
        with self._lock:
            return list(self._lines)

    def kept(self) -> list[str]:
        """Return the first 20 lines that match `keep`."""
        with self._lock:
            return list(self._kept)

    def messages(self) -> list[str]:
        """Return the messages of the kept lines and then of the last lines, without names."""
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
        message = "" if self._continues_a_name(line) else message_of(line)
        self._messages.append(message)
        if self._keep and len(self._kept) < KEPT_LINES and self._keep.search(message):
            self._kept.append(line)
            self._kept_messages.append(message)

    def _continues_a_name(self, line: str) -> bool:
        """Return True if `line` continues a routine line that a newline in a name has split."""
        if not self._name_lines:
            if _NAME_LINE_START.match(without_head(line)) and not _NAME_LINE_END.search(line):
                self._name_lines = _NAME_LINES
            return False
        self._name_lines = 0 if _NAME_LINE_END.search(line) else self._name_lines - 1
        return True


def without_head(line: str) -> str:
    """Return `line` without its head, such as the time and the level."""
    return _HEAD.sub("", line)


def message_of(line: str) -> str:
    """Return `line` with its names and paths replaced by `...`, or "" for a routine line."""
    return "" if _ROUTINE.match(without_head(line)) else _NAMES.sub("...", line)
