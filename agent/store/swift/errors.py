"""What Swift, and the libraries that speak HTTP, say went wrong, as errors of the agent."""

import http.client
import random
import re
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Final

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
    StoreRejected,
    StoreSilent,
    StoreUnreachable,
)

_LONGEST_PAUSE: Final = 30.0  # seconds between two attempts, whatever Retry-After says
_MOST_READ: Final = 8 << 10  # bytes or characters of a foreign message, with its markup
_LONGEST_TEXT: Final = 200  # and of what is left of it
_CA_HINT: Final = (
    "if the store's certificate is signed by a private CA, name its file in [store] ca_file"
)
_MEANINGS: Final[Mapping[int, type[StoreError]]] = {
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
_DENIALS: Final = (401, 403)
# By these the store says that it has done nothing; 408, 409 and 499 are said of what was begun.
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
# JSON (nested too deeply, too), gzip, numbers, dates or header bytes that can't be decoded
_UNREADABLE: Final = (ValueError, RecursionError, OverflowError, zlib.error)


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
        kind = StoreSilent if _timed_out(error) else StoreUnreachable
        raise kind(f"{what}: {_reason(error)}") from error
    except _UNREADABLE as error:
        raise StoreRejected(f"{what}: the answer can't be read: {_reason(error)}") from error


def pause_seconds(attempt: int, base: float, error: StoreError) -> float:
    """How long to wait after the failed attempt number `attempt` (from 1).

    Doubles from `base`, with jitter so that many agents don't come back at once; as long as
    the store's Retry-After asks, and at most 30 seconds.
    """
    jitter = random.uniform(0.5, 1.0)  # noqa: S311 - no secret depends on it
    # many doublings of a number are more than a float holds
    doubled = base * 2.0 ** min(attempt - 1, 30) * jitter
    return min(max(doubled, asked_seconds(error)), _LONGEST_PAUSE)


def asked_seconds(error: StoreError) -> float:
    """Return how long the store asks to wait, in Retry-After: 0 to 30 seconds.

    It is a number or a date (RFC 9110, section 10.2.3): one of the store's clock, which the
    answer is dated by.
    """
    headers = getattr(error.__cause__, "http_response_headers", None) or {}
    asked = str(headers.get("Retry-After", "")).strip()[:64]
    if asked.isdecimal():
        return min(float(asked), _LONGEST_PAUSE)
    until = _moment(asked)
    seconds = until - (_moment(str(headers.get("Date", ""))) or time.time()) if until else 0.0
    return min(max(seconds, 0.0), _LONGEST_PAUSE)


def _moment(date: str) -> float | None:
    """A date of HTTP in Unix seconds; None where it is none."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None


def _refusal(
    what: str, error: ClientException, meanings: Mapping[int, type[StoreError]]
) -> StoreError:
    status = error.http_status
    if not status:
        return StoreRejected(f"{what}: {_bounded(error.msg)}")
    # whoever refuses a key or a token may say which
    body = (b"" if status in _DENIALS else error.http_response_content or b"")[:_MOST_READ]
    text = _bounded(body.decode(errors="replace") if isinstance(body, bytes) else str(body))
    kind = meanings.get(status) or _MEANINGS.get(status)
    if kind is None and status == 413:
        kind = StoreFull if "quota" in text.lower() else StoreRejected
    if kind is None:
        kind = StoreBusy if status >= 500 else StoreRejected
    refusal = kind(f"{what}: the store answered {status}" + (f" ({text})" if text else ""))
    refusal.without_effect = status in _REFUSALS
    return refusal


def _bounded(text: str) -> str:
    """One line without markup, short enough for a message."""
    # a tag ends before the next one: else the time for many that stay open grows by their square
    return " ".join(re.sub(r"<[^<>]*>", " ", text[:_MOST_READ]).split())[:_LONGEST_TEXT]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception, and those that HTTP libraries have wrapped into it, the innermost last."""
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
    """Whether the store was reached, and then let the time pass."""
    chain = list(_chain(error))
    return not any(isinstance(one, _CONNECTING) for one in chain) and any(
        isinstance(one, _SILENT) for one in chain
    )
