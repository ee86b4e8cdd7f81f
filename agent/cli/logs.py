"""The set-up of the process's log: its form, its level, and where it goes.

The daemon logs as [log] of agent.toml says. A command on a terminal writes text. `--quiet` and
`--verbose` override the level. Below WARNING only the agent's own loggers log, because the debug
messages of libraries show requests with their headers, and so the tokens in them.
"""

import logging
import sys
import threading
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, TextIO

from agent.cli.log_lines import JsonLines, TextLines, journal_fields
from agent.cli.progress import above_bars
from agent.config.settings import LogSection
from agent.machine import journald

log = logging.getLogger(__name__)

QUIET: Final = "quiet"
VERBOSE: Final = "verbose"
_NOISE: Final = {QUIET: logging.ERROR, VERBOSE: logging.DEBUG}
_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class ErrorLines(logging.StreamHandler[TextIO]):
    """A handler that writes lines to standard error, above the progress bars of a terminal."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(formatter)
        self._shares = sys.stderr.isatty()

    def emit(self, record: logging.LogRecord) -> None:
        with above_bars() if self._shares else nullcontext():
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Write a line about a record that can't be written. Never raise an error."""
        kind = sys.exc_info()[0] or Exception
        where = f"{record.pathname}:{record.lineno}"
        with suppress(OSError, ValueError):  # the stream is broken or closed
            self.stream.write(f"a log line of {where} can't be written: {kind.__name__}\n")


class JournalLines(ErrorLines):
    """A handler that sends records to the systemd journal.

    A record that the journal does not take is written to standard error as text.
    """

    def __init__(self, path: Path | None = None) -> None:
        super().__init__(TextLines())
        self._journal = journald.JournalSocket(path)

    def emit(self, record: logging.LogRecord) -> None:
        if not self._journal.send(journal_fields(record)):
            super().emit(record)


def set_up(wanted: LogSection, *, daemon: bool, noise: str | None) -> str:
    """Set up the log of this process, and return its form. It may be called again.

    `noise` is QUIET, VERBOSE or None. A process that has set up a log of its own keeps that one.
    """
    form = _form(wanted, daemon=daemon)
    root = logging.getLogger()
    if any(not isinstance(one, ErrorLines) for one in root.handlers):
        return form
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(_handler(form))
    level = _LEVELS[wanted.level] if daemon else logging.WARNING
    level = _NOISE.get(noise or "", level)
    logging.getLogger("agent").setLevel(level)
    root.setLevel(max(level, logging.WARNING))
    return form


def _form(wanted: LogSection, *, daemon: bool) -> str:
    if not daemon and sys.stderr.isatty():
        return "text"
    if wanted.format != "auto":
        return wanted.format
    journal = journald.is_journal(2) and journald.JournalSocket().usable()
    return "journal" if journal else "text"


def _handler(form: str) -> logging.Handler:
    if form == "journal":
        return JournalLines()
    return ErrorLines(JsonLines() if form == "json" else TextLines())


def catch_strays() -> None:
    """Log warnings of libraries, and exceptions that end a thread or the process.

    Python would print them to standard error, on lines of no form.
    """
    logging.captureWarnings(True)
    threading.excepthook = _thread_failed
    sys.excepthook = _process_failed


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    if issubclass(failure.exc_type, SystemExit):
        return  # Python ignores it, too
    name = failure.thread.name if failure.thread else "unknown"
    error = failure.exc_value or failure.exc_type()
    log.critical("the thread %s failed", name, exc_info=error)


def _process_failed(
    kind: type[BaseException], error: BaseException, place: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, place)
    else:
        log.critical("the program failed because of a defect", exc_info=error)
