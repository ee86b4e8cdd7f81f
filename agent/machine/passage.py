"""Access for another OS user to directories below directories that are closed to that user.

Aria's recovery opens a table by its real path, one directory after the other. If one of them is
closed, the table stays unchanged, and the engine still prints `completed OK!`. So a program that
root runs as another user gets its own mount namespace. In it, an almost empty directory covers the
closed one, and leads only to the program's own directories. All paths stay the same. The covered
files were closed to the user before, so the user loses nothing.

Sources: mount_namespaces(7), mount(2), unshare(2).
"""

import ctypes
import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agent.machine.kernel import LIBC, checked
from agent.machine.os_user import OsUser
from agent.threads import Thread

_CLONE_NEWNS: Final = 0x20000
_NOSUID, _NODEV, _NOEXEC = 2, 4, 8
_BIND, _REC, _SLAVE = 4096, 16384, 1 << 19
_COVER: Final = b"mode=0711,size=1m"
_PASSABLE: Final = 0o711


def closed_directory(user: OsUser, folder: Path) -> Path | None:
    """Return the first directory above `folder` that `user` may not pass through.

    The mode of the directory decides. Return None if there is no such directory.

    Raises:
        OSError: a directory's mode can't be read.
    """
    for directory in reversed(folder.resolve().parents):
        if not _passable(user, directory.stat()):
            return directory
    return None


def may_mount() -> bool:
    """Return True if this process may create mount namespaces."""
    failures: list[OSError] = []

    def attempt() -> None:
        try:
            _own_mounts()
        except OSError as error:
            failures.append(error)

    thread = Thread(attempt, name="mount namespace")
    thread.start()
    thread.join()
    return not failures


def open_way(user: OsUser, folders: Sequence[Path]) -> None:
    """Let `user` reach `folders`, for this thread and the programs that it starts.

    The nearest common parent of `folders`, or the only one of them, must belong to `user`. Do
    nothing if no directory above it is closed to `user`. The change can't be undone.

    Raises:
        OSError: the system doesn't allow it, or that directory doesn't belong to `user`. In the
            latter case another user may have put a link there.
    """
    # Mount the common parent once, because no rename is possible from one mount to another.
    place = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    closed = closed_directory(user, place)
    if closed is None:
        return
    _own_mounts()
    kept = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.fstat(kept).st_uid != user.uid:
            raise PermissionError(errno.EPERM, f"{place} belongs to another user")
        _mount("tmpfs", str(closed), "tmpfs", _NOSUID | _NODEV | _NOEXEC, _COVER)
        _make_path(place)
        _mount(f"/proc/self/fd/{kept}", str(place), None, _BIND)
    finally:
        os.close(kept)


def _passable(user: OsUser, status: os.stat_result) -> bool:
    if status.st_uid == user.uid:
        return bool(status.st_mode & 0o100)
    if status.st_gid in (user.gid, *user.groups):
        return bool(status.st_mode & 0o010)
    return bool(status.st_mode & 0o001)


def _own_mounts() -> None:
    """Give this thread its own mount namespace.

    Later mounts of the machine still appear in it. Mounts of this thread don't appear outside.

    Raises:
        OSError: the system doesn't allow it.
    """
    checked(LIBC.unshare(_CLONE_NEWNS), "mount namespace")
    _mount("none", "/", None, _REC | _SLAVE)


def _make_path(folder: Path) -> None:
    """Create `folder` and the missing directories above it, with mode 0711."""
    for directory in (*reversed(folder.parents), folder):
        if not directory.exists():
            directory.mkdir()
            # mkdir() applies the umask to a mode, and chmod() does not.
            directory.chmod(_PASSABLE)


def _mount(source: str, place: str, kind: str | None, flags: int, data: bytes = b"") -> None:
    fields = (os.fsencode(source), os.fsencode(place), kind.encode() if kind else None)
    checked(LIBC.mount(*fields, ctypes.c_ulong(flags), data), f"mount of {place}")
