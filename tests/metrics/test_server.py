"""The HTTP server of the metrics: what it answers, and what it does to clients that misbehave."""

import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from agent.errors import JournalError
from agent.metrics import server as module
from agent.metrics.server import MetricsServer
from tests.stack.process import free_port, poll

_TEXT = b"# TYPE a gauge\na 1.0\n"


@contextmanager
def serving(host: str = "127.0.0.1", text: object = None) -> Iterator[tuple[str, int]]:
    port = free_port()
    server = MetricsServer(host, port, text or (lambda: _TEXT))  # type: ignore[arg-type]
    try:
        yield host, port
    finally:
        server.close()


def answer(address: tuple[str, int], request: bytes) -> bytes:
    """Send `request` and return all bytes that come before the end of the connection."""
    with socket.create_connection(address, timeout=10) as connection:
        with suppress(ConnectionError):
            connection.sendall(request)
        received = b""
        with suppress(ConnectionError):
            while more := connection.recv(65536):
                received += more
    return received


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_it_answers_a_get_and_a_head(host: str) -> None:
    with serving(host) as address:
        head, _, body = answer(address, b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").partition(
            b"\r\n\r\n"
        )
        assert head.startswith(b"HTTP/1.0 200 ")
        assert b"Content-Type: text/plain; version=0.0.4; charset=utf-8" in head
        assert f"Content-Length: {len(_TEXT)}".encode() in head
        assert b"Python" not in head
        assert body == _TEXT
        head, _, body = answer(address, b"HEAD /metrics?x HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.0 200 ")
        assert body == b""


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET / HTTP/1.1", b"404"),
        (b"GET /metrics/../etc/passwd HTTP/1.1", b"404"),
        (b"POST /metrics HTTP/1.1", b"501"),
        (b"DELETE /metrics HTTP/1.1", b"501"),
        (b"nonsense", b"400"),
        (b"GET /metrics HTTP/9.9", b"505"),
    ],
)
def test_it_answers_nothing_else(request_line: bytes, status: bytes) -> None:
    with serving() as address:
        found = answer(address, request_line + b"\r\n\r\n")
        assert status in found
        assert _TEXT not in found


def test_a_journal_that_cannot_be_read_is_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> bytes:
        raise JournalError("the journal /secret/place can't be read")

    with serving(text=fail) as address:
        found = answer(address, b"GET /metrics HTTP/1.1\r\n\r\n")
    assert b" 503 " in found.splitlines()[0]
    assert b"/secret" not in found
    assert "/secret/place can't be read" in caplog.text


def test_a_defect_ends_one_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    failures = iter([ValueError("a defect"), None])

    def text() -> bytes:
        if failure := next(failures):
            raise failure
        return _TEXT

    with serving(text=text) as address, caplog.at_level("INFO"):
        assert answer(address, b"GET /metrics HTTP/1.1\r\n\r\n") == b""
        assert answer(address, b"GET /metrics HTTP/1.1\r\n\r\n").endswith(_TEXT)
    assert "a request for metrics failed" in caplog.text


def test_a_slow_client_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends a byte now and then. A limit for each read alone would keep it for ever."""
    monkeypatch.setattr(module, "_SECONDS", 0.5)
    ended = threading.Event()
    with serving() as address, socket.create_connection(address, timeout=10) as slow:

        def drip() -> None:
            with suppress(OSError):
                while not ended.wait(0.1):
                    slow.sendall(b"G")

        sender = threading.Thread(target=drip)
        sender.start()
        started = time.monotonic()
        try:
            assert answer(address, b"GET /metrics HTTP/1.1\r\n\r\n").endswith(_TEXT)
            assert time.monotonic() - started < 5
        finally:
            ended.set()
            sender.join()


@pytest.mark.parametrize("begin", [b"GET /", b"GET /metrics HTTP/1.1\r\nA: "])
def test_a_long_request_is_refused(begin: bytes) -> None:
    with serving() as address:
        found = answer(address, begin + b"x" * 200_000)
        assert _TEXT not in found
        assert answer(address, b"GET /metrics HTTP/1.1\r\n\r\n").endswith(_TEXT)


def test_a_crowd_needs_no_more_threads() -> None:
    with serving() as address:
        before = threading.active_count()
        crowd = [socket.create_connection(address, timeout=10) for _ in range(6)]
        try:
            assert threading.active_count() == before
        finally:
            for one in crowd:
                one.close()
        assert answer(address, b"GET /metrics HTTP/1.1\r\n\r\n").endswith(_TEXT)


def test_a_port_that_is_taken_is_logged_once_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    tries: list[None] = []

    def count(server: MetricsServer, **again: bool) -> object:
        tries.append(None)
        return listening(server, **again)

    listening = MetricsServer._listening
    monkeypatch.setattr(MetricsServer, "_listening", count)
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.05)
    with serving() as (host, port):
        late = MetricsServer(host, port, lambda: b"late 1\n")
        poll("it has tried several times", lambda: len(tries) > 3, 10)
    try:
        poll("it listens", lambda: "are on port" in caplog.text, 10)
        assert answer((host, port), b"GET /metrics HTTP/1.1\r\n\r\n").endswith(b"late 1\n")
    finally:
        late.close()
    [error] = [one.message for one in caplog.records if one.levelname == "ERROR"]
    assert f"can't listen on port {port} of {host}: Address already in use" in error
    assert f"sport = :{port}" in error


def test_its_end_does_not_wait_for_the_next_attempt() -> None:
    with serving() as (host, port):
        began = time.monotonic()
        MetricsServer(host, port, lambda: b"").close()
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
def test_a_port_that_the_unit_denies_is_logged_with_the_remedy(
    number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # systemd's SocketBindDeny= needs privileges that a container lacks
    def deny(*_any: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket.socket, "bind", deny)
    MetricsServer("127.0.0.1", 9399, lambda: b"").close()
    assert "can't listen on port 9399" in caplog.text
    assert "SocketBindAllow=tcp:9399" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_its_end_is_logged_and_ends_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def die(_server: object) -> None:
        raise MemoryError("no memory")

    monkeypatch.setattr(module._Server, "handle_request", die)
    with serving():
        poll("its end is logged", lambda: "works on without" in caplog.text, 5)
