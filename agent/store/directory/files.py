"""Files and folders that outlast a power cut, and what the system says about them as StoreError.

A folder is reached from the store's own folder one step at a time, and no step follows a link:
whatever somebody puts there, nothing outside of it is read or written.
"""

import errno
import fcntl
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from uuid import uuid4

from agent.errors import (
    StoreDenied,
    StoreError,
    StoreFull,
    StoreNotFound,
    StoreRejected,
    StoreUnreachable,
)
from agent.store.directory.paths import TEMPORARY

_ATTEMPTS: Final = 10  # at a folder that another process removes again, being empty
_KNOWN_FOLDERS: Final = 4096
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe put there must not block
# What errno(3) means for a store; any other error is one of the device or of the network.
_MEANINGS: Final[dict[int, tuple[type[StoreError], str]]] = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT),
        (StoreFull, "free some space there, raise the quota, or delete old backups"),
    ),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS),
        (StoreDenied, "give this user the right to read and write in the folder of [store] url"),
    ),
    errno.ENOENT: (StoreNotFound, "check the id, and that the folder of [store] url is there"),
    **dict.fromkeys(
        (errno.ELOOP, errno.ENOTDIR, errno.EISDIR),
        (StoreRejected, "look there: a link or a file is in the place of a folder, or the reverse"),
    ),
    **dict.fromkeys(
        (errno.ENAMETOOLONG, errno.EINVAL, errno.EFBIG),
        (StoreRejected, "that filesystem does not take such files; name another folder"),
    ),
}
_OTHER: Final = (StoreUnreachable, "check the disk or the network that [store] url is on")


@contextmanager
def translated(what: str) -> Iterator[None]:
    """The system's errors inside the block as StoreError."""
    try:
        yield
    except OSError as error:
        kind, hint = _MEANINGS.get(error.errno or 0, _OTHER)
        raise kind(f"{what}: {error.strerror or error}", hint=hint) from error


class Folder:
    """The store's folder `root`: folders under it by their names, and files written whole.

    Its methods raise OSError.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._making = threading.Lock()
        # folders whose entry in the parent is known to be on the disk
        self._lasting: OrderedDict[tuple[str, ...], None] = OrderedDict()

    def make_root(self) -> None:
        """Make the folder and its parents where missing (mode 0700), and make that last."""
        for folder in reversed([self._root, *self._root.parents]):
            if not folder.exists():
                folder.mkdir(mode=0o700, exist_ok=True)
                with self._opened(folder.parent) as parent:
                    os.fsync(parent)

    @contextmanager
    def enter(self, names: Sequence[str]) -> Iterator[int]:
        """A descriptor of the folder that is reached by `names`."""
        descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in names:
                step = os.open(name, _FOLDER, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = step
            yield descriptor
        finally:
            os.close(descriptor)

    def check(self, names: Sequence[str]) -> None:
        """FileNotFoundError where there is no such folder."""
        with self.enter(names) as folder:
            os.fstat(folder)

    def containers(self) -> list[str]:
        """Return the names of the folders in `root` that can be shown; FileNotFoundError."""
        with self.enter(()) as root, os.scandir(root) as entries:
            folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        return [name for name in folders if name.isprintable()]

    def make(self, names: Sequence[str]) -> None:
        """Make a folder and those on the way to it, mode 0700, so that they last.

        Also one that is there was perhaps made a moment ago by somebody who died of it.
        """
        with self._making:
            for depth in range(1, len(names) + 1):
                self._make_one(tuple(names[:depth]))

    def _make_one(self, names: tuple[str, ...]) -> None:
        with self.enter(names[:-1]) as parent:
            try:
                os.mkdir(names[-1], 0o700, dir_fd=parent)
            except FileExistsError:
                if names in self._lasting:
                    return
            else:
                _give_folder(parent, names[-1])
            os.fsync(parent)
        self._lasting[names] = None
        if len(self._lasting) > _KNOWN_FOLDERS:
            self._lasting.popitem(last=False)

    def remove_empty(self, names: Sequence[str]) -> None:
        """Remove a folder and those on the way to it, but the first, as far as they are empty."""
        for depth in range(len(names), 1, -1):
            with self.enter(names[: depth - 1]) as parent:
                try:
                    os.rmdir(names[depth - 1], dir_fd=parent)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                        return
                    raise
                os.fsync(parent)

    @contextmanager
    def temporary(self, container: str) -> Iterator[tuple[int, str]]:
        """A file of mode 0600 in the container's folder for files that are being written.

        It goes at the end of the block, unless `settle` has given it its place. Its lock tells
        `sweep` that somebody is at work on it; the kernel takes that back from the dead.
        """
        self.make((container, TEMPORARY))
        with self.enter((container, TEMPORARY)) as folder:
            descriptor, name = _begin(folder)
            try:
                yield descriptor, name
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)
                os.close(descriptor)

    def settle(
        self,
        container: str,
        name: str,
        folders: Sequence[str],
        file: str,
        then: Callable[[int], None],
    ) -> None:
        """Move a temporary file, whose bytes are on the disk, to its place, and make that last.

        `then` is called with the place's folder before that is synced.
        """
        with self.enter((container, TEMPORARY)) as source:
            for attempt in range(_ATTEMPTS):
                self.make((container, *folders))
                try:
                    with self.enter((container, *folders)) as target:
                        os.rename(name, file, src_dir_fd=source, dst_dir_fd=target)
                        then(target)
                        os.fsync(target)
                    return
                except FileNotFoundError:
                    if attempt + 1 == _ATTEMPTS:
                        raise

    def sweep(self, container: str) -> None:
        """Remove the temporary files of processes that died; those in use stay."""
        with suppress(OSError), self.enter((container, TEMPORARY)) as folder:
            for entry in os.scandir(folder):
                with suppress(OSError):
                    _remove_dead(folder, entry.name)

    @contextmanager
    def _opened(self, folder: Path) -> Iterator[int]:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


@contextmanager
def reading(folder: int, file: str) -> Iterator[tuple[int, os.stat_result]]:
    """A regular file, opened for reading; FileNotFoundError for anything else."""
    try:
        descriptor = os.open(file, os.O_RDONLY | _FILE, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise _stranger(file) from error
        raise
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise _stranger(file)
        yield descriptor, info
    finally:
        os.close(descriptor)


def give(folder: int, descriptor: int) -> None:
    """Let what root makes belong to the owner of the folder that it is made in.

    The agent runs as another user, and has to read what an administrator's command wrote.
    """
    if os.geteuid() == 0:
        owner = os.fstat(folder)
        with suppress(PermissionError):  # as of a mount that knows one owner
            os.fchown(descriptor, owner.st_uid, owner.st_gid)


def write_all(descriptor: int, part: memoryview) -> None:
    """Write every byte of `part`."""
    rest = part.cast("B")
    while rest.nbytes:
        rest = rest[os.write(descriptor, rest) :]


def read_into(descriptor: int, buffer: memoryview) -> int:
    """Fill `buffer` from the file's beginning as far as it goes; the number of bytes read."""
    filled = 0
    while count := os.preadv(descriptor, [buffer[filled:]], filled) if filled < len(buffer) else 0:
        filled += count
    return filled


def _stranger(file: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, f"{file!r} is no regular file")


def _give_folder(parent: int, name: str) -> None:
    with suppress(FileNotFoundError):  # removed again already, being empty
        descriptor = os.open(name, _FOLDER, dir_fd=parent)
        try:
            give(parent, descriptor)
        finally:
            os.close(descriptor)


def _begin(folder: int) -> tuple[int, str]:
    """A fresh locked file in `folder`: its descriptor and its name."""
    while True:
        name = str(uuid4())
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _FILE
        descriptor = os.open(name, flags, 0o600, dir_fd=folder)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            give(folder, descriptor)
            return descriptor, name
        os.close(descriptor)  # a sweep has taken it for a dead one's


def _remove_dead(folder: int, name: str) -> None:
    descriptor = os.open(name, os.O_RDWR | _FILE, dir_fd=folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(name, dir_fd=folder)
    finally:
        os.close(descriptor)
