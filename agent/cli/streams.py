"""The standard streams of the process.

A stream that is closed, full or broken causes no traceback.
"""

import io
import logging
import os
import sys
from typing import Any, Final, TextIO

from agent.errors import OutputFailed
from agent.machine.journald import is_journal

# the priorities of syslog for the levels of logging
_PRIORITIES: Final = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (logging.NOTSET, 7),
)
_MODES: Final = (os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)


class _Output(io.FileIO):
    """A standard output that raises OutputFailed if a write fails.

    It raises BrokenPipeError instead if its reader has closed the pipe.
    """

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputFailed(f"standard output can't be written: {error.strerror}") from error


class _ErrorOutput(io.FileIO):
    """A standard error that drops text that can't be written.

    Then only the exit status tells that the command failed.
    """

    def write(self, data: Any, /) -> int:
        try:
            written = super().write(data)
        except OSError:
            written = None
        # None also stands for a full pipe that doesn't block. Another program that has the same
        # pipe or terminal may have set that.
        return len(memoryview(data).cast("B")) if written is None else written


def set_up() -> None:
    """Replace the standard streams of this process.

    If a stream is closed, its descriptor number is opened on /dev/null. So no file or socket of
    the agent gets that number. Writing to a closed standard output fails, as in any program,
    because its number is opened for reading only.
    """
    for number, mode in enumerate(_MODES):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for the whole process
    sys.stdout = _text(_Output(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_ErrorOutput(2, "w", closefd=False), sys.stderr, line_by_line=True)


def priority(level: int, number: int = 2) -> str:
    """Return the prefix that tells journald the priority of a line, or "" without journald.

    `level` is a level of logging, `number` the descriptor number of the stream. See sd-daemon(3).
    """
    return f"<{syslog_level(level)}>" if is_journal(number) else ""


def syslog_level(level: int) -> int:
    """Return the priority of syslog for a level of logging."""
    return next(code for least, code in _PRIORITIES if level >= least)


def wants_notes() -> bool:
    """Return False with `--quiet`, when a command shows only errors and its result."""
    return logging.getLogger("agent").isEnabledFor(logging.WARNING)


def note(*lines: str) -> None:
    """Print a note on standard error, unless `--quiet` is given."""
    if wants_notes():
        print("\n".join(lines), file=sys.stderr)


def flushed() -> None:
    """Flush the buffer of standard output.

    If that fails, nothing more is written there, so that the interpreter's exit does not fail
    again.

    Raises:
        OutputFailed: standard output can't be written.
        BrokenPipeError: its reader has closed the pipe.
    """
    try:
        sys.stdout.flush()
    except (OutputFailed, BrokenPipeError):
        discard()
        raise


def discard() -> None:
    """Send all further output, and the buffer of standard output, to /dev/null."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _text(raw: io.FileIO, old: TextIO | None, *, line_by_line: bool = False) -> io.TextIOWrapper:
    # A character that the encoding lacks is written as its number, and causes no traceback.
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=old.encoding if old else None,
        errors="backslashreplace",
        line_buffering=line_by_line or raw.isatty(),
    )
