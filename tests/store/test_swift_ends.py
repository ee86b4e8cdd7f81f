"""A closed store leaves no connection behind, even while its errors are still referenced."""

import gc
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from agent.errors import StoreError, StoreNotFound
from agent.store.protocol import Container
from agent.store.swift.login import AuthV1
from agent.store.swift.store import SwiftSettings, SwiftStore
from tests.stack.swift import SwiftServer

_TIMES = 10


@pytest.fixture(autouse=True)
def by_hand() -> Iterator[None]:
    """Disable the garbage collector, so that it closes no connection by chance."""
    gc.disable()
    yield
    gc.enable()


def store_of(swift: SwiftServer) -> SwiftStore:
    return SwiftStore(
        SwiftSettings(
            AuthV1(swift.auth_url, swift.user, swift.key),
            container="nobody-has-this",
            timeout_seconds=0.5,
            attempts=2,
            backoff_seconds=0.01,
        )
    )


def test_neither_refusals_nor_closed_stores_leave_a_connection(swift: SwiftServer) -> None:
    """The traceback of an error refers to the connection, for a long time under Python 3.13."""
    process, errors = psutil.Process(), []
    before = process.num_fds()
    for _ in range(_TIMES):
        store = store_of(swift)
        store.open(create=False)
        store.limits()
        for _ in range(2):
            with pytest.raises(StoreNotFound) as caught:
                store.get(Container.OBJECTS, "nothing", 100)
            errors.append(caught.value)
        store.close()
    assert process.num_fds() <= before
    assert len(errors) == 2 * _TIMES


@pytest.mark.parametrize(
    "rule",
    [
        {"status": 503},
        {"status": 200, "body": " " * (5 << 20)},
        {"status": 200, "headers": {"Etag": "0" * 32}, "body": "x"},
        {"action": "cut"},
        {"action": "stall", "seconds": 5},
    ],
    ids=lambda rule: str(rule)[:40],
)
def test_nor_does_any_other_failure(swift: SwiftServer, rule: dict[str, Any]) -> None:
    process, errors = psutil.Process(), []
    before = process.num_fds()
    swift.inject([{"match": "nobody-has-this", "times": 99, **rule}])
    store = store_of(swift)
    for act in (
        lambda: store.get(Container.OBJECTS, "nothing", 100),
        lambda: store.put(Container.OBJECTS, "nothing", [memoryview(b"x")]),
        lambda: list(store.list(Container.OBJECTS)),
    ):
        with pytest.raises(StoreError) as caught:
            act()
        errors.append(caught.value)
    store.close()
    assert process.num_fds() <= before
    assert len(errors) == 3
