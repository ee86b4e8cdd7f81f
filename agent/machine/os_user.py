"""The operating system user that a child runs as when the agent itself runs as root.

An engine loads plugins from directories that the database's own OS user may write to. So no program
of an engine may run as root.
"""

import os
import pwd
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from agent.errors import EngineFailed


class OsUser(NamedTuple):
    """The ids that a process runs with, which are its user, its group, and further groups."""

    uid: int
    gid: int
    groups: tuple[int, ...]

    @property
    def name(self) -> str:
        """Return the user's account name, or `uid` and the number if it has none."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return f"uid {self.uid}"


def owner_of(folder: Path) -> OsUser | None:
    """Return the owner of `folder` if this process is root and the owner is not.

    None means that a child runs as the same user as this process. Root also runs a child as root if
    the directory belongs to root. In that case no other user can write to the directory, and only
    root may be able to read it.

    Raises:
        EngineFailed: the owner of the directory can't be read.
    """
    if os.geteuid() != 0:
        return None
    try:
        status = folder.stat()
    except OSError as error:
        raise EngineFailed(
            f"can't read the owner of {folder}: {error.strerror}",
            hint="run the agent on the server's own machine, as the datadir's owner or as root",
        ) from error
    return os_user(status.st_uid, status.st_gid) if status.st_uid else None


def os_user(uid: int, gid: int) -> OsUser:
    """Return the user with its groups.

    If the system has no account for `uid`, the user has the one group `gid`.
    """
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return OsUser(uid, gid, ())
    return OsUser(uid, entry.pw_gid, tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)))


def first_user(names: Sequence[str]) -> OsUser | None:
    """Return the first of the users `names` that the system has, or None if it has none."""
    for name in names:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return os_user(entry.pw_uid, entry.pw_gid)
    return None
