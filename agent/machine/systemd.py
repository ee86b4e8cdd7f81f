"""Notifications to the service manager: ready, stopping, a status line, and heartbeats.

The protocol is that of sd_notify(3). A notification is a datagram of NAME=VALUE lines. It goes to
the UNIX socket that $NOTIFY_SOCKET names by its path or, after an `@`, by its abstract name. If the
variable is not set, no service manager listens, and nothing is sent.
"""

import logging
import os
import socket
from collections.abc import Mapping
from typing import Final

log = logging.getLogger(__name__)

# The longest wait for a full socket. It is short, because the calling thread has other work.
_SEND_SECONDS: Final = 1.0


class Notifier:
    """A sender of notifications to the service manager.

    They feed `systemctl status`, and the timeouts and the watchdog of the unit. `watchdog_seconds`
    is how long the manager waits for a heartbeat, and None means that it expects none. Each method
    returns True if the message was sent, and False if not. It raises nothing.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        name = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self._complained = False
        self.watchdog_seconds = _watchdog_seconds(environment)

    def say_ready(self) -> bool:
        return self._send("READY=1")

    def say_stopping(self) -> bool:
        return self._send("STOPPING=1")

    def say_alive(self) -> bool:
        """Send a heartbeat, which starts the watchdog's time again."""
        return self._send("WATCHDOG=1")

    def extend(self, seconds: float) -> bool:
        """Extend the time limit of the present start or stop to `seconds` from this moment."""
        return self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def say_status(self, text: str) -> bool:
        """Set the line that `systemctl status` shows."""
        return self._send("STATUS=" + " ".join(text.splitlines()))

    def _send(self, message: str) -> bool:
        if not self._address:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
                line.settimeout(_SEND_SECONDS)
                line.connect(self._address)
                line.sendall(message.encode())
        except OSError as error:
            if not self._complained:
                log.warning("notifications can't be sent to the service manager: %s", error)
            self._complained = True
            return False
        return True


def _watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """Return the watchdog's time in seconds, as sd_watchdog_enabled(3) does.

    Return None if there is no watchdog, or if WATCHDOG_PID names another process.
    """
    text = environment.get("WATCHDOG_USEC", "")
    meant_for = environment.get("WATCHDOG_PID", str(os.getpid()))
    if not text.isdecimal() or int(text) == 0 or meant_for != str(os.getpid()):
        return None
    return int(text) / 1_000_000
