"""One authenticated conversation with Swift: connections, token, retries, translated errors.

What is said in it is swift.py's business. swiftclient's own retries aren't used, because
they know neither our errors nor how to send the same slabs again.
"""

import http.client
import random
import re
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import requests
import urllib3
from requests.adapters import HTTPAdapter
from swiftclient import client
from swiftclient.exceptions import ClientException

from agent.errors import (
    StoreBusy,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreMismatch,
    StoreNotFound,
    StoreRejected,
    StoreUnreachable,
)

T = TypeVar("T")
_LONGEST_PAUSE = 30.0  # seconds between two attempts, whatever Retry-After says
_LONGEST_TEXT = 200  # characters of a foreign message
_NO_LOGIN_HERE = (404, 405, 412)  # 412 is what Swift's proxy says of a path it can't split
_URL_HINT = "check that [store] url names the Swift authentication URL"
_CA_HINT = "if the store's certificate is signed by a private CA, name its file in [store] ca_file"
_MEANINGS: Mapping[int, type[StoreError]] = {
    401: StoreDenied,
    403: StoreDenied,
    404: StoreNotFound,
    408: StoreBusy,
    409: StoreBusy,  # a write with a later timestamp is under way or came first
    422: StoreMismatch,
    429: StoreBusy,
    498: StoreBusy,  # Swift's ratelimit middleware
    507: StoreFull,
}
_BAD_ADDRESS = (
    requests.exceptions.InvalidURL,
    requests.exceptions.MissingSchema,
    requests.exceptions.InvalidSchema,
    urllib3.exceptions.LocationValueError,
    http.client.InvalidURL,
)
_TLS = (requests.exceptions.SSLError, urllib3.exceptions.SSLError)
_TRANSPORT = (
    requests.exceptions.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    EOFError,
)
_UNREADABLE = (ValueError, zlib.error)  # JSON, gzip or header bytes that can't be decoded


class Access(NamedTuple):
    """Where the account's objects are, and the token that opens them."""

    storage_url: str
    token: str

    def __repr__(self) -> str:
        return f"Access({self.storage_url!r})"


class Link(NamedTuple):
    """What one request needs: arguments for swiftclient's functions."""

    url: str
    token: str
    http: Any


class Authenticate(Protocol):
    """One way to log in; `connect` opens a connection that obeys the settings for TLS."""

    def __call__(self, connect: Callable[[str], Any]) -> Access: ...


@dataclass(frozen=True)
class AuthV1:
    """Swift's own authentication, version 1: a user name and a key in headers."""

    url: str
    user: str
    key: str = field(repr=False)

    def __call__(self, connect: Callable[[str], Any]) -> Access:
        with closing(connect(self.url)) as connection:
            headers = {"X-Auth-User": self.user, "X-Auth-Key": self.key}
            connection.request("GET", connection.parsed_url.path, "", headers)
            answer = connection.getresponse()
            body = answer.read(_LONGEST_TEXT)
            url = answer.getheader("x-storage-url")
            token = answer.getheader("x-storage-token") or answer.getheader("x-auth-token")
            if answer.status in _NO_LOGIN_HERE:
                raise StoreRejected(
                    f"{self.url} answers {answer.status}: nobody logs in there", hint=_URL_HINT
                )
            if answer.status // 100 != 2:
                raise ClientException.from_response(answer, "authenticate", body or b" ")
            if not url or not token:
                raise StoreRejected(
                    f"{self.url} answers, but not with a storage URL and a token",
                    hint=_URL_HINT,
                )
            return Access(url.rstrip("/"), token)


class _OneFraming(HTTPAdapter):
    """Sends a body of known length with Content-Length alone.

    For an iterator requests adds `Transfer-Encoding: chunked` even beside a Content-Length,
    and then sends it unchunked: Swift waits for chunks, and proxies refuse the request.
    """

    def add_headers(self, request: requests.PreparedRequest, **kwargs: Any) -> None:
        if "Content-Length" in request.headers:
            request.headers.pop("Transfer-Encoding", None)


def _bounded(text: str) -> str:
    """One line without markup, short enough for a message."""
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())[:_LONGEST_TEXT]


def _reason(error: BaseException) -> str:
    """The text of the innermost of the exceptions that HTTP libraries wrap into each other."""
    for _ in range(8):
        inner = [getattr(error, "reason", None), *error.args]
        causes = [one for one in inner if isinstance(one, BaseException)]
        if not causes:
            break
        error = causes[0]
    return _bounded(" ".join(str(part) for part in error.args)) or type(error).__name__


def _refusal(
    what: str, error: ClientException, meanings: Mapping[int, type[StoreError]]
) -> StoreError:
    status = error.http_status
    if not status:
        return StoreRejected(f"{what}: {_bounded(error.msg)}")
    body = error.http_response_content or b""
    text = _bounded(body.decode(errors="replace") if isinstance(body, bytes) else str(body))
    kind = meanings.get(status) or _MEANINGS.get(status)
    if kind is None and status == 413:
        kind = StoreFull if "quota" in text.lower() else StoreRejected
    if kind is None:
        kind = StoreBusy if status >= 500 else StoreRejected
    return kind(f"{what}: the store answered {status}" + (f" ({text})" if text else ""))


@contextmanager
def translated(what: str, meanings: Mapping[int, type[StoreError]] | None = None) -> Iterator[None]:
    """Turn every foreign error into one of the StoreError family; `what` was being done.

    `meanings` overrides what a status stands for. No message has a header's value in it.
    """
    try:
        yield
    except ClientException as error:
        raise _refusal(what, error, meanings or {}) from error
    except requests.exceptions.InvalidHeader:
        # its text holds the header's value, which may be the key
        raise StoreRejected(f"{what}: a user name, key or header can't be sent in HTTP") from None
    except _BAD_ADDRESS as error:
        raise StoreRejected(f"{what}: not an address: {_reason(error)}") from error
    except _TLS as error:
        raise StoreUnreachable(f"{what}: TLS failed: {_reason(error)}", hint=_CA_HINT) from error
    except _TRANSPORT as error:
        raise StoreUnreachable(f"{what}: {_reason(error)}") from error
    except _UNREADABLE as error:
        raise StoreRejected(f"{what}: the answer can't be read: {_reason(error)}") from error


def pause_seconds(attempt: int, base: float, error: StoreError) -> float:
    """How long to wait after the failed attempt number `attempt` (from 1).

    Doubles from `base`, with jitter so that many agents don't come back at once; as long as
    the store's Retry-After asks, and at most 30 seconds.
    """
    jitter = random.uniform(0.5, 1.0)  # noqa: S311 - no secret depends on it
    headers = getattr(error.__cause__, "http_response_headers", None) or {}
    asked = str(headers.get("Retry-After", ""))
    retry_after = float(asked) if asked.isdecimal() else 0.0
    return min(max(base * 2.0 ** (attempt - 1) * jitter, retry_after), _LONGEST_PAUSE)


class SwiftSession:
    """Requests of any number of threads, each on a kept connection, with one shared token."""

    def __init__(
        self,
        authenticate: Authenticate,
        *,
        timeout_seconds: float,
        attempts: int,
        backoff_seconds: float,
        ca_file: str | None,
    ) -> None:
        self._authenticate = authenticate
        self._timeout = timeout_seconds
        self._attempts = attempts
        self._backoff = backoff_seconds
        self._ca_file = ca_file
        self._aborted = threading.Event()
        self._lock = threading.Lock()
        self._access: Access | None = None
        self._idle: list[Any] = []
        # by default swiftclient's debug log shows the first 16 characters of a token
        client.logger_settings["reveal_sensitive_prefix"] = 0

    def call(
        self,
        what: str,
        action: Callable[[Link], T],
        meanings: Mapping[int, type[StoreError]] | None = None,
    ) -> T:
        """Do `action`, again where that may help; raises nothing but StoreErrors."""
        attempt = 1
        while True:
            try:
                with translated(what, meanings):
                    return self._authorised(action)
            except StoreError as error:
                if not error.retryable or attempt >= self._attempts:
                    raise
                if self._aborted.wait(pause_seconds(attempt, self._backoff, error)):
                    raise
            attempt += 1

    def abort(self) -> None:
        """End all waits between attempts, and repeat nothing from now on."""
        self._aborted.set()

    def close(self) -> None:
        """Close the kept connections."""
        while connection := self._take():
            connection.close()

    def _authorised(self, action: Callable[[Link], T]) -> T:
        access = self._current_access()
        try:
            return self._exchange(access, action)
        except ClientException as error:
            if error.http_status != 401:
                raise
            self._forget(access)
        except requests.exceptions.ConnectionError:
            # a store that refuses the token may hang up while the body is still being sent,
            # so that its 401 is lost: the next attempt had better bring another token
            self._forget(access)
            raise
        return self._exchange(self._current_access(), action)

    def _current_access(self) -> Access:
        with self._lock:
            if self._access is None:
                self._access = self._authenticate(self._connect)
            return self._access

    def _forget(self, refused: Access) -> None:
        """Authenticate anew next time, unless another thread has already done so."""
        with self._lock:
            if self._access is refused:
                self._access = None

    def _exchange(self, access: Access, action: Callable[[Link], T]) -> T:
        connection = self._take()
        if connection is None or connection.url != access.storage_url:
            connection = self._connect(access.storage_url)
        with ExitStack() as stack:
            # after a failure a rest of the answer may be on its way
            stack.callback(connection.close)
            result = action(Link(*access, (connection.parsed_url, connection)))
            stack.pop_all()
        self._idle.append(connection)
        return result

    def _take(self) -> Any:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _connect(self, url: str) -> Any:
        connection = client.HTTPConnection(url, cacert=self._ca_file, timeout=self._timeout)
        session = connection.request_session
        # the environment may neither replace the CA (REQUESTS_CA_BUNDLE) nor add a proxy
        session.trust_env = False
        # a redirect would carry the token to another host
        session.get_redirect_target = lambda _answer: None
        session.mount("http://", _OneFraming())
        session.mount("https://", _OneFraming())
        return connection
