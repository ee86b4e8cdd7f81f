"""A plain directory as a store, `file:///path`.

It needs no server and no account. Containers are directories below it. Object names are paths below
those directories (agent/store/directory/paths.py). `cat` joins the files of the segments, so the
store writes no object that joins them.

The result of a method is on the disk when the method returns. The bytes are written to a temporary
file, which no listing shows, and synced. Then the file is moved to its name. The directory is
synced, and so is each directory that was made for it. See docs/format.md.
"""

import copy
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from heapq import nsmallest
from pathlib import Path
from typing import Final, NamedTuple, Self
from urllib.parse import quote

from agent.errors import StoreError, StoreMismatch, StoreNotFound, StoreRejected
from agent.store.directory.etags import (
    etag_of,
    keep,
    kept,
    remove_beside,
    write_beside,
)
from agent.store.directory.files import Folder, read_into, reading, translated, write_all
from agent.store.directory.paths import Place, component, container_directory, place
from agent.store.protocol import (
    Container,
    Interruption,
    Stat,
    StoredObject,
    StoreLimits,
    Uninterrupted,
    no_container,
)

_LIMITS: Final = StoreLimits(manifest_entries=1000, object_bytes=5 << 30, nesting=True)  # as Swift
_PAGE: Final = 20_000  # names of one directory that a listing holds in memory
_LATEST: Final = 253_402_300_799.0  # the last second of the year 9999


class DirectoryStore:
    """A store in the directory `root`, an absolute path, which `open` makes if it is missing.

    It implements agent.store.protocol.Store.
    """

    def __init__(self, root: Path, container_name: str) -> None:
        self._root = root
        self._folder = Folder(root)
        self._container = container_directory(container_name)
        self._page_rows = _PAGE
        self._stop: Interruption = Uninterrupted()

    def bound(self, stop: Interruption) -> Self:
        """Return a view of this store that ends its calls when `stop` is requested.

        A `put` ends between two parts of about 1 MiB, and a `list` between two rows. Other calls
        run to their end, because the system can't interrupt them.
        """
        view = copy.copy(self)
        view._stop = stop
        return view

    @property
    def location(self) -> str:
        return f"file://{quote(str(self._root / self._container))}"

    def open(self, *, create: bool = True) -> None:
        """Make the directories of both containers if they are missing and `create` is True.

        With `create`, also delete the temporary files of processes that died.

        Raises:
            StoreNotFound: `create` is False, and the directory or a container is missing.
        """
        with self._doing(f"open {self._root}"):
            if create:
                self._folder.make_root()
            for container in Container:
                if create:
                    self._folder.make((self._container_name(container),))
                    self._folder.sweep(self._container_name(container))
                self._check_container(container)

    @property
    def joiner(self) -> None:
        return None

    def limits(self) -> StoreLimits:
        return _LIMITS

    def put(self, container: Container, name: str, parts: Sequence[memoryview]) -> str:
        """Store the joined `parts` as one object and return its MD5 in hex.

        The MD5 is that of the bytes as they were written. The file is not read back.
        """
        there, inside, moved = place(name), self._container_name(container), False

        def move(temporary: str, beside: str | None) -> None:
            def then(folder: int) -> None:
                nonlocal moved
                moved = True
                if beside is not None:
                    write_beside(folder, there.file, beside)

            self._folder.move_into_place(inside, temporary, there.folders, there.file, then)

        try:
            return self._write(f"put {inside}/{name}", container, parts, move)
        except StoreError as error:
            error.without_effect = not moved
            raise

    def get(self, container: Container, name: str, limit: int) -> bytes:
        with self._reading(container, name) as there:
            if there.size > limit:
                raise StoreMismatch(f"{there.what}: it is larger than the expected {limit} bytes")
            content = bytearray(there.size)
            there.fill(memoryview(content))
        return bytes(content)

    def get_into(self, container: Container, name: str, buffer: memoryview) -> None:
        with self._reading(container, name) as there:
            if there.size != buffer.nbytes:
                raise StoreMismatch(
                    f"{there.what}: it has {there.size} bytes instead of {buffer.nbytes}"
                )
            there.fill(buffer)
            _drop_from_page_cache(container, there.descriptor)

    def stat(self, container: Container, name: str) -> Stat:
        with self._reading(container, name) as there:
            return Stat(there.etag(), there.size)

    def list(self, container: Container, prefix: str = "") -> Iterator[StoredObject]:
        """Yield all objects with names that begin with `prefix`, in order of their names.

        Files that can't be objects of this store are left out. At most `_PAGE` names of one
        directory are held in memory. A larger directory is read once for each `_PAGE` names.
        """
        *above, begin = prefix.split("/")
        stem = "".join(f"{part}/" for part in above)
        there = _place(stem + "x")
        with self._doing(f"list {self._container_name(container)}"):
            self._check_container(container)
            if there is not None:
                folders = (self._container_name(container), *there.folders)
                yield from self._walk(folders, stem, begin.encode(errors="surrogatepass"))

    def delete(self, container: Container, name: str) -> None:
        """Delete one object, and each directory that is empty after that."""
        there = place(name)
        folders = (self._container_name(container), *there.folders)
        with self._doing(f"delete {self._container_name(container)}/{name}"):
            with suppress(FileNotFoundError), self._folder.enter(folders) as folder:
                with suppress(FileNotFoundError):
                    os.unlink(there.file, dir_fd=folder)
                remove_beside(folder, there.file)
                os.fsync(folder)
            with suppress(FileNotFoundError):
                self._folder.remove_empty(folders)

    def clock(self) -> float:
        """Return the filesystem's time in Unix seconds, by which the store's files are dated.

        It is the modification time of a temporary file that this method writes.
        """
        container_name = self._container_name(Container.OBJECTS)
        with (
            self._doing(f"write in {container_name}"),
            self._folder.temporary(container_name) as (descriptor, _),
        ):
            os.write(descriptor, b"0")
            return os.fstat(descriptor).st_mtime

    def abort(self) -> None:
        """Do nothing, because no operation of this store is retried."""

    def close(self) -> None:
        """Do nothing, because no file stays open after a method."""

    def _container_name(self, container: Container) -> str:
        return self._container + container.value

    def _check_container(self, container: Container) -> None:
        name = self._container_name(container)
        try:
            self._folder.check((name,))
        except FileNotFoundError as error:
            raise self._missing(name) from error

    def _missing(self, name: str) -> StoreNotFound:
        """Return the error that names the missing container or the missing root directory."""
        try:
            there = self._folder.containers()
        except FileNotFoundError:
            return StoreNotFound(f"there is no directory {self._root}")
        return StoreNotFound(no_container(name, str(self._root), there))

    @contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        """Translate the system's errors inside the block into StoreError.

        If a stop was requested, raise its cause instead.
        """
        self._stop.check()
        try:
            with translated(what):
                yield
        except StoreError:
            self._stop.check()
            raise

    def _write(
        self,
        what: str,
        container: Container,
        parts: Sequence[memoryview],
        move: Callable[[str, str | None], None],
    ) -> str:
        """Write and sync a temporary file, and return the MD5 of its bytes in hex.

        `move` then moves the file to its name. For a segment on a filesystem without extended
        attributes, `move` also gets the ETag and writes it into a file beside the segment.
        """
        with (
            self._doing(what),
            self._folder.temporary(self._container_name(container)) as (descriptor, temporary),
        ):
            digest = hashlib.md5(usedforsecurity=False)
            for part in parts:
                self._stop.check()
                digest.update(part)
                write_all(descriptor, part)
            etag = digest.hexdigest()
            held = keep(descriptor, etag)
            os.fsync(descriptor)
            size = sum(part.nbytes for part in parts)
            if os.fstat(descriptor).st_size != size:
                raise StoreMismatch(f"{what}: the file does not have the {size} bytes written")
            _drop_from_page_cache(container, descriptor)
            beside = None if held or container is Container.OBJECTS else etag
            move(temporary, beside)
        return etag

    @contextmanager
    def _reading(self, container: Container, name: str) -> Iterator["_Opened"]:
        there, inside = place(name), self._container_name(container)
        what = f"get {inside}/{name}"
        with (
            self._doing(what),
            self._folder.enter((inside, *there.folders)) as folder,
            reading(folder, there.file) as (descriptor, info),
        ):
            yield _Opened(what, folder, there.file, descriptor, info.st_size)

    def _walk(self, folders: tuple[str, ...], stem: str, begin: bytes) -> Iterator[StoredObject]:
        """Yield the objects of a directory and of those below it.

        `stem` is the name of the directory with a slash at its end. The rest of the object's name
        begins with `begin`.
        """
        last = b""
        while page := self._page(folders, begin, last):
            for last in page:
                name = stem + last.decode()
                there = _place(name + "x" if name.endswith("/") else name)
                if there is None:
                    continue  # the path is too long for an object
                if name.endswith("/"):
                    yield from self._walk((*folders, there.folders[-1]), name, b"")
                elif row := self._row(folders, there.file, name):
                    yield row

    def _page(self, folders: tuple[str, ...], begin: bytes, after: bytes) -> Sequence[bytes]:
        """Return the next names of one directory in order.

        Names of directories end in a slash.
        """
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
        """Return the row of a file.

        Return None if the file was deleted a moment ago, or is not a regular file any more.
        """
        with (
            self._doing(f"list {folders[0]}/{name}"),
            suppress(FileNotFoundError),
            self._folder.enter(folders) as folder,
            reading(folder, file) as (descriptor, info),
        ):
            etag = etag_of(folder, file, descriptor)
            return StoredObject(name, info.st_size, etag, _moment(info.st_mtime))
        return None


class _Opened(NamedTuple):
    """A file that is open for reading, with the action `what` for the message of an error."""

    what: str
    folder: int
    file: str
    descriptor: int
    size: int

    def etag(self) -> str:
        return etag_of(self.folder, self.file, self.descriptor)

    def fill(self, buffer: memoryview) -> None:
        """Read the whole file into `buffer`.

        Raises:
            StoreMismatch: the bytes are not the bytes that were put.
        """
        if read_into(self.descriptor, buffer) != buffer.nbytes:
            raise StoreMismatch(f"{self.what}: the file became shorter while it was read")
        etag = kept(self.folder, self.file, self.descriptor)
        if etag is not None and etag != hashlib.md5(buffer, usedforsecurity=False).hexdigest():
            raise StoreMismatch(f"{self.what}: its bytes are not those with the ETag {etag}")


def _place(name: str) -> Place | None:
    """Return the place of an object, or None if no object can have that name."""
    try:
        return place(name)
    except StoreRejected:
        return None


def _key(entry: "os.DirEntry[str]") -> bytes:
    """Return a key that sorts a directory entry in the order of the names of its objects.

    The key of a directory ends in a slash. The key is b"" if the entry does not belong to an
    object.
    """
    try:
        folder = entry.is_dir(follow_symlinks=False)
        if not folder and not entry.is_file(follow_symlinks=False):
            return b""
    except FileNotFoundError:
        return b""
    name = component(entry.name, folder=folder)
    return f"{name}/".encode() if name and folder else (name or "").encode()


def _moment(seconds: float) -> str:
    """Return a time in the form of Swift's listings.

    Some filesystems hold times before 1970 or after the year 9999, which are replaced by the
    nearest time in that range.
    """
    near = datetime.fromtimestamp(min(max(seconds, 0.0), _LATEST), UTC)
    return near.strftime("%Y-%m-%dT%H:%M:%S.%f")


def _drop_from_page_cache(container: Container, descriptor: int) -> None:
    """Drop a segment from the page cache, because the database needs that memory."""
    if container is Container.SEGMENTS:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
