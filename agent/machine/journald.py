"""Messages to the systemd journal, with fields.

The protocol is systemd's "Native Journal Protocol" (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/). A
message is one datagram of fields.
"""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

SOCKET: Final = Path("/run/systemd/journal/socket")
# The longest wait for a journal that does not read. It is short, because the thread has other work.
_SEND_SECONDS: Final = 1.0
# Seconds after such a wait in which no message waits.
_HASTE_SECONDS: Final = 30.0


def is_journal(number: int, environment: Mapping[str, str] = os.environ) -> bool:
    """Return True if the descriptor `number` is a stream to the journal.

    See systemd.exec(5), $JOURNAL_STREAM.
    """
    try:
        found = os.fstat(number)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM", "") == f"{found.st_dev}:{found.st_ino}"


def encode(fields: Mapping[str, str]) -> bytes:
    """Return the datagram for `fields`. The names must be legal names of journal fields.

    A value with line breaks is preceded by its length, so it can't begin another field.
    """
    parts = []
    for name, value in fields.items():
        data = value.encode("utf-8", "backslashreplace")
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n")
        else:
            parts.append(name.encode() + b"=" + data + b"\n")
    return b"".join(parts)


class JournalSocket:
    """A sender of messages to the journal's socket. It raises nothing."""

    def __init__(self, path: Path | None = None) -> None:
        """None as `path` means the journal of this machine."""
        self._path = str(path or SOCKET)
        self._hasty_until = 0.0

    def usable(self) -> bool:
        """Return True if a journal listens, and this process may send to it."""
        try:
            with _connected(self._path, _SEND_SECONDS):
                return True
        except OSError:
            return False

    def send(self, fields: Mapping[str, str]) -> bool:
        """Send one message. Return False if it was not sent: no journal took it in time."""
        hasty = time.monotonic() < self._hasty_until
        try:
            # A new socket each time also finds a journal that was started again.
            with _connected(self._path, 0.0 if hasty else _SEND_SECONDS) as line:
                line.sendall(encode(fields))
        except TimeoutError:
            self._hasty_until = time.monotonic() + _HASTE_SECONDS
            return False
        except OSError:
            return False
        return True


def _connected(path: str, seconds: float) -> socket.socket:
    """Return a socket that is connected to `path`, and waits at most `seconds`.

    Raises:
        OSError: nothing listens there.
    """
    line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        line.settimeout(seconds)
        line.connect(path)
    except OSError:
        line.close()
        raise
    return line
