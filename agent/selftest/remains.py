"""The objects that a self-test has put into the store, so that all of them can be deleted again.

Their names are those of a backup with an id that no record has, and of the attempt `self-test`.
So the objects that a killed self-test leaves are in no list of backups, and can be distinguished
from those of a real backup. The id has the mark of this instance, as the ids of attempts have, so
that `gc` deletes the objects.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from agent.errors import Interrupted
from agent.records.object_names import SELF_TEST, attempt_prefix, new_attempt, segment_name
from agent.store.protocol import Container, Store
from agent.threads import Workers

_LANES = 4
_PATIENCE_SECONDS = 30.0


class Remains:
    """The objects of one artificial backup."""

    def __init__(self, store: Store, instance_id: str) -> None:
        self._store = store
        self._names: set[tuple[Container, str]] = set()
        self._changed = threading.Condition()
        self._flying = 0
        self._ended = False
        self.backup_id = new_attempt(instance_id)

    @property
    def prefix(self) -> str:
        """Return the prefix of all its segments' names."""
        return attempt_prefix(self.backup_id, SELF_TEST)

    def segment(self, number: int) -> str:
        return segment_name(self.backup_id, SELF_TEST, number)

    def object(self, kind: str) -> str:
        return f"{self.backup_id}.{kind}"

    def put(self, container: Container, name: str, parts: Sequence[memoryview]) -> str:
        """Store an object that `remove` will delete, and return its MD5."""
        # before the put: a put that fails may have stored the object
        self.expect(container, name)
        with self._flight():
            return self._store.put(container, name, parts)

    def expect(self, container: Container, name: str) -> None:
        """Note the name of an object that will be stored, so that `remove` deletes it."""
        self._names.add((container, name))

    def end(self) -> None:
        """Refuse further puts, wait for running ones, and delete all objects.

        An interrupted caller does not wait for its threads, which may still be sending. So this
        method waits for their puts, for at most 30 seconds.
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
        """Delete all objects. Raise StoreError if one can't be deleted."""
        with Workers(_LANES, "remove") as workers:
            for container, name in workers.map(self._delete, sorted(self._names, key=str)):
                self._names.discard((container, name))

    def _delete(self, one: tuple[Container, str]) -> tuple[Container, str]:
        self._store.delete(*one)
        return one
