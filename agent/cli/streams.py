"""The process's standard streams: closed, full or cut off, they cause no traceback."""

import io
import logging
import os
import sys
from typing import Any, Final, TextIO

from agent.errors import OutputFailed

# syslog's numbers for logging's levels
_PRIORITIES: Final = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (logging.NOTSET, 7),
)
_MODES: Final = (os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)


class _Output(io.FileIO):
    """Standard output, whose errors are the agent's own; BrokenPipeError if its reader left."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputFailed(f"standard output can't be written: {error.strerror}") from error


class _Complaints(io.FileIO):
    """Standard error; what it doesn't take is lost, and the exit status alone tells."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(memoryview(data).cast("B"))


def set_up() -> None:
    """Replace this process's standard streams.

    No file or socket of the agent gets the number of one that is closed. What is written to a
    closed standard output fails, as with any program: its number is opened for reading alone.
    """
    for number, mode in enumerate(_MODES):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for the whole process
    sys.stdout = _text(_Output(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Complaints(2, "w", closefd=False), sys.stderr, line_by_line=True)


def priority(level: int, number: int = 2) -> str:
    """Return what journald takes for the priority of a line on that stream, if it reads it.

    `level` is one of logging's. See systemd.exec(5), $JOURNAL_STREAM, and sd-daemon(3).
    """
    place = os.environ.get("JOURNAL_STREAM", "")
    try:
        found = os.fstat(number)
    except OSError:
        return ""
    if place != f"{found.st_dev}:{found.st_ino}":
        return ""
    return next(f"<{code}>" for least, code in _PRIORITIES if level >= least)


def flushed() -> None:
    """Write what standard output holds back; OutputFailed or BrokenPipeError.

    After that nothing more is written there, so that the interpreter's end doesn't fail again.
    """
    try:
        sys.stdout.flush()
    except (OutputFailed, BrokenPipeError):
        discard()
        raise


def discard() -> None:
    """Have all that is still to be written to standard output vanish."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _text(raw: io.FileIO, old: TextIO | None, *, line_by_line: bool = False) -> io.TextIOWrapper:
    # a terminal that can't show a character gets its number, not a traceback
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=old.encoding if old else None,
        errors="backslashreplace",
        line_buffering=line_by_line or raw.isatty(),
    )
