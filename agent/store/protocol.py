"""What every object store promises; the contract suite in tests/store holds each to it.

A store has one container for objects and one for segments (`<container>_segments`).
Every method may be called from several threads at once, and raises nothing but the
StoreError family. A method returns only when the store has confirmed what it says.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from typing import Final, NamedTuple, Protocol, Self


class Container(Enum):
    """Which of a store's two containers an object lies in."""

    OBJECTS = ""
    SEGMENTS = "_segments"


class StoredObject(NamedTuple):
    """One row of a listing: `size` in bytes, `etag` as lower-case hex MD5.

    A manifest's row has the size and ETag of what it joins, or (in Ceph's gateway) others.
    """

    name: str
    size: int
    etag: str
    modified: str


class Stat(NamedTuple):
    """What a store says of one object; `size` is None if it doesn't tell.

    `etag` is lower-case hex without quotes: the MD5 of the bytes, of a manifest `manifest_etag`.
    `size` of a manifest is that of all that it joins.
    """

    etag: str
    size: int | None


class ManifestEntry(NamedTuple):
    """One object that a manifest joins; `nested` where it is a manifest itself."""

    name: str
    size: int
    etag: str
    nested: bool = False


def manifest_etag(entries: Sequence[ManifestEntry]) -> str:
    """The ETag Swift gives a manifest: the MD5 (hex) of its entries' ETags, joined."""
    joined = "".join(entry.etag for entry in entries)
    return hashlib.md5(joined.encode(), usedforsecurity=False).hexdigest()


def manifest_json(container: str, entries: Sequence[ManifestEntry]) -> bytes:
    """Return the rows of a manifest, as Swift takes them for a Static Large Object."""
    rows = [
        {"path": f"/{container}/{entry.name}", "size_bytes": entry.size, "etag": entry.etag}
        for entry in entries
    ]
    return json.dumps(rows).encode()


class StoreLimits(NamedTuple):
    """What one manifest and one object may hold; `nesting` says whether manifests may nest.

    Without `announced` the store does not tell, and these are what is taken for granted.
    """

    manifest_entries: int
    object_bytes: int
    nesting: bool
    announced: bool = True


_TOLD_CONTAINERS: Final = 10  # in a message
_LONGEST_TOLD: Final = 256


def no_container(name: str, where: str, there: Iterable[str]) -> str:
    """Return the message that `where` lacks a container and has those `there`, as far as known."""
    others = sorted(
        one[:_LONGEST_TOLD] for one in there if not one.endswith(Container.SEGMENTS.value)
    )
    told = ", ".join(others[:_TOLD_CONTAINERS])
    more = f" and {len(others) - _TOLD_CONTAINERS} more" if len(others) > _TOLD_CONTAINERS else ""
    return f"there is no container {name} in {where}" + (f", only {told}{more}" if told else "")


class Interruption(Protocol):
    """What may end a store's calls before their time: agent.stop.Stop is one."""

    def check(self) -> None:
        """Raise the cause if there is one."""

    def on_stop(self, action: Callable[[], None]) -> AbstractContextManager[None]:
        """Have `action` called once on a stop that comes inside the block, or came before."""


class Uninterrupted:
    """The Interruption that never comes."""

    def check(self) -> None:
        """Raise nothing."""

    def on_stop(self, action: Callable[[], None]) -> AbstractContextManager[None]:
        """Never call `action`."""
        return nullcontext()


class Store(Protocol):
    """Objects by name, and manifests that join segments into one object."""

    def bound(self, stop: Interruption) -> Self:
        """The same store, whose calls end at once when `stop` is requested, with its cause.

        What was under way may still reach the store. Connections and token are shared, and
        `close` and `abort` of either concern both.
        """

    @property
    def location(self) -> str:
        """The public URL of the object container, for `locationRef`; no trailing slash."""

    def open(self, *, create: bool = True) -> None:
        """Authenticate; make both containers where missing, if to `create`.

        Who only reads makes nothing, and needs no right to.
        """

    def limits(self) -> StoreLimits:
        """Return what one object may hold; only making a backup needs to know."""

    def put(self, shelf: Container, name: str, parts: Sequence[memoryview]) -> str:
        """Store the joined `parts` as one object and return its MD5 in hex.

        The MD5 is computed here and compared with the store's ETag: StoreMismatch if they
        differ. Retries resend the same parts, so they may be reused only after this returns.
        """

    def put_manifest(
        self,
        shelf: Container,
        name: str,
        entries: Sequence[ManifestEntry],
        headers: Mapping[str, str],
    ) -> str:
        """Join segments (all on the segment shelf) as object `name`; return its ETag in hex.

        The ETag is `manifest_etag`. StoreMismatch if the store computes another, or if an
        entry is missing or differs: compared by the store, or here if the store doesn't.
        """

    def get(self, shelf: Container, name: str, limit: int) -> bytes:
        """Return an object of at most `limit` bytes, the newest copy of it (X-Newest).

        StoreNotFound where there is none, StoreMismatch where it is larger than `limit`.
        """

    def get_into(self, shelf: Container, name: str, buffer: memoryview) -> None:
        """Read an object of exactly `len(buffer)` bytes into `buffer`.

        StoreMismatch where its length or its MD5 differs from what the store announces.
        """

    def stat(self, shelf: Container, name: str) -> Stat:
        """Ask for an object's ETag and size, and move none of its bytes.

        Not by a listing: the newest copy itself answers (X-Newest). StoreNotFound if there is none.
        """

    def list(self, shelf: Container, prefix: str = "") -> Iterator[StoredObject]:
        """All objects whose name begins with `prefix`, in order of their names.

        StoreNotFound if there is no such container; its message names those that are there.
        """

    def delete(self, shelf: Container, name: str) -> None:
        """Remove one object (of a manifest only itself); nothing happens where none is."""

    def clock(self) -> float:
        """The store's own time in Unix seconds, perhaps cut to whole ones; after `open`."""

    def abort(self) -> None:
        """Repeat nothing from now on, and wait for no repetition: the process is to end."""

    def close(self) -> None:
        """Close all connections."""
