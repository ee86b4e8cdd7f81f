"""Give up root for the agent's own OS user, on a machine where the agent is installed.

Only root can read an installed agent's secrets, and the state directory belongs to the user that
the daemon runs as. So a command that works like the daemon reads the secrets as root, and then
becomes that user: no file of root is left among the daemon's, and no engine runs as root.
"""

import errno
import os
import pwd
import stat
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from agent.errors import ConfigInvalid, TargetRefused

# What mkfs leaves in the root of a filesystem.
FRESH: Final = "lost+found"
_MOST_LINKS: Final = 40
_LISTED: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PASSED: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# They name root's own directories.
_OF_ROOT: Final = (
    "TMPDIR",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_RUNTIME_DIR",
    "XDG_STATE_HOME",
)


def agent_user(state_folder: Path) -> int | None:
    """Return the number of the user to become: None if root doesn't run this, or owns the folder.

    ConfigInvalid if the folder can't be looked at. There is no such user before the folder exists.
    """
    if os.geteuid() != 0:
        return None
    try:
        return state_folder.stat().st_uid or None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigInvalid(
            f"[agent] state_folder: {state_folder} can't be used: {error.strerror}"
        ) from error


def become(user: int) -> None:
    """Become that user for the rest of the process; root can't be had back.

    The umask and the environment become that user's, and the working directory `/`: root's own
    may be closed to it.
    """
    try:
        entry = pwd.getpwuid(user)
    except KeyError:
        name, group, home = str(user), user, "/"
        groups = [group]
    else:
        name, group, home = entry.pw_name, entry.pw_gid, entry.pw_dir
        groups = os.getgrouplist(name, group)
    os.setgroups(groups)
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
    os.umask(0o077)
    os.chdir("/")
    for variable in _OF_ROOT:
        os.environ.pop(variable, None)
    os.environ.update(HOME=home, USER=name, LOGNAME=name)


def hand_over(target: Path, user: int, group: int | None = None) -> int:
    """Make sure that a restore as `user` can write to `target`; return the user to restore as.

    A missing target is made, and an empty one of root's is given to `user`. Another user's stays
    as it is, and its owner is who restores. `group` is that of a user without a name.

    Raises:
        TargetRefused: it can't be made, or a link of another user than root leads to it.
    """
    try:
        with ExitStack() as opened:
            here = _opened(target.parent, opened, make=True)
            with suppress(FileExistsError):
                os.mkdir(target.name, 0o700, dir_fd=here)
            descriptor = os.open(target.name, _LISTED, dir_fd=here)
            opened.callback(os.close, descriptor)
            if owner := os.fstat(descriptor).st_uid:
                return owner
            if {FRESH}.issuperset(os.listdir(descriptor)):
                os.fchown(descriptor, user, _group(user, group))
    except OSError as error:
        raise TargetRefused(f"the target {target} can't be used: {error.strerror}") from error
    return user


def remove_empty(target: Path) -> None:
    """Remove a directory that `hand_over` made; OSError if it isn't empty, or a link leads there.

    TargetRefused if that link is of another user than root.
    """
    with ExitStack() as opened:
        os.rmdir(target.name, dir_fd=_opened(target.parent, opened, make=False))


def _opened(directory: Path, opened: ExitStack, *, make: bool) -> int:
    """Return a descriptor of `directory`, whose parts are opened one by one; OSError.

    With `make` those that are missing are made. Root's links are followed. Those of other users
    aren't, as they could lead root's writing anywhere: TargetRefused.
    """
    names = list(reversed(directory.parts))
    here, links = os.open("/", _PASSED), 0
    opened.callback(os.close, here)
    while names:
        name = names.pop()
        if make and not _there(name, here):
            os.mkdir(name, dir_fd=here)
        status = os.stat(name, dir_fd=here, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            links += 1
            _check_link(directory, name, status.st_uid, links)
            names += reversed(Path(os.readlink(name, dir_fd=here)).parts)
            continue
        here = os.open(name, _PASSED, dir_fd=here)
        opened.callback(os.close, here)
    return here


def _there(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _check_link(directory: Path, name: str, owner: int, links: int) -> None:
    if links > _MOST_LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if owner:
        raise TargetRefused(
            f"the way to {directory} leads through the link {name!r}, which belongs to another "
            f"user than root (uid {owner}): root doesn't follow it",
            hint="name the target by its real path, as realpath prints it",
        )


def _group(user: int, group: int | None) -> int:
    with suppress(KeyError):
        return pwd.getpwuid(user).pw_gid
    return user if group is None else group
