"""Redirects of the store, which the agent follows nowhere, neither with the key nor the token."""

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agent.errors import StoreRedirected
from agent.store.protocol import Container
from agent.store.swift.store import SwiftStore
from tests.stack.swift import SwiftServer
from tests.store.conftest import MakeStore
from tests.store.contract import fresh, views

STATUSES = [300, 301, 302, 303, 307, 308]


@pytest.fixture
def elsewhere() -> Iterator[socket.socket]:
    """Yield a listener. Each test asserts that nothing connected to it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener
        with pytest.raises(BlockingIOError):
            listener.accept()


def redirect(match: str, status: int, target: str) -> list[dict[str, Any]]:
    return [{"match": match, "status": status, "times": 9, "headers": {"Location": target}}]


def url_of(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}/v1/AUTH_test"


@pytest.mark.parametrize("status", STATUSES)
def test_a_login_that_redirects(
    swift: SwiftServer, make_store: MakeStore, elsewhere: socket.socket, status: int
) -> None:
    swift.inject(redirect("^/auth", status, url_of(elsewhere)))
    before = len(swift.requests())
    store = make_store(swift)
    with pytest.raises(
        StoreRedirected, match=rf"^log in.* to http://127\.0\.0\.1:\d+ \({status}\)"
    ) as caught:
        store.open()
    assert "so the agent follows none" in caught.value.hint
    assert swift.key not in str(caught.value)
    assert len(swift.requests()) == before + 1


ACTIONS: dict[str, Callable[[SwiftStore, str], object]] = {
    "put": lambda store, name: store.put(Container.SEGMENTS, name, views(b"x" * 100_000)),
    "get": lambda store, name: store.get(Container.OBJECTS, name, 100),
    "stat": lambda store, name: store.stat(Container.OBJECTS, name),
    "delete": lambda store, name: store.delete(Container.OBJECTS, name),
    "list": lambda store, name: list(store.list(Container.OBJECTS, name)),
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("status", [302, 307])
def test_a_request_that_redirects(
    swift: SwiftServer, store: SwiftStore, elsewhere: socket.socket, action: str, status: int
) -> None:
    name = fresh()
    swift.inject(redirect(name, status, url_of(elsewhere)))
    with pytest.raises(StoreRedirected, match=r"redirects the request to http://127\.0\.0\.1"):
        ACTIONS[action](store, name)
    assert len([line for line in swift.requests() if name in line]) == 1


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (
            "https://user:word@evil.example.com:8443/x?token=secret",
            "to https://evil.example.com:8443 (302)",
        ),
        ("https://" + "e" * 3000 + ".example.com/", "to https://" + "e" * 200 + " (302)"),
        ("https://evil\u00a0\u00ad.example.com/", "to https://evil??.example.com (302)"),
        ("/elsewhere/on/this/host", "without naming a host (302)"),
        ("https://[::1/", "without naming a host (302)"),
        ("", "without naming a host (302)"),
    ],
)
def test_a_target_in_bounded_printable_text(
    swift: SwiftServer, make_store: MakeStore, target: str, says: str
) -> None:
    swift.inject(redirect("^/auth", 302, target))
    with pytest.raises(StoreRedirected) as caught:
        make_store(swift).open()
    text = str(caught.value)
    assert says in text
    assert text.isprintable()
    assert "word" not in text
    assert "secret" not in text
