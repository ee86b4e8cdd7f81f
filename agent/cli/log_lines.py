"""The three forms of a log line: text, JSON, and the fields of the systemd journal.

Each event is one line, except that the traceback of a defect follows its line of text, indented.
All text is `printable`. So text from a name or from another program can neither begin a line nor
steer a terminal.
"""

import json
import logging
from datetime import UTC, datetime
from typing import Final, NamedTuple

from agent.cli import streams
from agent.model import printable
from agent.threads import Subject, subject

# Limits for the characters that a text takes as JSON. journald cuts a line at 48 KiB.
_MESSAGE: Final = 12 << 10
_TRACEBACK: Final = 30 << 10
_PROGRAM: Final = "backup-agent"


class Event(NamedTuple):
    """The printable parts of a log record. `traceback` is "" or has several lines."""

    message: str
    traceback: str
    about: Subject


def event(record: logging.LogRecord) -> Event:
    """Return a record's event. Call it on the thread that logged the record."""
    message = _message(record)
    kept, cut = _fitting(printable(message[:_MESSAGE]), _MESSAGE), ""
    if missing := len(message) - len(kept):
        cut = f"... ({missing} characters cut)"
    return Event(kept + cut, _traceback(record), subject())


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        # the values don't fit the text, or have none
        return f"{record.msg} (without its values: {error})"


def _traceback(record: logging.LogRecord) -> str:
    """Return the last lines of the record's traceback, of which the last is the error."""
    if not record.exc_info:
        return ""
    lines = logging.Formatter().formatException(record.exc_info).splitlines()
    kept, room = list[str](), _TRACEBACK
    while lines and room > 0:
        line = _fitting(printable(lines.pop()[:room]), room)
        room -= _size(line) + 2  # JSON writes the line break as two characters
        kept.append(line)
    if lines:
        kept.append(f"... ({len(lines)} lines cut)")
    return "\n".join(reversed(kept))


def _fitting(text: str, room: int) -> str:
    """Return the beginning of `text` that takes at most `room` characters as JSON."""
    while (size := _size(text)) > room:
        text = text[: len(text) * room // size]
    return text


def _size(text: str) -> int:
    return len(json.dumps(text)) - 2


class TextLines(logging.Formatter):
    """A formatter for people: time, level, logger, message, and the ids in brackets.

    A line that ends with a bracket has the ids of the agent, or [] if it has none. So a message
    can't pretend to be about a task.
    """

    def format(self, record: logging.LogRecord) -> str:
        mark = streams.priority(record.levelno)
        found = event(record)
        said = found.message + _suffix(found)
        head = f"{self.formatTime(record)} {record.levelname} {printable(record.name)}: {said}"
        return "\n".join([mark + head, *(f"{mark}  {at}" for at in found.traceback.splitlines())])


def _suffix(found: Event) -> str:
    names = zip(("task", "backup"), found.about, strict=True)
    ids = " ".join(f"{name}={printable(one)}" for name, one in names if one)
    return f" [{ids}]" if ids or found.message.endswith("]") else ""


class JsonLines(logging.Formatter):
    """A formatter for programs: one JSON object a line, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        found = event(record)
        moment = datetime.fromtimestamp(record.created, UTC)
        fields = {
            "time": moment.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": printable(record.name),
            "message": found.message,
            "task_id": printable(found.about.task_id) or None,
            "backup_id": printable(found.about.backup_id) or None,
        }
        if found.traceback:
            fields["exception"] = found.traceback
        return streams.priority(record.levelno) + json.dumps(fields)


def journal_fields(record: logging.LogRecord) -> dict[str, str]:
    """Return the fields of a record for the systemd journal.

    The names are those of systemd.journal-fields(7), and of its Python binding. journalctl shows
    only the message, so the message of a defect ends with its error.
    """
    found = event(record)
    error = found.traceback.rpartition("\n")[2]
    fields = {
        "MESSAGE": f"{found.message}: {error}" if error else found.message,
        "PRIORITY": str(streams.syslog_level(record.levelno)),
        "SYSLOG_IDENTIFIER": _PROGRAM,
        "LOGGER": printable(record.name),
        "CODE_FILE": printable(record.pathname),
        "CODE_LINE": str(record.lineno),
        "CODE_FUNC": printable(record.funcName or ""),
        "BACKUP_AGENT_TASK_ID": printable(found.about.task_id),
        "BACKUP_AGENT_BACKUP_ID": printable(found.about.backup_id),
        "EXCEPTION_TEXT": found.traceback,
    }
    return {name: value for name, value in fields.items() if value}
