"""The protocol of an object store, which the contract suite in tests/store checks for each store.

A store has one container for objects and one for segments (`<container>_segments`). Several threads
may call every method at once. A method raises only errors of the StoreError family, or the cause of
the stop to which the store is bound. It returns only after the store has confirmed the result.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from typing import Final, NamedTuple, Protocol, Self

from agent.errors import StoreMismatch


class Container(Enum):
    """One of a store's two containers, with the suffix of the container's name as its value."""

    OBJECTS = ""
    SEGMENTS = "_segments"


class StoredObject(NamedTuple):
    """One row of a listing.

    `size` is in bytes and `etag` is the lower-case hex MD5. `modified` is the text that the store
    gave. For a manifest, Swift lists the size and the ETag of the joined objects. Ceph's gateway
    may list others.
    """

    name: str
    size: int
    etag: str
    modified: str


class Stat(NamedTuple):
    """The ETag and the size of one object, as the store reports them.

    `etag` is lower-case hex without quotes. It is the MD5 of the bytes, and for a manifest it is
    `manifest_etag`. `size` is in bytes, and None if the store reports no size. For a manifest it is
    the size of all joined objects together.
    """

    etag: str
    size: int | None


class ManifestEntry(NamedTuple):
    """One object that a manifest joins, `nested` if it is a manifest itself."""

    name: str
    size: int
    etag: str
    nested: bool = False


def check_entry(what: str, entry: ManifestEntry, found: Stat) -> None:
    """Compare a stored segment with the entry that names it, during the action `what`.

    Raises:
        StoreMismatch: the segment has another size or ETag.
    """
    if found != Stat(entry.etag, entry.size):
        raise StoreMismatch(
            f"{what}: {entry.name} has {found.size} bytes with ETag {found.etag[:40]}, "
            f"not {entry.size} with {entry.etag[:40]}"
        )


def manifest_etag(entries: Sequence[ManifestEntry]) -> str:
    """Return the ETag that Swift gives to a manifest."""
    return joined_etag(entry.etag for entry in entries)


def joined_etag(etags: Iterable[str]) -> str:
    """Return the ETag of a manifest with entries of these ETags: the MD5 (hex) of them, joined."""
    return hashlib.md5("".join(etags).encode(), usedforsecurity=False).hexdigest()


def manifest_json(container: str, entries: Sequence[ManifestEntry]) -> bytes:
    """Return the rows of a manifest in the JSON form that Swift accepts.

    See https://docs.openstack.org/swift/latest/overview_large_objects.html (Static Large Objects).
    """
    rows = [
        {"path": f"/{container}/{entry.name}", "size_bytes": entry.size, "etag": entry.etag}
        for entry in entries
    ]
    return json.dumps(rows).encode()


class StoreLimits(NamedTuple):
    """The limits of a store for one manifest and for one object.

    `manifest_entries` is the number of entries of one manifest, `object_bytes` the size of one
    object in bytes. `nesting` is True if a manifest may join other manifests. `announced` is False
    if the store does not report its limits. The values are then assumptions.

    A store that joins nothing has these limits too. The ETag in the record is computed as if its
    segments were joined.
    """

    manifest_entries: int
    object_bytes: int
    nesting: bool
    announced: bool = True


# How many names of containers a message shows, and how many characters of each.
_SHOWN_CONTAINERS: Final = 10
_SHOWN_CHARACTERS: Final = 256


def no_container(name: str, where: str, there: Iterable[str]) -> str:
    """Return the message that `where` has no container `name`.

    The message also lists up to 10 of the containers in `there`, which may be empty if the caller
    does not know them. Containers for segments are left out.
    """
    others = sorted(
        one[:_SHOWN_CHARACTERS] for one in there if not one.endswith(Container.SEGMENTS.value)
    )
    shown = ", ".join(others[:_SHOWN_CONTAINERS])
    more = f" and {len(others) - _SHOWN_CONTAINERS} more" if len(others) > _SHOWN_CONTAINERS else ""
    return f"there is no container {name} in {where}" + (f", only {shown}{more}" if shown else "")


class Interruption(Protocol):
    """A request to end the calls of a store early, such as agent.stop.Stop."""

    def check(self) -> None:
        """Raise the cause of the stop if a stop was requested."""

    def on_stop(self, action: Callable[[], None]) -> AbstractContextManager[None]:
        """Call `action` once if a stop is requested inside the block or was requested before it."""


class Uninterrupted:
    """An Interruption that never requests a stop."""

    def check(self) -> None:
        """Raise nothing."""

    def on_stop(self, action: Callable[[], None]) -> AbstractContextManager[None]:
        """Never call `action`."""
        return nullcontext()


class Joiner(Protocol):
    """A store that can join segments into one object, for readers other than the agent."""

    def put_manifest(
        self,
        container: Container,
        name: str,
        entries: Sequence[ManifestEntry],
        headers: Mapping[str, str],
        *,
        segments: Container = Container.SEGMENTS,
    ) -> str:
        """Join segments as object `name` and return its ETag in hex.

        All segments must be in the container `segments`. The ETag is `manifest_etag`. The store
        compares the entries with its objects. If a store does not compare them, this method does.

        Raises:
            StoreMismatch: the store computes another ETag, or an entry is missing or differs.
        """


class Store(Protocol):
    """A store that holds objects by name."""

    def bound(self, stop: Interruption) -> Self:
        """Return a view of this store that ends its calls at once when `stop` is requested.

        The calls then raise the cause of the stop. A request that had begun may still reach the
        store. The view shares connections and token with this store, so `close` and `abort` of
        either act on both.
        """

    @property
    def location(self) -> str:
        """Return the public URL of the object container, without a trailing slash.

        It is used for `locationRef`.
        """

    @property
    def joiner(self) -> Joiner | None:
        """Return the store's way to join segments, or None if it joins nothing.

        A store that joins nothing has segments that any reader can concatenate, such as files.
        """

    def open(self, *, create: bool = True) -> None:
        """Authenticate, and create both containers if they are missing and `create` is True.

        A caller that makes no backup passes False. Then nothing is created, and no right to create
        is needed. A missing container may raise StoreNotFound here or only later.
        """

    def limits(self) -> StoreLimits:
        """Return the limits of the store, which only the making of a backup needs."""

    def put(self, container: Container, name: str, parts: Sequence[memoryview]) -> str:
        """Store the joined `parts` as one object and return its MD5 in hex.

        A retry sends the same parts again, so the caller must not change them before the call
        returns.

        Raises:
            StoreMismatch: the MD5 that this method computes differs from the store's ETag.
        """

    def get(self, container: Container, name: str, limit: int) -> bytes:
        """Return an object of at most `limit` bytes, and never an older copy of it.

        Raises:
            StoreNotFound: there is no such object.
            StoreMismatch: it is larger than `limit`, or the received bytes differ from the MD5 that
                the store announces.
        """

    def get_into(self, container: Container, name: str, buffer: memoryview) -> None:
        """Read an object of exactly `len(buffer)` bytes into `buffer`.

        Raises:
            StoreNotFound: there is no such object.
            StoreMismatch: the object has another length, or the received bytes differ from the
                length or the MD5 that the store announces.
        """

    def stat(self, container: Container, name: str) -> Stat:
        """Return an object's ETag and size without moving its bytes.

        The answer comes from the object itself and not from a listing. It is never about an older
        copy.

        Raises:
            StoreNotFound: there is no such object.
        """

    def list(self, container: Container, prefix: str = "") -> Iterator[StoredObject]:
        """Yield all objects with names that begin with `prefix`, in order of their names.

        Raises:
            StoreNotFound: there is no such container. The message names the containers that exist.
        """

    def delete(self, container: Container, name: str) -> None:
        """Delete one object, or do nothing if there is no such object.

        If the object is a manifest, the objects that it joins stay.
        """

    def clock(self) -> float:
        """Return the store's own time in Unix seconds, which may be rounded down to whole seconds.

        Call it after `open`.
        """

    def abort(self) -> None:
        """Stop all retries and the waits for them, because the process is about to end."""

    def close(self) -> None:
        """Close all connections."""
