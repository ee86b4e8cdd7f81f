"""Refused logins: one for all threads, none too early, and named in the error."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from agent.errors import Interrupted, StoreBusy, StoreDenied, StoreError, StoreUnreachable
from agent.stop import Stop
from agent.store.protocol import Container
from agent.store.swift.store import SwiftStore
from tests.stack.process import free_port, poll
from tests.stack.swift import SwiftServer
from tests.store.conftest import MakeStore
from tests.store.contract import fresh, views
from tests.store.test_swift import logins

THREADS = 11
AUTH = "^/auth"


def outcomes(store: SwiftStore, name: str) -> list[bytes | StoreError]:
    """Read an object in many threads at once, and return the bytes or the error of each."""
    together = threading.Barrier(THREADS)

    def read(_: int) -> bytes | StoreError:
        together.wait()
        try:
            return store.get(Container.OBJECTS, name, 10)
        except StoreError as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(read, range(THREADS)))


@pytest.fixture
def name(store: SwiftStore) -> str:
    """Store an object and return its name."""
    name = fresh()
    store.put(Container.OBJECTS, name, views(b"here"))
    return name


def refusal(status: int, times: int, **headers: str) -> dict[str, Any]:
    return {"match": AUTH, "status": status, "times": times, "headers": headers}


@pytest.mark.parametrize("status", [429, 498, 503])
def test_one_login_for_all_threads_and_none_before_its_time(
    swift: SwiftServer, make_store: MakeStore, name: str, status: int
) -> None:
    before, started = logins(swift), time.monotonic()
    swift.inject([refusal(status, 1, **{"Retry-After": "2"})])
    assert outcomes(make_store(swift), name) == [b"here"] * THREADS
    assert time.monotonic() - started >= 2
    assert logins(swift) == before + 2


def test_refused_for_good_each_thread_has_its_attempts_and_they_share_the_logins(
    swift: SwiftServer, make_store: MakeStore, name: str
) -> None:
    before = logins(swift)
    swift.inject([refusal(429, 99, **{"Retry-After": "1"})])
    found = outcomes(make_store(swift, attempts=3), name)
    assert all(isinstance(one, StoreBusy) for one in found)
    assert {str(one) for one in found} == {"log in to the store: the store answered 429"}
    # a thread that comes slightly too late begins another round
    assert logins(swift) - before <= 4


def test_threads_that_wait_for_a_login_share_whatever_ends_it(
    swift: SwiftServer, make_store: MakeStore, name: str
) -> None:
    before = logins(swift)
    swift.inject([{"match": AUTH, "action": "stall", "seconds": 0.5, "times": 99}])
    found = outcomes(make_store(swift, key="wrong-secret"), name)
    assert all(isinstance(one, StoreDenied) for one in found)
    assert all("wrong-secret" not in repr(one) for one in found)
    assert logins(swift) == before + 1


def test_a_login_that_is_stopped_is_nobody_elses_failure(
    swift: SwiftServer, make_store: MakeStore, name: str
) -> None:
    store, stop, before = make_store(swift), Stop(), logins(swift)
    swift.inject([{"match": AUTH, "action": "stall", "seconds": 30}])
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(store.bound(stop).get, Container.OBJECTS, name, 10)
        poll("it logs in", lambda: logins(swift) == before + 1, 10)
        second = pool.submit(store.get, Container.OBJECTS, name, 10)
        stop.request(Interrupted("told to stop"))
        with pytest.raises(Interrupted):
            first.result(10)
        assert second.result(10) == b"here"


@pytest.mark.parametrize(
    "act",
    [
        lambda store: store.limits(),
        lambda store: store.open(create=False),
        lambda store: list(store.list(Container.OBJECTS)),
        lambda store: store.location,
    ],
    ids=["limits", "open", "list", "location"],
)
def test_the_error_names_the_login_and_not_what_wanted_it(
    swift: SwiftServer, make_store: MakeStore, act: Callable[[SwiftStore], Any]
) -> None:
    swift.inject([refusal(503, 9)])
    with pytest.raises(StoreBusy, match=r"^log in to the store: the store answered 503"):
        act(make_store(swift, attempts=1))
    nowhere = make_store(swift, auth_url=f"http://127.0.0.1:{free_port()}/auth/v1.0", attempts=1)
    with pytest.raises(StoreUnreachable, match=r"^log in to the store: "):
        act(nowhere)
