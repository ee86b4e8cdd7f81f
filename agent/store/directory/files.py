"""Files and directories that survive a power cut, and the system's errors as StoreError.

A directory is reached from the store's own directory one step at a time, and no step follows a
link. So nothing outside the store's directory is read or written, even if another user places links
in it.
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

# Attempts to use a directory that another process deletes again and again, because it is empty.
_ATTEMPTS: Final = 10
_KNOWN_FOLDERS: Final = 4096
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK, because a pipe in the place of a file must not block.
_FILE: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
# The StoreError and the hint for the errors of errno(3). Every other error is an error of the
# device or of the network.
_MEANINGS: Final[dict[int, tuple[type[StoreError], str]]] = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT),
        (StoreFull, "free some space there, raise the quota, or delete old backups"),
    ),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS),
        (StoreDenied, "give this user the right to read and write in the directory of [store] url"),
    ),
    errno.ENOENT: (StoreNotFound, "check the id, and that the directory of [store] url exists"),
    **dict.fromkeys(
        (errno.ELOOP, errno.ENOTDIR, errno.EISDIR),
        (
            StoreRejected,
            "check that path: a link or a file is in the place of a directory, or the reverse",
        ),
    ),
    **dict.fromkeys(
        (errno.ENAMETOOLONG, errno.EINVAL, errno.EFBIG),
        (StoreRejected, "that filesystem does not accept such files; name another directory"),
    ),
}
_OTHER: Final = (StoreUnreachable, "check the disk or the network that [store] url is on")


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Translate the system's errors inside the block into StoreError.

    `what` names the action in the message.
    """
    try:
        yield
    except OSError as error:
        kind, hint = _MEANINGS.get(error.errno or 0, _OTHER)
        raise kind(f"{what}: {error.strerror or error}", hint=hint) from error


class Folder:
    """The store's directory `root`, the directories below it, and files that are written whole.

    Directories are named by the list of their names below `root`. The methods raise OSError.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._making = threading.Lock()
        # Directories with an entry in the parent that is known to be on the disk.
        self._lasting: OrderedDict[tuple[str, ...], None] = OrderedDict()

    def make_root(self) -> None:
        """Make `root` and its missing parents (mode 0700), and sync them to the disk."""
        for folder in reversed([self._root, *self._root.parents]):
            if not folder.exists():
                folder.mkdir(mode=0o700, exist_ok=True)
                with self._opened(folder.parent) as parent:
                    os.fsync(parent)

    @contextmanager
    def enter(self, names: Sequence[str]) -> Iterator[int]:
        """Yield a descriptor of the directory that `names` lead to."""
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
        """Raise FileNotFoundError if there is no such directory."""
        with self.enter(names) as folder:
            os.fstat(folder)

    def containers(self) -> list[str]:
        """Return the printable names of the directories in `root`.

        Raises:
            FileNotFoundError: there is no `root`.
        """
        with self.enter(()) as root, os.scandir(root) as entries:
            folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        return [name for name in folders if name.isprintable()]

    def make(self, names: Sequence[str]) -> None:
        """Make a directory and its missing parents (mode 0700), and sync their entries to the disk.

        An existing directory may have been made a moment ago by a process that died before the
        sync. So its entry is synced too, unless this object has synced it before.
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
        """Remove a directory and its parents as far as they are empty.

        The first directory of `names` stays.
        """
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
        """Yield the descriptor and the name of a temporary file (mode 0600) of the container.

        The file is deleted at the end of the block, unless `move_into_place` has moved it. A lock
        on the file tells `sweep` that a process uses it. The kernel releases the lock if the
        process dies.
        """
        self.make((container, TEMPORARY))
        with self.enter((container, TEMPORARY)) as folder:
            descriptor, name = _create_locked(folder)
            try:
                yield descriptor, name
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)
                os.close(descriptor)

    def move_into_place(
        self,
        container: str,
        name: str,
        folders: Sequence[str],
        file: str,
        then: Callable[[int], None],
    ) -> None:
        """Move a temporary file to its place, and sync the directory of that place.

        The bytes of the file must be on the disk already. `then` is called with a descriptor of the
        directory after the move and before the sync.
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
        """Delete the temporary files of processes that died, and keep the files in use."""
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
    """Open a regular file for reading, and yield its descriptor and its status.

    Raises:
        FileNotFoundError: it does not exist, or is not a regular file.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | _FILE, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise _not_a_regular_file(file) from error
        raise
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise _not_a_regular_file(file)
        yield descriptor, info
    finally:
        os.close(descriptor)


def give(folder: int, descriptor: int) -> None:
    """Give a file that root makes to the owner of the directory.

    Do nothing if this process is not root. The agent runs as another user, and has to read the
    files that an administrator's command wrote.
    """
    if os.geteuid() == 0:
        owner = os.fstat(folder)
        with suppress(PermissionError):  # for example on a mount with one fixed owner
            os.fchown(descriptor, owner.st_uid, owner.st_gid)


def write_all(descriptor: int, part: memoryview) -> None:
    """Write every byte of `part`."""
    rest = part.cast("B")
    while rest.nbytes:
        rest = rest[os.write(descriptor, rest) :]


def read_into(descriptor: int, buffer: memoryview) -> int:
    """Fill `buffer` from the beginning of the file, and return the number of bytes read.

    The number is smaller than the size of the buffer if the file is shorter.
    """
    filled = 0
    while count := os.preadv(descriptor, [buffer[filled:]], filled) if filled < len(buffer) else 0:
        filled += count
    return filled


def _not_a_regular_file(file: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, f"{file!r} is not a regular file")


def _give_folder(parent: int, name: str) -> None:
    with suppress(FileNotFoundError):  # another process has removed it, because it was empty
        descriptor = os.open(name, _FOLDER, dir_fd=parent)
        try:
            give(parent, descriptor)
        finally:
            os.close(descriptor)


def _create_locked(folder: int) -> tuple[int, str]:
    """Create a locked temporary file in `folder` and return its descriptor and its name."""
    while True:
        name = str(uuid4())
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _FILE
        descriptor = os.open(name, flags, 0o600, dir_fd=folder)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            give(folder, descriptor)
            return descriptor, name
        os.close(descriptor)  # before the lock, a sweep took it for the file of a dead process


def _remove_dead(folder: int, name: str) -> None:
    descriptor = os.open(name, os.O_RDWR | _FILE, dir_fd=folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(name, dir_fd=folder)
    finally:
        os.close(descriptor)
