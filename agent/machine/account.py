"""The change from root to the agent's own OS user, on a machine with an installed agent.

Only root can read an installed agent's secrets, and the state directory belongs to the user that
the daemon runs as. So a command that works like the daemon first reads the secrets as root, and
then becomes that user. Then no file of root remains among the daemon's files, and no engine runs as
root.
"""

import errno
import os
import pwd
import stat
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from agent.errors import ConfigInvalid, TargetRefused

# The only entry in the root directory of a filesystem that mkfs has just made.
FRESH: Final = "lost+found"
_MOST_LINKS: Final = 40
_LIST_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PASS_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# These variables name directories of root.
_ROOT_VARIABLES: Final = (
    "TMPDIR",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_RUNTIME_DIR",
    "XDG_STATE_HOME",
)


def agent_user(state_folder: Path) -> int | None:
    """Return the uid of the state directory's owner if this process should become that user.

    Return None if this process isn't root, if root owns the directory, or if the directory doesn't
    exist yet.

    Raises:
        ConfigInvalid: the directory's owner can't be read.
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
    """Make this process run as `user`, a uid, until it ends.

    The process can't become root again. The umask becomes 077, and the environment that of the
    user. The working directory becomes `/`, because root's own one may be closed to the user.
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
    for variable in _ROOT_VARIABLES:
        os.environ.pop(variable, None)
    os.environ.update(HOME=home, USER=name, LOGNAME=name)


def hand_over(target: Path, user: int, group: int | None = None) -> int:
    """Make `target` writable for a restore as `user`, and return the uid to restore as.

    A missing target is created. An empty target of root is given to `user`, and `lost+found` does
    not count as content. A target of another user stays unchanged, and that user's uid is returned.
    A target of root that isn't empty stays unchanged, too. `group` is the gid of a user without an
    account. None means that the gid equals the uid.

    Raises:
        TargetRefused: the target can't be created or opened, or a link that doesn't belong to root
            leads to it.
    """
    try:
        with ExitStack() as opened:
            here = _opened(target.parent, opened, make=True)
            with suppress(FileExistsError):
                os.mkdir(target.name, 0o700, dir_fd=here)
            descriptor = os.open(target.name, _LIST_FLAGS, dir_fd=here)
            opened.callback(os.close, descriptor)
            if owner := os.fstat(descriptor).st_uid:
                return owner
            if {FRESH}.issuperset(os.listdir(descriptor)):
                os.fchown(descriptor, user, _group(user, group))
    except OSError as error:
        raise TargetRefused(f"the target {target} can't be used: {error.strerror}") from error
    return user


def remove_empty(target: Path) -> None:
    """Remove the empty directory `target`, which `hand_over` has created.

    Raises:
        OSError: the directory isn't empty, or `target` itself is a link.
        TargetRefused: a link that doesn't belong to root leads to it.
    """
    with ExitStack() as opened:
        os.rmdir(target.name, dir_fd=_opened(target.parent, opened, make=False))


def _opened(directory: Path, opened: ExitStack, *, make: bool) -> int:
    """Return a descriptor of `directory`.

    The parts of the path are opened one after the other. With `make`, missing parts are created.
    Links of root are followed. Links of other users are refused, because they could lead root's
    writes to any place. All descriptors are closed at the end of `opened`.

    Raises:
        OSError: a part can't be opened or created, or the path has too many links.
        TargetRefused: a link belongs to another user than root.
    """
    names = list(reversed(directory.parts))
    here, links = os.open("/", _PASS_FLAGS), 0
    opened.callback(os.close, here)
    while names:
        name = names.pop()
        if make and not _exists(name, here):
            os.mkdir(name, dir_fd=here)
        status = os.stat(name, dir_fd=here, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            links += 1
            _check_link(directory, name, status.st_uid, links)
            names += reversed(Path(os.readlink(name, dir_fd=here)).parts)
            continue
        here = os.open(name, _PASS_FLAGS, dir_fd=here)
        opened.callback(os.close, here)
    return here


def _exists(name: str, directory: int) -> bool:
    """Return True if the open `directory` has an entry `name`, which may be a link."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _check_link(directory: Path, name: str, owner: int, links: int) -> None:
    """Check that the link `name` may be followed.

    `links` is the number of links on the path so far.

    Raises:
        OSError: there are too many links.
        TargetRefused: the link belongs to another user than root.
    """
    if links > _MOST_LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if owner:
        raise TargetRefused(
            f"the path {directory} leads through the link {name!r}, which belongs to another "
            f"user than root (uid {owner}): root doesn't follow such a link",
            hint="name the target by its real path, as realpath prints it",
        )


def _group(user: int, group: int | None) -> int:
    """Return the gid of `user`.

    If the user has no account name, return `group`. If that is None, too, return the uid.
    """
    with suppress(KeyError):
        return pwd.getpwuid(user).pw_gid
    return user if group is None else group
