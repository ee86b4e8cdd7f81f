"""What the service manager is told: ready, ending, a status line, and that all is well.

The protocol is sd_notify(3)'s: a datagram of NAME=VALUE lines to the UNIX socket that
$NOTIFY_SOCKET names, by its path or, after an `@`, by its abstract name. Where the variable is
not set nobody listens, and nothing is sent.
"""

import logging
import os
import socket
from collections.abc import Mapping
from typing import Final

log = logging.getLogger(__name__)

# How long a full socket is waited for: whoever calls has other things to look at.
_SEND_SECONDS: Final = 1.0


class Notifier:
    """Sends what `systemctl status` shows and what the unit's timeouts and watchdog go by.

    `watchdog_seconds` is how long the manager waits for a sign of life, None where it doesn't.
    The methods return whether the manager has the message; nothing is raised where it hasn't.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        name = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self._complained = False
        self.watchdog_seconds = _watchdog_seconds(environment)

    def ready(self) -> bool:
        return self._send("READY=1")

    def stopping(self) -> bool:
        return self._send("STOPPING=1")

    def alive(self) -> bool:
        """Put the watchdog off by its whole time."""
        return self._send("WATCHDOG=1")

    def extend(self, seconds: float) -> bool:
        """Ask for `seconds` from now before a start or an end is given up."""
        return self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def status(self, text: str) -> bool:
        """The line that `systemctl status` shows."""
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
                log.warning("the service manager can't be told anything: %s", error)
            self._complained = True
            return False
        return True


def _watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """As sd_watchdog_enabled(3) has it: for the process that WATCHDOG_PID names, if it does."""
    text = environment.get("WATCHDOG_USEC", "")
    meant_for = environment.get("WATCHDOG_PID", str(os.getpid()))
    if not text.isdecimal() or int(text) == 0 or meant_for != str(os.getpid()):
        return None
    return int(text) / 1_000_000
