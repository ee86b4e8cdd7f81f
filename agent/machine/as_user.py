"""Root's own file operations in a directory that another OS user may change.

That user may put a link in the place of any file or directory there, at any moment. So the
operations are done with that user's rights: a link leads nowhere that the user couldn't go.

The kernel keeps these identities for each thread: setfsuid(2), setfsgid(2), setgroups(2). Only
glibc's setgroups(3) changes all threads of a process, so the system call is made directly.
"""

import ctypes
import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from agent.machine.kernel import LIBC, checked
from agent.machine.os_user import OsUser
from agent.machine.passage import open_way

T = TypeVar("T")

# Architectures without a number of their own have that of include/uapi/asm-generic/unistd.h.
_SETGROUPS: Final = {"x86_64": 116, "ppc64le": 81, "s390x": 206}.get(os.uname().machine, 159)
_ASK: Final = -1


def done_as(user: OsUser | None, folder: Path, work: Callable[[], T]) -> T:
    """Return what `work` returns, or raise what it raises, done with `user`'s rights to files.

    `work` gets a thread of its own. `folder` belongs to `user`, and is all that `user` is let
    through to if a directory above is closed. None is this process's own user: `work` is called.

    Raises:
        OSError: the rights can't be had, or `folder` isn't `user`'s.
    """
    if user is None:
        return work()

    def begin() -> T:
        open_way(user, [folder])
        _take_rights_of(user)
        return work()

    with ThreadPoolExecutor(1, f"files of {user.name}") as thread:
        return thread.submit(begin).result()


def _take_rights_of(user: OsUser) -> None:
    """Give this thread the user's rights to files. The kernel takes root's rights to them away."""
    groups = (ctypes.c_uint32 * len(user.groups))(*user.groups)
    checked(int(LIBC.syscall(_SETGROUPS, ctypes.c_size_t(len(groups)), groups)), "setgroups")
    LIBC.setfsgid(user.gid)
    LIBC.setfsuid(user.uid)
    # these two don't tell of a failure
    got = (LIBC.setfsuid(_ASK), LIBC.setfsgid(_ASK), set(os.getgroups()))
    if got != (user.uid, user.gid, set(user.groups)):
        raise PermissionError(errno.EPERM, f"can't take the rights of {user.name}")
