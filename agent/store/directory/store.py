"""A plain folder as a Store, `file:///path`: no server, no account, files that `cat` can join.

The containers are folders under it, names are paths under those (agent/store/directory/paths.py),
and a manifest's file holds its JSON. What a method has done is on the disk when it returns: bytes
are written to a file that no listing shows, and synced; it is moved to its name, and the folder
is synced, and so is each folder that was made for it. docs/format.md describes it.
"""

import copy
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from heapq import nsmallest
from pathlib import Path
from typing import Final, NamedTuple, Self
from urllib.parse import quote

from agent.errors import StoreError, StoreMismatch, StoreNotFound, StoreRejected
from agent.store.directory.etags import (
    Etag,
    etag_of,
    forget_beside,
    holds,
    keep,
    keep_beside,
    kept,
)
from agent.store.directory.files import Folder, read_into, reading, translated, write_all
from agent.store.directory.paths import Place, component, container, place
from agent.store.protocol import (
    Container,
    Interruption,
    ManifestEntry,
    Stat,
    StoredObject,
    StoreLimits,
    Uninterrupted,
    manifest_etag,
    manifest_json,
    no_container,
)

_LIMITS: Final = StoreLimits(manifest_entries=1000, object_bytes=5 << 30, nesting=True)  # as Swift
_PAGE: Final = 20_000  # rows of one folder that a listing holds in memory
_LATEST: Final = 253_402_300_799.0  # the last second of the year 9999


class DirectoryStore:
    """agent.store.protocol.Store in the folder `root`, an absolute path, made where missing."""

    def __init__(self, root: Path, container_name: str) -> None:
        self._root = root
        self._folder = Folder(root)
        self._container = container(container_name)
        self._page_rows = _PAGE
        self._stop: Interruption = Uninterrupted()

    def bound(self, stop: Interruption) -> Self:
        """As the protocol says, between two pieces of about 1 MiB: the system ends no write."""
        view = copy.copy(self)
        view._stop = stop
        return view

    @property
    def location(self) -> str:
        return f"file://{quote(str(self._root / self._container))}"

    def open(self, *, create: bool = True) -> None:
        """As the protocol says; to create also removes what processes that died were writing.

        Without, StoreNotFound where there is no such folder or container.
        """
        with self._doing(f"open {self._root}"):
            if create:
                self._folder.make_root()
            for shelf in Container:
                if create:
                    self._folder.make((self._in(shelf),))
                    self._folder.sweep(self._in(shelf))
                self._check_container(shelf)

    def limits(self) -> StoreLimits:
        return _LIMITS

    def put(self, shelf: Container, name: str, parts: Sequence[memoryview]) -> str:
        """As the protocol says; the MD5 is of the bytes as they were written."""
        return self._put(shelf, name, parts, Etag)

    def put_manifest(
        self,
        shelf: Container,
        name: str,
        entries: Sequence[ManifestEntry],
        headers: Mapping[str, str],
    ) -> str:
        """As the protocol says; `headers` are for readers of Swift, and not kept."""
        what = f"put {self._in(shelf)}/{name}"
        if not 0 < len(entries) <= _LIMITS.manifest_entries:
            raise StoreRejected(f"{what}: a manifest can't join {len(entries)} objects")
        for entry in entries:
            self._check_entry(what, entry)
        etag = Etag(manifest_etag(entries), sum(entry.size for entry in entries))
        rows = manifest_json(self._in(Container.SEGMENTS), entries)
        return self._put(shelf, name, [memoryview(rows)], lambda _md5: etag)

    def get(self, shelf: Container, name: str, limit: int) -> bytes:
        """As the protocol says; of a manifest it gives the JSON, not the joined bytes."""
        with self._reading(shelf, name) as there:
            if there.size > limit:
                raise StoreMismatch(f"{there.what}: larger than the expected {limit} bytes")
            content = bytearray(there.size)
            there.fill(memoryview(content))
        return bytes(content)

    def get_into(self, shelf: Container, name: str, buffer: memoryview) -> None:
        with self._reading(shelf, name) as there:
            if there.size != buffer.nbytes:
                raise StoreMismatch(f"{there.what}: {there.size} bytes, not {buffer.nbytes}")
            there.fill(buffer)
            _not_again(shelf, there.descriptor)

    def stat(self, shelf: Container, name: str) -> Stat:
        with self._reading(shelf, name) as there:
            etag = there.etag()
        return Stat(etag.md5, there.size if etag.joined is None else etag.joined)

    def list(self, shelf: Container, prefix: str = "") -> Iterator[StoredObject]:
        """As the protocol says. What can't be one of its objects is left out.

        At most `_PAGE` names of a folder are held; a larger one is read once for each so many.
        """
        *above, begin = prefix.split("/")
        stem = "".join(f"{part}/" for part in above)
        there = _place(stem + "x")
        with self._doing(f"list {self._in(shelf)}"):
            self._check_container(shelf)
            if there is not None:
                folders = (self._in(shelf), *there.folders)
                yield from self._walk(folders, stem, begin.encode(errors="surrogatepass"))

    def delete(self, shelf: Container, name: str) -> None:
        """As the protocol says; folders go with the last file in them."""
        there = place(name)
        folders = (self._in(shelf), *there.folders)
        with self._doing(f"delete {self._in(shelf)}/{name}"):
            with suppress(FileNotFoundError), self._folder.enter(folders) as folder:
                with suppress(FileNotFoundError):
                    os.unlink(there.file, dir_fd=folder)
                forget_beside(folder, there.file)
                os.fsync(folder)
            with suppress(FileNotFoundError):
                self._folder.remove_empty(folders)

    def clock(self) -> float:
        """The filesystem's time in Unix seconds, by which the files are dated."""
        container_name = self._in(Container.OBJECTS)
        with (
            self._doing(f"write in {container_name}"),
            self._folder.temporary(container_name) as (descriptor, _),
        ):
            os.write(descriptor, b"0")
            return os.fstat(descriptor).st_mtime

    def abort(self) -> None:
        """Nothing to do: a folder is asked once, and nothing is repeated."""

    def close(self) -> None:
        """Nothing to do: no file stays open after a method."""

    def _in(self, shelf: Container) -> str:
        return self._container + shelf.value

    def _check_container(self, shelf: Container) -> None:
        name = self._in(shelf)
        try:
            self._folder.check((name,))
        except FileNotFoundError as error:
            raise self._missing(name) from error

    def _missing(self, name: str) -> StoreNotFound:
        """Return the error that says which container or folder there isn't."""
        try:
            there = self._folder.containers()
        except FileNotFoundError:
            return StoreNotFound(f"there is no folder {self._root}")
        return StoreNotFound(no_container(name, str(self._root), there))

    @contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        """The system's errors inside the block as StoreError, unless it is to be stopped."""
        self._stop.check()
        try:
            with translated(what):
                yield
        except StoreError:
            self._stop.check()
            raise

    def _put(
        self,
        shelf: Container,
        name: str,
        parts: Sequence[memoryview],
        etag_for: Callable[[str], Etag],
    ) -> str:
        there, inside, moved = place(name), self._in(shelf), False

        def settle(temporary: str, beside: Etag | None) -> None:
            def then(folder: int) -> None:
                nonlocal moved
                moved = True
                if beside is not None:
                    keep_beside(folder, there.file, beside)

            self._folder.settle(inside, temporary, there.folders, there.file, then)

        try:
            return self._write(f"put {inside}/{name}", shelf, parts, etag_for, settle)
        except StoreError as error:
            error.without_effect = not moved
            raise

    def _write(
        self,
        what: str,
        shelf: Container,
        parts: Sequence[memoryview],
        etag_for: Callable[[str], Etag],
        settle: Callable[[str, Etag | None], None],
    ) -> str:
        """Write and sync a temporary file; `settle` gives it its name, and an ETag beside it."""
        with (
            self._doing(what),
            self._folder.temporary(self._in(shelf)) as (descriptor, temporary),
        ):
            digest = hashlib.md5(usedforsecurity=False)
            for part in parts:
                self._stop.check()
                digest.update(part)
                write_all(descriptor, part)
            etag = etag_for(digest.hexdigest())
            held = keep(descriptor, etag)
            os.fsync(descriptor)
            size = sum(part.nbytes for part in parts)
            if os.fstat(descriptor).st_size != size:
                raise StoreMismatch(f"{what}: the file does not have the {size} bytes written")
            _not_again(shelf, descriptor)
            beside = None if held or shelf is Container.OBJECTS else etag
            settle(temporary, beside)
        return etag.md5

    def _check_entry(self, what: str, entry: ManifestEntry) -> None:
        """StoreMismatch unless the entry is there as the manifest is to say."""
        try:
            found = self.stat(Container.SEGMENTS, entry.name)
        except (StoreNotFound, StoreRejected) as error:
            raise StoreMismatch(f"{what}: {error}") from error
        if found != (entry.etag, entry.size):
            raise StoreMismatch(
                f"{what}: {entry.name} has {found.size} bytes with ETag {found.etag}, "
                f"not {entry.size} with {entry.etag[:40]}"
            )

    @contextmanager
    def _reading(self, shelf: Container, name: str) -> Iterator["_Opened"]:
        there, inside = place(name), self._in(shelf)
        what = f"get {inside}/{name}"
        with (
            self._doing(what),
            self._folder.enter((inside, *there.folders)) as folder,
            reading(folder, there.file) as (descriptor, info),
        ):
            yield _Opened(what, folder, there.file, descriptor, info.st_size)

    def _walk(self, folders: tuple[str, ...], stem: str, begin: bytes) -> Iterator[StoredObject]:
        """The objects in a folder and below it, whose names begin with `stem` and `begin`."""
        last = b""
        while page := self._page(folders, begin, last):
            for last in page:
                name = stem + last.decode()
                there = _place(name + "x" if name.endswith("/") else name)
                if there is None:
                    continue  # a path too long to be one of ours
                if name.endswith("/"):
                    yield from self._walk((*folders, there.folders[-1]), name, b"")
                elif row := self._row(folders, there.file, name):
                    yield row

    def _page(self, folders: tuple[str, ...], begin: bytes, after: bytes) -> Sequence[bytes]:
        """The next names in one folder, those of folders with a slash, in order."""
        with (
            suppress(FileNotFoundError),
            self._folder.enter(folders) as folder,
            os.scandir(folder) as entries,
        ):
            keys = (_key(entry) for entry in entries)
            later = (key for key in keys if key > after and key.startswith(begin))
            return nsmallest(self._page_rows, later)
        return []

    def _row(self, folders: tuple[str, ...], file: str, name: str) -> StoredObject | None:
        """A file's row; None where it was deleted a moment ago, or has become another thing."""
        with (
            self._doing(f"list {folders[0]}/{name}"),
            suppress(FileNotFoundError),
            self._folder.enter(folders) as folder,
            reading(folder, file) as (descriptor, info),
        ):
            etag = etag_of(folder, file, descriptor, info.st_size)
            size = info.st_size if etag.joined is None else etag.joined
            return StoredObject(name, size, etag.md5, _moment(info.st_mtime))
        return None


class _Opened(NamedTuple):
    """A file that is being read, and what to call that in an error."""

    what: str
    folder: int
    file: str
    descriptor: int
    size: int

    def etag(self) -> Etag:
        return etag_of(self.folder, self.file, self.descriptor, self.size)

    def fill(self, buffer: memoryview) -> None:
        """Read the whole file; StoreMismatch where it isn't what was put."""
        if read_into(self.descriptor, buffer) != buffer.nbytes:
            raise StoreMismatch(f"{self.what}: it became shorter while it was read")
        etag = kept(self.folder, self.file, self.descriptor)
        if etag is not None and not holds(buffer, etag):
            raise StoreMismatch(f"{self.what}: its bytes are not those with the ETag {etag.md5}")


def _place(name: str) -> Place | None:
    """The place of an object; None where no object can have that name."""
    try:
        return place(name)
    except StoreRejected:
        return None


def _key(entry: "os.DirEntry[str]") -> bytes:
    """What sorts an entry as its objects' whole names do; empty for what is no object's."""
    try:
        folder = entry.is_dir(follow_symlinks=False)
        if not folder and not entry.is_file(follow_symlinks=False):
            return b""
    except FileNotFoundError:
        return b""
    name = component(entry.name, folder=folder)
    return f"{name}/".encode() if name and folder else (name or "").encode()


def _moment(seconds: float) -> str:
    """A time as Swift's listings have it; some filesystems hold years that no calendar has."""
    near = datetime.fromtimestamp(min(max(seconds, 0.0), _LATEST), UTC)
    return near.strftime("%Y-%m-%dT%H:%M:%S.%f")


def _not_again(shelf: Container, descriptor: int) -> None:
    """Give back the page cache of a segment, which the database next door has use for."""
    if shelf is Container.SEGMENTS:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
