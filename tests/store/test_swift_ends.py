"""What a store that is closed leaves behind: nothing."""

import gc

import psutil
import pytest

from agent.errors import StoreNotFound
from agent.store.protocol import Shelf
from agent.store.swift import SwiftSettings, SwiftStore
from tests.stack.swift import SwiftServer

_TIMES = 10


def test_neither_refusals_nor_closed_stores_leave_a_connection(swift: SwiftServer) -> None:
    settings = SwiftSettings(
        auth_url=swift.auth_url, user=swift.user, key=swift.key, container="nobody-has-this"
    )
    process = psutil.Process()
    gc.disable()
    try:
        before = process.num_fds()
        for _ in range(_TIMES):
            store = SwiftStore(settings)
            store.open(create=False)
            for _ in range(2):
                with pytest.raises(StoreNotFound):
                    store.get(Shelf.OBJECTS, "nothing", 100)
            store.close()
        # what pytest.raises caught may still hold the last one
        assert process.num_fds() - before <= 3
    finally:
        gc.enable()
