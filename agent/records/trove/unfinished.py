"""Markers of backups that are being made, and the removal of what killed runs left.

A run stores its marker before its first segment, and removes it before it ends with status 0. So a
backup with a marker is unknown to Trove, which would never delete it. A later run removes all of
it, if the run that left it is certainly dead:

- It ran on the same datadir since this machine was booted. The later run holds the lock of that
  datadir, so the earlier one has ended. The id of the attempt shows both.
- Or its marker was not stored again for a day. A live run stores it every hour.
"""

import logging
import math
import time
from datetime import UTC, datetime
from functools import partial
from itertools import chain, islice
from typing import Final

from agent.errors import Fenced, StoreError, StoreNotFound, TokenExpired
from agent.records.object_names import is_attempt_of
from agent.records.trove.names import ATTEMPT, UNFINISHED, TroveNames, marked
from agent.store.protocol import Container, StoredObject
from agent.store.swift.objects import ObjectFacts
from agent.store.swift.store import SwiftStore
from agent.threads import Workers

log = logging.getLogger(__name__)

_REFRESH_SECONDS: Final = 3600.0
_DEAD_AFTER_SECONDS: Final = 86400.0
_MOST_MARKERS: Final = 1000  # that one run looks at
_GONE_LOOKS: Final = 2
_BATCH: Final = 1000  # rows of a listing in memory at a time


class Marker:
    """The marker of one attempt. `store` is a view on the container of the backup."""

    def __init__(self, store: SwiftStore, names: TroveNames) -> None:
        self._store = store
        self._name = names.marker
        self._stored_at = 0.0
        self._gone = 0

    def put(self) -> None:
        """Store the marker."""
        self._stored_at = time.monotonic()
        self._store.put(Container.OBJECTS, self._name, [])

    def keep(self) -> None:
        """Check that the marker is there, and store it again if it is an hour old.

        A store that doesn't answer is ignored: the segments will show if it is lost. A store may
        once report an object as missing although it has it, so two such answers in a row count.

        Raises:
            Fenced: it is not there, so another run may have removed segments.
            TokenExpired: nothing can be stored any more.
        """
        try:
            self._store.stat(Container.OBJECTS, self._name)
            self._gone = 0
            if time.monotonic() - self._stored_at > _REFRESH_SECONDS:
                self.put()
        except StoreNotFound as error:
            self._gone += 1
            if self._gone >= _GONE_LOOKS:
                raise Fenced(
                    f"the marker {self._name} was removed while the backup was made",
                    hint="find out who deletes objects in the container, and make another backup",
                ) from error
        except TokenExpired:
            raise
        except StoreError as error:
            log.info("can't look up the marker of the backup: %s", error)

    def condemn(self) -> None:
        """Store the marker with a content: all of the backup is to be removed, at any age."""
        self._store.put(Container.OBJECTS, self._name, [memoryview(b"failed\n")])

    def remove(self) -> None:
        """Remove the marker. It is certainly gone when this returns."""
        self._store.delete(Container.OBJECTS, self._name)


def remove_leftovers(store: SwiftStore, mark: str | None, connections: int) -> None:
    """Remove what killed runs left in the container of `store`.

    `mark` is the text by which an attempt of this datadir since the last boot is known. The caller
    holds the lock of the datadir. If the filesystem has no locks, it is None. An error is only
    logged, because the next run tries again.
    """
    try:
        now = store.clock()
        for row in islice(store.list(Container.OBJECTS, UNFINISHED), _MOST_MARKERS):
            names = marked(row.name)
            own = bool(mark and names and is_attempt_of(names.attempt, mark))
            if names and (own or now - _stored_at(row) > _DEAD_AFTER_SECONDS):
                _remove(store, names, connections, now=None if own else now)
    except StoreError as error:
        log.warning("can't remove what an earlier run left in the store: %s", error)


def _stored_at(row: StoredObject) -> float:
    """Return the time of a row in Unix seconds, or infinity if it has none."""
    try:
        stored = datetime.fromisoformat(row.modified)
    except ValueError:
        return math.inf
    return stored.replace(tzinfo=stored.tzinfo or UTC).timestamp()


def _remove(store: SwiftStore, names: TroveNames, connections: int, *, now: float | None) -> None:
    """Remove what a dead run left.

    `now` is None for a run on this datadir since the last boot. Else it is the store's time.
    """
    marker = _describe(store, names.marker)
    if marker is None or (now is not None and now - marker.stored_at < _DEAD_AFTER_SECONDS):
        return  # the listing lags
    found = _describe(store, names.object_name)
    if found is not None and found.metadata.get(ATTEMPT) != names.attempt:
        log.warning("the object of backup %s is not that of its marker: both stay", names.backup_id)
        return
    # A run stores an empty marker before its object. So a newer one is a request that the store
    # processed late, after the run had removed the marker: the backup is complete. The object of
    # another machine's run stays in any case.
    dead = now is None and found is not None and 0 < marker.stored_at <= found.stored_at
    if found is None or dead or marker.size:
        log.warning("removing what a killed run left of backup %s", names.backup_id)
        remove_parts(store, names, connections)
    store.delete(Container.OBJECTS, names.marker)


def _describe(store: SwiftStore, name: str) -> ObjectFacts | None:
    try:
        return store.describe(Container.OBJECTS, name)
    except StoreNotFound:
        return None


def remove_parts(store: SwiftStore, names: TroveNames, connections: int, segments: int = 0) -> None:
    """Remove the object and all parts of an attempt, of which `segments` were sent at most.

    A request that is under way may still store a segment, and the listing may lag. So segments and
    the appendix are deleted by their names, too. In Swift a delete is then newer than the write,
    and wins.
    """
    store.delete(Container.OBJECTS, names.object_name)
    remove = partial(store.delete, Container.OBJECTS)
    listed = (row.name for row in store.list(Container.OBJECTS, names.prefix))
    sent = map(names.segment_name, range(segments))
    every = chain(listed, sent, [names.appendix] if segments else ())
    with Workers(connections, "remove") as workers:
        while batch := list(islice(every, _BATCH)):
            list(workers.map(remove, batch))
