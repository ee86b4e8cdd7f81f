"""The HTTP server of the metrics, on a loopback port.

It serves one connection after the other on one thread, and each gets three seconds. Others wait in
the kernel's queue, which holds a few. So a slow client delays a scrape, and takes nothing else.

A port that can't be used is tried again. It must not keep the agent from making backups.
"""

import errno
import io
import logging
import socket
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer
from threading import Event
from typing import Any, Final

from agent.errors import JournalError
from agent.metrics.threads import begin

log = logging.getLogger(__name__)

PATH: Final = "/metrics"
_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS: Final = 3.0
_MOST_BYTES: Final = 16 * 1024
_WAITING: Final = 8
_LOOP_SECONDS: Final = 0.5
# Seconds after a connection that can't be accepted, because too many files are open.
_PAUSE: Final = 0.5
# Seconds between two attempts to listen.
_RETRY_SECONDS: Final = 30.0


class MetricsServer:
    """A server on its own thread. `text` returns the metrics, and may raise JournalError."""

    def __init__(self, host: str, port: int, text: Callable[[], bytes]) -> None:
        """Listen on the port. If it can't be used, log that, and try again every 30 s."""
        self._place = host, port
        self._text = text
        self._ending = Event()
        self._server = self._listening()
        self._thread = begin("metrics", self._serve)

    def close(self) -> None:
        """End the thread and free the port."""
        self._ending.set()
        self._thread.join()
        if self._server is not None:
            self._server.server_close()

    def _serve(self) -> None:
        while self._server is None and not self._ending.wait(_RETRY_SECONDS):
            self._server = self._listening(again=True)
        while self._server is not None and not self._ending.is_set():
            self._server.handle_request()

    def _listening(self, *, again: bool = False) -> "_Server | None":
        """Return a server that listens, or None if the port can't be used.

        Log the failure of the first attempt, and the success of a later one.
        """
        host, port = self._place
        try:
            server = _Server(host, port, self._text)
        except OSError as error:
            if not again:
                log.error("%s", _refusal(host, port, error))
            return None
        if again:
            log.info("the metrics are on port %d of %s now", port, host)
        return server


class _Server(TCPServer):
    allow_reuse_address = True
    timeout = _LOOP_SECONDS
    request_queue_size = _WAITING

    def __init__(self, host: str, port: int, text: Callable[[], bytes]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.text = text
        super().__init__((host, port), _Request)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            time.sleep(_PAUSE)
            raise

    def handle_error(self, request: object, client_address: object) -> None:
        log.info("a request for metrics failed", exc_info=True)


class _Request(BaseHTTPRequestHandler):
    """Answers one request. HTTP/1.0, so the connection ends with the answer."""

    server: _Server
    server_version = "backup-agent"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(_Incoming(self.connection))

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        self.connection.settimeout(_SECONDS)
        if self.path.partition("?")[0] != PATH:
            self.send_error(HTTPStatus.NOT_FOUND, explain=f"The metrics are at {PATH}")
            return
        try:
            text = self.server.text()
        except JournalError as error:
            log.warning("the metrics can't be read: %s", error)
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, explain="The log says why")
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", _CONTENT_TYPE)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if with_body:
            self.wfile.write(text)

    def log_message(self, format: str, *values: object) -> None:
        log.debug("metrics: " + format, *values)


class _Incoming(io.RawIOBase):
    """The bytes of one request, which has to arrive in `_SECONDS` and `_MOST_BYTES`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline = time.monotonic() + _SECONDS
        self._left = _MOST_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what is there, or wait for it.

        Raises:
            TimeoutError: the request is too slow or too long. The base class closes the connection.
        """
        seconds = self._deadline - time.monotonic()
        if seconds <= 0 or self._left <= 0:
            raise TimeoutError("the request is too slow or too long")
        self._connection.settimeout(seconds)
        count = self._connection.recv_into(buffer)
        self._left -= count
        return count


def _refusal(host: str, port: int, error: OSError) -> str:
    hint = "name a free port on 127.0.0.1 or [::1]"
    if error.errno in (errno.EPERM, errno.EACCES):
        hint = (
            f"allow it in the unit: `systemctl edit backup-agent`, [Service], "
            f"SocketBindAllow=tcp:{port}. Ports below 1024 are for root"
        )
    if error.errno == errno.EADDRINUSE:
        hint = f"`ss -ltnp sport = :{port}` shows the program that has it. Or name another port"
    return (
        f"[metrics] listen: can't listen on port {port} of {host}: {error.strerror}. The agent "
        f"works without it, and tries again every {_RETRY_SECONDS:.0f} s. What to do: {hint}"
    )
