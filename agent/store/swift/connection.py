"""One connection to a store, which another thread may cut, and answers of a bounded size.

A socket is known here before it connects, by a duplicate of its descriptor: to shut that down
ends whatever another thread does on it, be it connecting, a TLS handshake, sending or reading.
"""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final

import requests
import urllib3
from requests.adapters import HTTPAdapter
from swiftclient import client

from agent.errors import StoreRejected

CONNECT_SECONDS: Final = 10.0  # the longest wait for a connection, however patient the rest is
# A page of 1000 rows with the longest names; parsed, hostile JSON takes 40 times its size.
LONGEST_ANSWER: Final = 4 << 20


class Connection:
    """A connection to the host of `url`; `http` is what swiftclient's functions work with.

    `timeout_seconds` bounds connecting (at most CONNECT_SECONDS), each send of a part and each
    wait for bytes.
    """

    def __init__(self, url: str, *, timeout_seconds: float, ca_file: str | None) -> None:
        self.url = url
        self.timeout_seconds = timeout_seconds
        self._connect_seconds = min(timeout_seconds, CONNECT_SECONDS)
        self._lock = threading.Lock()
        self._request = 0
        self._socket: socket.socket | None = None
        self.is_cut = False
        self.http = _Http(url, cacert=ca_file, timeout=(self._connect_seconds, timeout_seconds))
        session = self.http.request_session
        # the environment may neither replace the CA (REQUESTS_CA_BUNDLE) nor add a proxy
        session.trust_env = False
        # a redirect would carry the token to another host
        session.get_redirect_target = lambda _answer: None
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Adapter(self))

    @contextmanager
    def busy(self) -> Iterator[Callable[[], None]]:
        """One request: gives what cuts it, from any thread, and does nothing after the block."""
        with self._lock:
            self._request += 1
            request = self._request

        def cut() -> None:
            with self._lock:
                if self._request == request:
                    self._shut_down()

        try:
            yield cut
        finally:
            with self._lock:
                self._request += 1

    def dial(self, host: str, port: int) -> socket.socket:
        """A socket that is connected to the first address that answers; OSError."""
        failure = OSError(f"{host} has no address")
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, address in found:
            dialled = socket.socket(family, kind, protocol)
            try:
                dialled.settimeout(self._connect_seconds)
                dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._know(dialled)
                dialled.connect(address)
            except OSError as error:
                dialled.close()
                failure = error
            else:
                return dialled
        raise failure

    def close(self) -> None:
        """Close the connection."""
        self.http.close()
        with self._lock:
            self._forget()

    def _know(self, dialled: socket.socket) -> None:
        with self._lock:
            if self.is_cut:
                raise ConnectionAbortedError("the request was cut")
            self._forget()
            self._socket = dialled.dup()

    def _forget(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _shut_down(self) -> None:
        self.is_cut = True
        if self._socket is not None:
            with suppress(OSError):  # not connected yet, or no more
                self._socket.shutdown(socket.SHUT_RDWR)


class _Dialling(urllib3.connection.HTTPConnection):
    """A connection whose socket its line dials."""

    def __init__(self, line: Connection, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._line = line

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def _new_conn(self) -> socket.socket:
        # urllib3 takes some OSErrors for those of a request whose answer may still be read
        try:
            return self._line.dial(self._dns_host, self.port)
        except UnicodeError as error:
            raise urllib3.exceptions.LocationParseError(self.host) from error
        except TimeoutError as error:
            raise urllib3.exceptions.ConnectTimeoutError(self, "timed out") from error
        except OSError as error:
            raise urllib3.exceptions.NewConnectionError(self, f"not connected: {error}") from error

    def connect(self) -> None:
        super().connect()
        # else the first request is sent within the time that is for connecting
        self.sock.settimeout(self._line.timeout_seconds)


class _DiallingTls(_Dialling, urllib3.connection.HTTPSConnection):
    """The same with TLS."""


class _Adapter(HTTPAdapter):
    """Dials by its line, and sends a body of known length with Content-Length alone.

    For an iterator requests adds `Transfer-Encoding: chunked` even beside a Content-Length,
    and then sends it unchunked: Swift waits for chunks, and proxies refuse the request.
    """

    def __init__(self, line: Connection) -> None:
        super().__init__()
        self._line = line

    def close(self) -> None:
        # urllib3 by itself closes them when nothing refers to their pool any more, and the
        # traceback of a refusal may do so until the garbage collector runs
        pools = self.poolmanager.pools
        for key in pools.keys():  # noqa: SIM118 - it can't be iterated
            if pool := pools.get(key):
                pool.close()
        super().close()

    def add_headers(self, request: requests.PreparedRequest, **kwargs: Any) -> None:
        if "Content-Length" in request.headers:
            request.headers.pop("Transfer-Encoding", None)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool = super().get_connection_with_tls_context(*args, **kwargs)
        kind = _DiallingTls if pool.scheme == "https" else _Dialling
        pool.ConnectionCls = partial(kind, self._line)  # type: ignore[assignment]
        return pool


class _Http(client.HTTPConnection):  # type: ignore[misc,unused-ignore]
    """swiftclient's connection, whose answers are small, and not compressed.

    swiftclient reads listings, /info and the texts of refusals whole, and inflates what a
    store has compressed, for which it asks; the bytes of objects are read piece by piece.
    """

    resp: Any

    def request(
        self, method: str, full_path: str, data: Any = None, headers: Any = None, files: Any = None
    ) -> Any:
        kept = {name: value for name, value in (headers or {}).items() if name != "Accept-Encoding"}
        return super().request(method, full_path, data, kept, files)

    def getresponse(self) -> Any:
        answer = super().getresponse()
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            raise StoreRejected("the store's answer is compressed, which it was not asked for")
        answer.read = partial(_read, answer.read)
        return answer

    def close(self) -> None:
        # swiftclient leaves a refusal open, which is false as a boolean
        if self.resp is not None:
            self.resp.close()
        super().close()
        self.resp = None  # which refers to this connection, too


def _read(read: Callable[[int], bytes], count: int | None = None) -> bytes:
    """At most `count` bytes of a body, or all; StoreRejected where that is too much."""
    if count is not None:
        return read(count)
    body = bytearray()
    while piece := read(min(1 << 16, LONGEST_ANSWER + 1 - len(body))):
        body += piece
        if len(body) > LONGEST_ANSWER:
            raise StoreRejected(f"the store's answer has more than {LONGEST_ANSWER} bytes")
    return bytes(body)
