"""A stop ends a call of a store at once, with the stop's cause, in every kind of wait."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.errors import Interrupted, StoreSilent, StoreUnreachable
from agent.stop import Stop
from agent.store.directory.store import DirectoryStore
from agent.store.protocol import Container, Store
from agent.store.swift.login import AuthToken
from agent.store.swift.store import SwiftSettings, SwiftStore
from tests.stack.process import poll
from tests.stack.swift import SwiftServer
from tests.store.conftest import MIB, MakeStore
from tests.store.contract import fresh, views

AT_ONCE = 0.5  # seconds
PARTS = views(os.urandom(MIB), os.urandom(MIB))
Act = Callable[[Store], Any]


def put(store: Store, name: str) -> str:
    return store.put(Container.SEGMENTS, name, PARTS)


def get(store: Store, name: str) -> None:
    store.get_into(Container.SEGMENTS, name, memoryview(bytearray(2 * MIB)))


def rows(store: Store, name: str) -> list[Any]:
    return list(store.list(Container.SEGMENTS, name))


def ended(store: Store, act: Act, waits: Callable[[], bool]) -> None:
    """Run `act` on a bound view, stop it when it `waits`, and assert that the cause ends it."""
    stop, cause = Stop(), Interrupted("told to stop")
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(act, store.bound(stop))
        poll("it waits", waits, 10)
        started = time.monotonic()
        stop.request(cause)
        with pytest.raises(Interrupted) as caught:
            job.result(timeout=5)
    assert caught.value is cause
    assert time.monotonic() - started < AT_ONCE
    with pytest.raises(Interrupted):
        act(store.bound(stop))


def asked(server: SwiftServer, word: str, action: str) -> bool:
    return any(word in line and f" {action}" in line for line in server.requests())


@pytest.mark.parametrize("act", [put, get, rows])
def test_a_request_that_stalls(
    swift: SwiftServer, store: SwiftStore, act: Callable[[Store, str], Any]
) -> None:
    name = fresh()
    put(store, name)
    swift.inject([{"match": name, "action": "stall", "seconds": 2}])
    ended(store, lambda view: act(view, name), lambda: asked(swift, name, "stall"))
    swift.clear_faults()
    put(store, name)


def test_a_login_that_stalls_and_who_waits_for_it(
    swift: SwiftServer, make_store: MakeStore
) -> None:
    store, name, stop = make_store(swift), fresh(), Stop()
    before = len(swift.requests())
    swift.inject([{"match": "^/auth/", "action": "stall", "seconds": 2}])
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(put, store.bound(stop), name)
        poll("the login", lambda: any("/auth/" in line for line in swift.requests()[before:]), 10)
        ended(store, lambda view: put(view, name), lambda: bool(store._session._shared.logging_in))
        assert not first.done()
        stop.request(Interrupted("this one, too"))
        with pytest.raises(Interrupted, match="this one"):
            first.result(timeout=AT_ONCE)
    swift.clear_faults()
    put(store, name)


def test_a_pause_between_attempts(swift: SwiftServer, make_store: MakeStore) -> None:
    store, name = make_store(swift, backoff_seconds=100), fresh()
    swift.inject([{"match": name, "status": 503, "times": 99}])
    ended(store, lambda view: put(view, name), lambda: asked(swift, name, "status"))


def test_a_stop_that_is_closed_ends_nothing(swift: SwiftServer, store: SwiftStore) -> None:
    name, stop = fresh(), Stop()
    swift.inject([{"match": name, "action": "stall", "seconds": 0.3}])
    stop.ignore()
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(put, store.bound(stop), name)
        poll("it waits", lambda: asked(swift, name, "stall"), 10)
        assert not stop.request(Interrupted("too late"))
        job.result(timeout=5)


@contextmanager
def listening(backlog: int, serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Yield the address of a server that calls `serve` with each connection, in its own thread."""
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as listener:

        def accept() -> None:
            try:
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=serve, args=(connection,), daemon=True).start()
            except OSError:
                return

        if backlog:
            threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def store_at(url: str, **changes: Any) -> SwiftStore:
    settings: dict[str, Any] = {"attempts": 1, "timeout_seconds": 10} | changes
    return SwiftStore(SwiftSettings(AuthToken(url, "token"), "c", **settings))


@contextmanager
def unanswered() -> Iterator[str]:
    """Yield an address that accepts no connection, because its queue is full."""
    with listening(0, lambda _: None) as address:
        host, port = address.split(":")
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex((host, int(port)))
        yield address
        for one in waiting:
            one.close()


def dialling(store: SwiftStore) -> Callable[[], bool]:
    """Return a function that tells if a request of the store has been under way for 0.2 seconds."""
    due = store._session._shared.deadlines._due
    since = time.monotonic()
    return lambda: bool(due) and time.monotonic() - since > 0.2


def test_connecting_that_hangs() -> None:
    with unanswered() as address:
        store = store_at(f"http://{address}/v1/a")
        ended(store, lambda view: put(view, "n"), dialling(store))
        hasty = store_at(f"http://{address}/v1/a", timeout_seconds=0.3)
        with pytest.raises(StoreUnreachable) as caught:
            put(hasty, "n")
        assert not isinstance(caught.value, StoreSilent)


def test_tls_that_hangs() -> None:
    def keep(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.recv(1 << 16)
        connection.close()

    with listening(5, keep) as address:
        store = store_at(f"https://{address}/v1/a")
        ended(store, lambda view: put(view, "n"), dialling(store))


def dripping(head: bytes, seconds: float) -> Callable[[socket.socket], None]:
    """Return a function that answers a request with `head`, then with one byte every `seconds`."""

    def serve(connection: socket.socket) -> None:
        with connection:
            connection.recv(1 << 16)
            connection.sendall(head)
            wait = threading.Event()
            try:
                while not wait.wait(seconds):
                    connection.sendall(b"x")
            except OSError:
                return

    return serve


@pytest.mark.parametrize(
    ("act", "head"),
    [
        (get, b"HTTP/1.1 200 OK\r\nContent-Length: 2097152\r\nETag: x\r\n\r\n"),
        (lambda store, _: store.get(Container.OBJECTS, "n", 100), b"HTTP/1.1 200 OK\r\nX-Head: "),
        (rows, b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n["),
        (put, b"HTTP/1.1 503 Busy\r\nContent-Length: 9999\r\n\r\n"),
        (lambda store, _: store.limits(), b"HTTP/1.1 200 OK\r\n\r\n{"),
    ],
    ids=["segment", "headers", "listing", "refusal", "info"],
)
def test_a_store_that_drips_is_given_up(
    act: Callable[[Store, str], Any], head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.store.swift.session.LEAST_RATE", 100 * MIB)
    with listening(5, dripping(head, 0.05)) as address:
        store = store_at(f"http://{address}/v1/a", timeout_seconds=0.3)
        started = time.monotonic()
        with pytest.raises(StoreSilent, match="not done within"):
            act(store, "n")
        assert time.monotonic() - started < 3
        # a connection that was cut is not used again
        assert not store._session._shared.idle


def test_a_folder_between_two_pieces(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path, "c")
    store.open()
    put(store, "there")
    stop, cause = Stop(), Interrupted("told to stop")
    view = store.bound(stop)

    class Stopping(list[memoryview]):
        def __iter__(self) -> Iterator[memoryview]:
            yield PARTS[0]
            stop.request(cause)
            yield PARTS[1]

    with pytest.raises(Interrupted) as caught:
        view.put(Container.SEGMENTS, "new", Stopping(PARTS))
    assert caught.value is cause
    acts: list[Act] = [
        lambda view: get(view, "there"),
        lambda view: rows(view, ""),
        lambda view: view.delete(Container.SEGMENTS, "there"),
        lambda view: view.open(),
    ]
    for act in acts:
        with pytest.raises(Interrupted):
            act(view)
    assert [row.name for row in store.list(Container.SEGMENTS)] == ["there"]
    get(store, "there")
