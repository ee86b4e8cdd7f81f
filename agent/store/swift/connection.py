"""A connection to a store, which another thread can shut down, and answers of a bounded size.

This module keeps a duplicate of each socket's descriptor from before the socket connects. A
shutdown of the duplicate ends every action of another thread on the socket, be it connecting, a TLS
handshake, sending or reading.
"""

import io
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import requests
import urllib3
from requests.adapters import HTTPAdapter
from swiftclient import client

from agent.errors import ConfigInvalid, StoreRejected, StoreUntrusted
from agent.machine.tls import client_context, system_bundle

log = logging.getLogger(__name__)

# The longest wait for a connection in seconds. The other timeouts may be longer.
CONNECT_SECONDS: Final = 10.0
# In bytes: enough for a page of 1000 rows with the longest names. Hostile JSON takes 40 times its
# size when it is parsed.
LONGEST_ANSWER: Final = 4 << 20


class Connection:
    """A connection to the host of `url`.

    swiftclient's functions use its `http`. `timeout_seconds` limits connecting (to at most
    CONNECT_SECONDS), each send of a part and each wait for bytes. `ca_file` replaces the
    authorities of the system.
    """

    def __init__(self, url: str, *, timeout_seconds: float, ca_file: str | None) -> None:
        self.url = url
        self.timeout_seconds = timeout_seconds
        self._connect_seconds = min(timeout_seconds, CONNECT_SECONDS)
        self._lock = threading.Lock()
        self._request = 0
        self._socket: socket.socket | None = None
        self.is_shut_down = False
        self._ca_file = Path(ca_file) if ca_file else None
        self.http = _Http(url, timeout=(self._connect_seconds, timeout_seconds))
        session = self.http.request_session
        # The environment must add no proxy.
        session.trust_env = False
        # A redirect would send the token to another host.
        session.get_redirect_target = lambda _answer: None
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Adapter(self))

    @property
    def tls(self) -> ssl.SSLContext:
        """Return the context for a TLS connection.

        Raises:
            StoreUntrusted: `ca_file` can't be used.
        """
        return _tls(self._ca_file)

    @contextmanager
    def busy(self) -> Iterator[Callable[[], None]]:
        """Mark the block as one request, and yield a function that shuts the connection down.

        Any thread may call the function. It does nothing after the end of the block.
        """
        with self._lock:
            self._request += 1
            request = self._request

        def shut_down() -> None:
            with self._lock:
                if self._request == request:
                    self._shut_down()

        try:
            yield shut_down
        finally:
            with self._lock:
                self._request += 1

    def dial(self, host: str, port: int) -> socket.socket:
        """Return a socket that is connected to the first address of `host` that answers.

        Raises:
            OSError: no address answers.
        """
        failure = OSError(f"{host} has no address")
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, address in found:
            dialled = socket.socket(family, kind, protocol)
            try:
                dialled.settimeout(self._connect_seconds)
                dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._remember_socket(dialled)
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
            self._forget_socket()

    def _remember_socket(self, dialled: socket.socket) -> None:
        with self._lock:
            if self.is_shut_down:
                raise ConnectionAbortedError("the request was shut down")
            self._forget_socket()
            self._socket = dialled.dup()

    def _forget_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _shut_down(self) -> None:
        self.is_shut_down = True
        if self._socket is not None:
            with suppress(OSError):  # it isn't connected yet, or is closed already
                self._socket.shutdown(socket.SHUT_RDWR)


class _Dialling(urllib3.connection.HTTPConnection):
    """An HTTP connection of urllib3 that gets its socket from a Connection."""

    def __init__(self, connection: Connection, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connection = connection

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def _new_conn(self) -> socket.socket:
        # urllib3 ignores some OSErrors, because the answer to the request may still be readable. So
        # an OSError of connecting must reach it as an error of its own.
        try:
            return self._connection.dial(self._dns_host, self.port)
        except UnicodeError as error:
            raise urllib3.exceptions.LocationParseError(self.host) from error
        except TimeoutError as error:
            raise urllib3.exceptions.ConnectTimeoutError(self, "timed out") from error
        except OSError as error:
            raise urllib3.exceptions.NewConnectionError(self, f"can't connect: {error}") from error

    def connect(self) -> None:
        super().connect()
        # Otherwise the first request would be sent with the shorter timeout for connecting.
        self.sock.settimeout(self._connection.timeout_seconds)


class _DiallingTls(_Dialling, urllib3.connection.HTTPSConnection):
    """An HTTPS connection of urllib3 that gets its socket and its TLS from a Connection."""

    def __init__(self, connection: Connection, *args: Any, **kwargs: Any) -> None:
        super().__init__(connection, *args, **(kwargs | {"ssl_context": connection.tls}))


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    """Return the context of all connections with this `ca_file`.

    Raises:
        StoreUntrusted: the file can't be used.
    """
    version = _version(ca_file or system_bundle())
    with _TURN:
        made = _MADE.get(ca_file)
        if made is None or made.version != version:
            try:
                context = client_context("store", ca_file)
            except ConfigInvalid as error:
                if made is None:
                    raise StoreUntrusted(error.message, hint=error.hint) from error
                # the file may be half-written
                log.warning("%s; the earlier authorities stay in use", error)
                context = made.context
            made = _MADE[ca_file] = _Made(version, context)
        return made.context


class _Made(NamedTuple):
    """A context, and the version of the file with its authorities."""

    version: object
    context: ssl.SSLContext


# The contexts that were made, by ca_file. One takes 25 ms, so it is kept until the file changes.
_MADE: Final[dict[Path | None, _Made]] = {}
_TURN: Final = threading.Lock()


def _version(file: Path | None) -> object:
    """Return a value that changes if the file is replaced, None if it can't be looked at."""
    try:
        found = file.stat() if file else None
    except OSError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns) if found else None


class _Adapter(HTTPAdapter):
    """An adapter that opens sockets through a Connection and sends Content-Length alone.

    For an iterator as body, requests adds `Transfer-Encoding: chunked` even beside a
    Content-Length, and then sends the body unchunked. Swift then waits for chunks, and proxies
    refuse the request. So this adapter removes that header from a request of known length.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def close(self) -> None:
        # urllib3 itself closes the connections only when nothing refers to their pool. But the
        # traceback of a refusal may refer to the pool until the garbage collector runs.
        pools = self.poolmanager.pools
        for key in pools.keys():  # noqa: SIM118 - urllib3's container of pools can't be iterated
            if pool := pools.get(key):
                pool.close()
        super().close()

    def send(
        self, request: requests.PreparedRequest, stream: bool = False, *args: Any, **kwargs: Any
    ) -> requests.Response:
        """Send a request. Without `stream`, the body of the answer is read here.

        Raises:
            StoreRejected: such a body is too large or compressed.
        """
        answer = super().send(request, True, *args, **kwargs)
        if not stream:
            # the pool could not close a connection with an answer that was not read to its end
            with closing(answer.raw) as raw:
                _refuse_compressed(answer)
                answer.raw = io.BytesIO(_read(raw.read))
        return answer

    def cert_verify(self, *args: Any, **kwargs: Any) -> None:
        """Add no authorities to those of the Connection's context, as requests would."""

    def add_headers(self, request: requests.PreparedRequest, **kwargs: Any) -> None:
        if "Content-Length" in request.headers:
            request.headers.pop("Transfer-Encoding", None)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool = super().get_connection_with_tls_context(*args, **kwargs)
        kind = _DiallingTls if pool.scheme == "https" else _Dialling
        pool.ConnectionCls = partial(kind, self._connection)  # type: ignore[assignment]
        return pool


class _Http(client.HTTPConnection):  # type: ignore[misc,unused-ignore]
    """swiftclient's connection, limited to small answers without compression.

    swiftclient reads listings, /info and the texts of refusals into memory at once. It asks for
    compressed answers and inflates them. So answers are limited in size, and no compression is
    requested. The bytes of objects are read piece by piece.

    `service_token` is sent with each request if it is not empty. swiftclient doesn't know it, so it
    reaches no log.
    """

    resp: Any
    service_token: str = ""

    def request(
        self, method: str, full_path: str, data: Any = None, headers: Any = None, files: Any = None
    ) -> Any:
        kept = {name: value for name, value in (headers or {}).items() if name != "Accept-Encoding"}
        if self.service_token:
            kept["X-Service-Token"] = self.service_token
        return super().request(method, full_path, data, kept, files)

    def getresponse(self) -> Any:
        answer = super().getresponse()
        _refuse_compressed(answer)
        answer.read = partial(_read, answer.read)
        return answer

    def close(self) -> None:
        # The response of a refusal is false as a boolean. So swiftclient leaves it open.
        if self.resp is not None:
            self.resp.close()
        super().close()
        self.resp = None  # the response refers to this connection


def _refuse_compressed(answer: Any) -> None:
    if answer.headers.get("content-encoding", "identity").lower() != "identity":
        raise StoreRejected("the store sent a compressed answer, which was not requested")


def _read(read: Callable[[int], bytes], count: int | None = None) -> bytes:
    """Return at most `count` bytes of a body, or the whole body if `count` is None.

    Raises:
        StoreRejected: the whole body has more than LONGEST_ANSWER bytes.
    """
    if count is not None:
        return read(count)
    body = bytearray()
    while piece := read(min(1 << 16, LONGEST_ANSWER + 1 - len(body))):
        body += piece
        if len(body) > LONGEST_ANSWER:
            raise StoreRejected(
                f"the store's answer has more than the {LONGEST_ANSWER} bytes that are allowed"
            )
    return bytes(body)
