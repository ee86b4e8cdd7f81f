"""Errors, pauses and framing of the Swift session, without a server."""

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate

import pytest
import requests
import urllib3
from hypothesis import given, strategies as st
from swiftclient.exceptions import ClientException

from agent.errors import AgentError, StoreBusy, StoreError, StoreMismatch, StoreRejected
from agent.store.protocol import Container
from agent.store.swift.errors import pause_seconds, translated
from agent.store.swift.login import Access, AuthToken, AuthV1
from agent.store.swift.session import Link, SwiftSession
from agent.store.swift.store import SwiftSettings, SwiftStore
from tests.store.contract import md5, views


def subclasses(root: type[BaseException]) -> Iterator[type[BaseException]]:
    yield root
    for child in root.__subclasses__():
        yield from subclasses(child)


FOREIGN = sorted(
    {
        kind
        for root in (
            requests.exceptions.RequestException,
            urllib3.exceptions.HTTPError,
            http.client.HTTPException,
            OSError,
            UnicodeError,
        )
        for kind in subclasses(root)
        if kind.__module__.partition(".")[0] in ("requests", "urllib3", "http", "builtins", "ssl")
    },
    key=lambda kind: (kind.__module__, kind.__name__),
)


@pytest.mark.parametrize("kind", FOREIGN, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_no_foreign_error_is_left(kind: type[BaseException]) -> None:
    error = kind.__new__(kind)  # the constructors need requests and pools
    with pytest.raises(StoreError) as caught, translated("try it"):
        raise error
    assert caught.value.code
    assert str(caught.value).startswith("try it")


def test_foreign_errors_were_found() -> None:
    names = {kind.__name__ for kind in FOREIGN}
    assert {"ConnectTimeout", "ChunkedEncodingError", "IncompleteRead", "SSLError"} < names
    assert {"ConnectionResetError", "BadStatusLine", "LocationParseError"} < names


@pytest.mark.parametrize("status", [None, *range(300, 600)])
def test_every_status_has_a_meaning(status: int | None) -> None:
    with pytest.raises(StoreError) as caught, translated("try it"):
        raise ClientException("refused", http_status=status, http_response_content=b"<p>why</p>")
    assert caught.value.code
    assert caught.value.retryable == (
        status in (408, 409, 422, 429, 498) or ((status or 0) >= 500 and status != 507)
    )


def test_our_own_errors_pass_unchanged() -> None:
    own = StoreRejected("as it was")
    with pytest.raises(AgentError) as caught, translated("try it"):
        raise own
    assert caught.value is own


def test_messages_are_short_and_plain() -> None:
    page = b"<html>" + b"<b>x</b>\n" * 5000
    with pytest.raises(StoreBusy) as caught, translated("try it"):
        raise ClientException("refused", http_status=503, http_response_content=page)
    assert len(str(caught.value)) < 300
    assert "<" not in str(caught.value)
    assert "\n" not in str(caught.value)


def busy(retry_after: str | None, **headers: str) -> StoreBusy:
    if retry_after is not None:
        headers["Retry-After"] = retry_after
    error = StoreBusy("busy")
    error.__cause__ = ClientException("refused", http_response_headers=headers)
    return error


@given(
    st.integers(1, 50),
    st.floats(0, 60),
    st.none() | st.text(max_size=12) | st.integers(-5, 10**9).map(str),
)
def test_pauses_are_bounded(attempt: int, base: float, retry_after: str | None) -> None:
    assert 0 <= pause_seconds(attempt, base, busy(retry_after)) <= 30


def test_pauses_grow_and_obey_the_store() -> None:
    assert 0.25 <= pause_seconds(1, 0.5, busy(None)) <= 0.5
    assert 2 <= pause_seconds(4, 0.5, StoreBusy("no cause")) <= 4
    assert pause_seconds(1, 0.5, busy("7")) == 7
    assert pause_seconds(1, 0.5, busy("3600")) == 30
    assert pause_seconds(1, 0.5, busy(formatdate(time.time() + 20, usegmt=True))) > 15
    assert pause_seconds(1, 0.5, busy(formatdate(time.time() + 3600, usegmt=True))) == 30
    for past in ("Fri, 31 Dec 1999 23:59:59 GMT", "soon", "Fri, 99 Dec 2026 23:59:59 GMT"):
        assert pause_seconds(1, 0.5, busy(past)) <= 0.5
    dated = busy("Fri, 31 Dec 1999 23:59:59 GMT", Date="Fri, 31 Dec 1999 23:59:52 GMT")
    assert pause_seconds(1, 0.5, dated) == 7


def test_secrets_have_no_repr() -> None:
    settings = SwiftSettings(AuthV1("http://h", "user", "the-key"), "c")
    assert "the-key" not in repr(settings)
    assert "the-token" not in repr(Access("http://h", "the-token"))


def test_a_token_is_replaced_once_however_many_found_it_expired() -> None:
    tokens = iter(["first", "second", "third"])
    session = SwiftSession(
        lambda connect: Access("http://h/v1/a", next(tokens)),
        timeout_seconds=1,
        attempts=1,
        backoff_seconds=0,
        ca_file=None,
    )

    def work(link: Link) -> str:
        if link.token == "first":
            raise ClientException("expired", http_status=401)
        return link.token

    def slow_work(link: Link) -> str:
        # meanwhile another request notices the expired token and logs in
        assert session.call("other work", work) == "second"
        return work(link)

    assert session.call("slow work", slow_work) == "second"
    session.close()


@contextmanager
def store_answering(answer: str, request_end: bytes) -> Iterator[tuple[SwiftStore, list[bytes]]]:
    """Yield a store, and the list of requests that its server has received.

    The server reads one request up to `request_end` and sends one answer.
    """
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(10)
                request = b""
                while not request.endswith(request_end):
                    request += connection.recv(65536)
                seen.append(request)
                connection.sendall(answer.encode())

        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/a"
        server = threading.Thread(target=serve, daemon=True)
        server.start()
        store = SwiftStore(
            SwiftSettings(AuthToken(url, "token"), "c", attempts=1, timeout_seconds=10)
        )
        yield store, seen
        store.close()
        server.join(10)


@pytest.mark.parametrize(("chunk", "buffer"), [("abcd", b"abc"), ("ab", b"ab\0")])
def test_a_body_of_unannounced_length_must_fit(chunk: str, buffer: bytes) -> None:
    answer = (
        f"HTTP/1.1 200 OK\r\nETag: {md5(buffer)}\r\nTransfer-Encoding: chunked\r\n\r\n"
        f"{len(chunk)}\r\n{chunk}\r\n0\r\n\r\n"
    )
    with (
        store_answering(answer, b"\r\n\r\n") as (store, _),
        pytest.raises(StoreMismatch),
    ):
        store.get_into(Container.SEGMENTS, "n", memoryview(bytearray(3)))


def test_a_body_has_one_framing() -> None:
    content = b"first part, END"
    answer = f"HTTP/1.1 201 Created\r\nContent-Length: 0\r\nETag: {md5(content)}\r\n\r\n"
    with store_answering(answer, b"END") as (store, seen):
        store.put(Container.OBJECTS, "n", views(content[:11], content[11:]))
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert body == content
    assert b"content-length: 15" in head.lower()
    assert b"transfer-encoding" not in head.lower()
