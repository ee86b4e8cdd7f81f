"""What a self-test has put into the store, so that all of it can be taken away again.

Names are those of a backup with an id that no record has, and of an attempt `self-test`: what
a killed self-test leaves is in no list, and can be told from the rest of a backup. The id is
marked as this instance's, as those of attempts are, so that `gc` takes it away.
"""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from agent.errors import Interrupted
from agent.records.object_names import SELF_TEST, attempt_prefix, new_attempt, segment_name
from agent.store.protocol import Container, Store

_LANES = 4
_PATIENCE_SECONDS = 30.0


class Remains:
    """Objects of one made-up backup."""

    def __init__(self, store: Store, instance_id: str) -> None:
        self._store = store
        self._names: set[tuple[Container, str]] = set()
        self._changed = threading.Condition()
        self._flying = 0
        self._ended = False
        self.backup_id = new_attempt(instance_id)

    @property
    def prefix(self) -> str:
        """How the names of all its segments begin."""
        return attempt_prefix(self.backup_id, SELF_TEST)

    def segment(self, number: int) -> str:
        return segment_name(self.backup_id, SELF_TEST, number)

    def object(self, kind: str) -> str:
        return f"{self.backup_id}.{kind}"

    def put(self, shelf: Container, name: str, parts: Sequence[memoryview]) -> str:
        """Store an object that `remove` takes away; its MD5."""
        # before it is there: a put that fails may have stored it
        self.expect(shelf, name)
        with self._flight():
            return self._store.put(shelf, name, parts)

    def expect(self, shelf: Container, name: str) -> None:
        """Something is about to be stored under that name."""
        self._names.add((shelf, name))

    def end(self) -> None:
        """Let nothing more be put, wait for what is on its way, and delete all of it.

        Whoever is interrupted while threads are sending doesn't wait for them.
        """
        with self._changed:
            self._ended = True
            self._changed.wait_for(lambda: not self._flying, _PATIENCE_SECONDS)
        self.remove()

    @contextmanager
    def _flight(self) -> Iterator[None]:
        with self._changed:
            if self._ended:
                raise Interrupted("the self-test is ending")
            self._flying += 1
        try:
            yield
        finally:
            with self._changed:
                self._flying -= 1
                self._changed.notify_all()

    def remove(self) -> None:
        """Delete all of it; StoreError where one can't be."""
        with ThreadPoolExecutor(_LANES, "remove") as workers:
            for shelf, name in workers.map(self._delete, sorted(self._names, key=str)):
                self._names.discard((shelf, name))

    def _delete(self, one: tuple[Container, str]) -> tuple[Container, str]:
        self._store.delete(*one)
        return one
