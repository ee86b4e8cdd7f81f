"""The operating system user that a child runs as, when the agent itself runs as root.

An engine loads plugins from directories that the database's own OS user may write to. So
nothing of it may run as root.
"""

import os
import pwd
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from agent.errors import EngineFailed


class OsUser(NamedTuple):
    """The numbers that a process runs with: user, group, and further groups."""

    uid: int
    gid: int
    groups: tuple[int, ...]

    @property
    def name(self) -> str:
        """What the system calls it; its number if it has no name."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return f"uid {self.uid}"


def owner_of(folder: Path) -> OsUser | None:
    """Return the owner of `folder` if this process is root and the owner is not.

    None means that a child runs as this process does. That includes root with a folder of
    root's: then no other user can write there, and none but root could read it.

    Raises:
        EngineFailed: the folder can't be looked at.
    """
    if os.geteuid() != 0:
        return None
    try:
        status = folder.stat()
    except OSError as error:
        raise EngineFailed(
            f"can't look at {folder}: {error.strerror}",
            hint="run the agent on the server's own machine, as the datadir's owner or as root",
        ) from error
    return os_user(status.st_uid, status.st_gid) if status.st_uid else None


def os_user(uid: int, gid: int) -> OsUser:
    """Return the user with its groups; with `gid` alone if the system has no name for it."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return OsUser(uid, gid, ())
    return OsUser(uid, entry.pw_gid, tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)))


def first_user(names: Sequence[str]) -> OsUser | None:
    """Return the first of these users that the system has, None if it has none of them."""
    for name in names:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return os_user(entry.pw_uid, entry.pw_gid)
    return None
