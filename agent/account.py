"""Give up root for the agent's own OS user, on a machine where the agent is installed.

Only root can read an installed agent's secrets, and the state directory belongs to the user that
the daemon runs as. So a command that works like the daemon reads the secrets as root, and then
becomes that user: no file of root is left among the daemon's, and no engine runs as root.
"""

import os
import pwd
from contextlib import suppress
from pathlib import Path
from typing import Final

from agent.errors import ConfigInvalid, TargetRefused

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


def hand_over(target: Path, user: int) -> int:
    """Make sure that a restore as `user` can write to `target`; return the user to restore as.

    A missing target is made, and an empty one of root's is given to `user`. Another user's stays
    as it is, and its owner is who restores. TargetRefused if it can't be made.
    """
    try:
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.mkdir(mode=0o700)
        descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if owner := os.fstat(descriptor).st_uid:
                return owner
            if not os.listdir(descriptor):
                os.fchown(descriptor, user, _group(user))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise TargetRefused(f"the target {target} can't be used: {error.strerror}") from error
    return user


def _group(user: int) -> int:
    with suppress(KeyError):
        return pwd.getpwuid(user).pw_gid
    return user
