"""File operations of root in a directory that another OS user may change.

At any moment, that user may replace any file or directory there by a link. So root does the
operations with that user's rights. Then a link can't lead to a place that is closed to the user.

The kernel keeps these identities for each thread: setfsuid(2), setfsgid(2), setgroups(2). glibc's
setgroups(3) changes all threads of a process. So this module makes the system call directly.
"""

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from agent.machine.kernel import LIBC, checked
from agent.machine.os_user import OsUser
from agent.machine.passage import open_way
from agent.threads import Workers

T = TypeVar("T")

# The number of the system call setgroups. Architectures without their own number use the one of
# include/uapi/asm-generic/unistd.h.
_SETGROUPS: Final = {"x86_64": 116, "ppc64le": 81, "s390x": 206}.get(os.uname().machine, 159)
# With this invalid id, setfsuid and setfsgid change nothing and return the present id.
_NO_ID: Final = -1


def done_as(user: OsUser | None, folder: Path, work: Callable[[], T]) -> T:
    """Call `work` with the file access rights of `user`, and return its result.

    `work` runs on its own thread. Its exceptions are raised here. `folder` is a directory that
    belongs to `user`. If a directory above it is closed to `user`, the thread still reaches
    `folder`, and nothing else below the closed directory. If `user` is None, `work` is called
    directly, as this process's own user.

    Raises:
        OSError: the thread can't get the rights, or `folder` doesn't belong to `user`.
    """
    if user is None:
        return work()

    def begin() -> T:
        open_way(user, [folder])
        _take_rights_of(user)
        return work()

    with Workers(1, f"files of {user.name}") as thread:
        return thread.submit(begin).result()


def _take_rights_of(user: OsUser) -> None:
    """Give this thread the user's rights to files.

    The kernel then removes root's rights to files from the thread.

    Raises:
        OSError: the rights can't be set.
    """
    groups = (ctypes.c_uint32 * len(user.groups))(*user.groups)
    checked(int(LIBC.syscall(_SETGROUPS, ctypes.c_size_t(len(groups)), groups)), "setgroups")
    LIBC.setfsgid(user.gid)
    LIBC.setfsuid(user.uid)
    # setfsgid and setfsuid don't report a failure, so read the ids back.
    got = (LIBC.setfsuid(_NO_ID), LIBC.setfsgid(_NO_ID), set(os.getgroups()))
    if got != (user.uid, user.gid, set(user.groups)):
        raise PermissionError(errno.EPERM, f"can't take the rights of {user.name}")
