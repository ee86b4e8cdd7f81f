"""Translation of the errors of Swift and of HTTP libraries into errors of the agent."""

import http.client
import random
import re
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

import requests
import urllib3
from swiftclient.exceptions import ClientException

from agent.errors import (
    StoreBusy,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreMismatch,
    StoreNotFound,
    StoreRedirected,
    StoreRejected,
    StoreSilent,
    StoreUnreachable,
    StoreUntrusted,
)
from agent.machine.tls import explain
from agent.model import printable

# The longest pause in seconds between two attempts, even if Retry-After asks for more.
_LONGEST_PAUSE: Final = 30.0
# How many bytes or characters of a foreign message are read, with its markup.
_MOST_READ: Final = 8 << 10
# How many characters of that message are shown, without its markup.
_LONGEST_TEXT: Final = 200
_REDIRECT_HINT: Final = (
    "a redirect would take the key or the token to another address, so the agent follows none. If "
    "that address is right, name it in [store] url, or make the login return it as storage URL"
)
_NOT_FOR_HTTP: Final = "a user name, key or header has characters that HTTP can't send"
_ONE_LINE: Final = "write the key or token alone, on one line, without a byte order mark"
_MEANINGS: Final[Mapping[int, type[StoreError]]] = {
    401: StoreDenied,
    403: StoreDenied,
    404: StoreNotFound,
    408: StoreBusy,
    409: StoreBusy,  # a write with a later timestamp is running or came first
    422: StoreMismatch,
    429: StoreBusy,
    498: StoreBusy,  # Swift's ratelimit middleware
    507: StoreFull,
}
_DENIALS: Final = (401, 403)
_REDIRECTS: Final = (300, 301, 302, 303, 307, 308)
# With these statuses the store says that it has done nothing. It may answer 408, 409 or 499 to a
# request that it has begun.
_REFUSALS: Final = frozenset({*range(400, 500), 507} - {408, 409, 499})
_BAD_ADDRESS: Final = (
    requests.exceptions.InvalidURL,
    requests.exceptions.MissingSchema,
    requests.exceptions.InvalidSchema,
    urllib3.exceptions.LocationValueError,
    http.client.InvalidURL,
)
_TLS: Final = (requests.exceptions.SSLError, urllib3.exceptions.SSLError)
_TRANSPORT: Final = (
    requests.exceptions.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    EOFError,
)
_CONNECTING: Final = (
    requests.exceptions.ConnectTimeout,
    urllib3.exceptions.ConnectTimeoutError,
)
_SILENT: Final = (
    requests.exceptions.ReadTimeout,
    urllib3.exceptions.ReadTimeoutError,
    TimeoutError,
)
# Errors of JSON (also if it is nested too deeply), gzip, numbers, dates or header bytes that can't
# be decoded.
_UNREADABLE: Final = (ValueError, RecursionError, OverflowError, zlib.error)


@contextmanager
def translated(what: str, meanings: Mapping[int, type[StoreError]] | None = None) -> Iterator[None]:
    """Translate every foreign error of the block into one of the StoreError family.

    `what` names the action in the message. `meanings` overrides the error class of a status. No
    message contains the value of a header.
    """
    try:
        yield
    except ClientException as error:
        raise _refusal(what, error, meanings or {}) from error
    except requests.exceptions.InvalidHeader:
        # The text of this error contains the header's value, which may be the key.
        raise StoreRejected(f"{what}: {_NOT_FOR_HTTP}", hint=_ONE_LINE) from None
    except _BAD_ADDRESS as error:
        raise StoreRejected(f"{what}: not a valid URL: {_reason(error)}") from error
    except _TLS as error:
        raise _tls_failure(what, error) from error
    except _TRANSPORT as error:
        kind = StoreSilent if _timed_out(error) else StoreUnreachable
        raise kind(f"{what}: {_reason(error)}") from error
    except UnicodeEncodeError:
        # The values of this error contain the key or the token.
        raise StoreRejected(f"{what}: {_NOT_FOR_HTTP}", hint=_ONE_LINE) from None
    except UnicodeDecodeError as error:
        raise StoreRejected(f"{what}: the answer can't be read: {error.reason}") from None
    except _UNREADABLE as error:
        raise StoreRejected(f"{what}: the answer can't be read: {_reason(error)}") from error


def pause_seconds(attempt: int, base: float, error: StoreError) -> float:
    """Return the number of seconds to wait after the failed attempt number `attempt` (from 1).

    The pause doubles from `base` with each attempt. Its jitter keeps many agents from returning at
    once. It is at least as long as the store's Retry-After asks, and at most 30 seconds.
    """
    jitter = random.uniform(0.5, 1.0)  # noqa: S311 - no secret depends on it
    # A float can't hold a number that was doubled too many times.
    doubled = base * 2.0 ** min(attempt - 1, 30) * jitter
    return min(max(doubled, asked_seconds(error)), _LONGEST_PAUSE)


def asked_seconds(error: StoreError) -> float:
    """Return the number of seconds, from 0 to 30, that the store asks to wait in Retry-After.

    The header holds a number or a date (RFC 9110, section 10.2.3). A date is a time of the store's
    clock, so it is compared with the Date header of the same answer.
    """
    headers = getattr(error.__cause__, "http_response_headers", None) or {}
    asked = str(headers.get("Retry-After", "")).strip()[:64]
    if asked.isdecimal():
        return min(float(asked), _LONGEST_PAUSE)
    until = moment(asked)
    seconds = until - (moment(str(headers.get("Date", ""))) or time.time()) if until else 0.0
    return min(max(seconds, 0.0), _LONGEST_PAUSE)


def moment(date: str) -> float | None:
    """Return an HTTP date in Unix seconds, or None if it is not one."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None


def _tls_failure(what: str, error: BaseException) -> StoreError:
    """Return the error of a failed TLS connection, or of one that failed later."""
    *_, innermost = _chain(error)
    url = urlsplit(getattr(getattr(error, "request", None), "url", None) or "")
    if not url.hostname:  # it failed while the answer was read
        return StoreUnreachable(f"{what}: TLS failed: {_reason(error)}")
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    address = f"{host}:{url.port or 443}"
    fault = explain(innermost, "store", address)
    if fault is None:
        return StoreUnreachable(f"{what}: TLS failed: {_reason(error)}")
    # It has no effect, but it isn't the store's answer to the request. So a commit waits.
    kind = StoreUntrusted if fault.untrusted else StoreUnreachable
    return kind(f"{what}: {address}: {fault.reason}", hint=fault.hint)


def _redirect(what: str, error: ClientException) -> StoreError:
    headers = error.http_response_headers or {}
    target = _origin(str(headers.get("Location", ""))[:_MOST_READ])
    where = f"to {target}" if target else "without naming a host"
    return StoreRedirected(
        f"{what}: the store redirects the request {where} ({error.http_status}), which is not "
        "followed",
        hint=_REDIRECT_HINT,
    )


def _origin(url: str) -> str:
    """Return scheme, host and port of a foreign URL for a message, "" if it names no host."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return ""
    host = printable((parts.hostname or "")[:_LONGEST_TEXT])
    return f"{printable(parts.scheme[:10])}://{host}{port}" if host else ""


def _refusal(
    what: str, error: ClientException, meanings: Mapping[int, type[StoreError]]
) -> StoreError:
    status = error.http_status
    if not status:
        return StoreRejected(f"{what}: {_bounded(error.msg)}")
    if status in _REDIRECTS:
        return _redirect(what, error)
    text = _body_text(error)
    kind = meanings.get(status) or _MEANINGS.get(status)
    if kind is None and status == 413:
        kind = StoreFull if "quota" in text.lower() else StoreRejected
    if kind is None:
        kind = StoreBusy if status >= 500 else StoreRejected
    refusal = kind(f"{what}: {refusal_text(error)}")
    refusal.without_effect = status in _REFUSALS
    return refusal


def refusal_text(error: ClientException) -> str:
    """Return the status of a refusal, with the store's reason if it may be shown."""
    text = _body_text(error)
    return f"the store answered {error.http_status}" + (f" ({text})" if text else "")


def _body_text(error: ClientException) -> str:
    # A refusal of a key or token may contain that key or token. So its body is not shown.
    denied = error.http_status in _DENIALS
    body = (b"" if denied else error.http_response_content or b"")[:_MOST_READ]
    return _bounded(body.decode(errors="replace") if isinstance(body, bytes) else str(body))


def _bounded(text: str) -> str:
    """Return `text` as one line without markup, short enough for a message."""
    # A tag must end before the next one begins. Otherwise the time for many open tags grows with
    # the square of their number.
    return " ".join(re.sub(r"<[^<>]*>", " ", text[:_MOST_READ]).split())[:_LONGEST_TEXT]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and up to 7 that it wraps, the innermost last."""
    for _ in range(8):
        yield error
        inner = [getattr(error, "reason", None), *error.args]
        causes = [one for one in inner if isinstance(one, BaseException)]
        if not causes:
            return
        error = causes[0]


def _reason(error: BaseException) -> str:
    *_, innermost = _chain(error)
    return _bounded(" ".join(str(part) for part in innermost.args)) or type(innermost).__name__


def _timed_out(error: BaseException) -> bool:
    """Return True if the agent was connected to the store and then a wait timed out."""
    chain = list(_chain(error))
    return not any(isinstance(one, _CONNECTING) for one in chain) and any(
        isinstance(one, _SILENT) for one in chain
    )
