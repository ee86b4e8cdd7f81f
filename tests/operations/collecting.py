"""Helpers for tests of the collection of orphans. They make stores with orphans of a given age."""

import os
from pathlib import Path
from typing import Any

from agent.model import BackupStatus, ErrorInfo, Record
from agent.operations.gc.collect import GcOperation
from agent.operations.gc.orphans import Orphan
from agent.records.catalogue import Catalogue
from agent.records.object_names import checks_name, new_attempt, record_name, segment_name
from agent.stop import Stop
from agent.store.directory.store import DirectoryStore
from agent.store.protocol import Container, Store
from tests.operations.stored import held, place, put
from tests.records.made import INSTANCE, completed, keyring, record

KEYS = keyring()
OTHER = "5f2c1d84-0d9e-4c7f-9b1e-2f5f3b0c8d11"
GIVEN_UP = ErrorInfo(code="interrupted", message="it was", hint="")
HOUR = 3600.0
DAY = 24 * HOUR
UNFINISHED = (BackupStatus.BUILDING, BackupStatus.DELETING)


def collection(store: Store, *, busy: frozenset[str] | None = frozenset(), **changes: Any) -> Any:
    settings: dict[str, Any] = {"connections": 2, "stop": Stop(), "gap_seconds": 0.0}
    return GcOperation(
        store, Catalogue(store, KEYS), INSTANCE, busy=lambda: busy, **(settings | changes)
    )


def collected(store: Store, **changes: Any) -> list[Orphan]:
    return list(collection(store, **changes).run())


def ours(**changes: Any) -> Record:
    """Return a record of an attempt that carries this instance's mark."""
    return record(**{"attempt": new_attempt(INSTANCE)} | changes)


def ours_completed(parent: Record | None = None, **changes: Any) -> Record:
    return completed(parent, **{"attempt": new_attempt(INSTANCE)} | changes)


def place_segments(store: Store, backup_id: str, attempt: str, count: int = 2) -> None:
    for number in range(count):
        put(store, Container.SEGMENTS, segment_name(backup_id, attempt, number), b"bytes")


def age(folder: DirectoryStore, *beginnings: str, seconds: float = 25 * HOUR) -> None:
    """Make stored files older by `seconds`.

    These are the files with one of `beginnings` in their names, or all files if none is given.
    """
    for path in Path(folder.location.removeprefix("file://")).parent.rglob("*"):
        name = path.relative_to(path.parents[-2]).as_posix()
        if path.is_file() and (not beginnings or any(part in name for part in beginnings)):
            then = path.stat().st_mtime - seconds
            os.utime(path, (then, then))


def names(store: Store) -> set[str]:
    return {name for container in held(store) for name in container}


def one_of_each(store: Store) -> tuple[list[str], set[str]]:
    """Put an orphan of each kind into the store.

    Return their ids, and the names of the objects that a collection must leave.
    """
    lost, older = ours(), ours_completed()
    failed = ours(status=BackupStatus.FAILED, error=GIVEN_UP)
    building, deleting = ours(), ours_completed(status=BackupStatus.DELETING)
    place(store, KEYS, lost, older, failed, building, deleting)
    store.delete(Container.OBJECTS, record_name(lost.id))
    stay = {name for name in names(store) if name.startswith(older.id)}
    stay |= {make(one.id) for make in (record_name, checks_name) for one in (failed, building)}
    place_segments(store, older.id, new_attempt(INSTANCE))
    tested = new_attempt(INSTANCE)
    place_segments(store, tested, "self-test")
    return [lost.id, older.id, failed.id, building.id, deleting.id, tested], stay
