"""Locks that allow one agent for a state directory, and one backup of a datadir, at a time.

A second agent with the same state directory would end the first agent's tasks. Two agents with
different state directories may share a datadir, and then only a lock on the datadir shows that. No
file is made in the datadir. The directory itself is locked, which no server does. The kernel
releases a lock when the process ends for any reason (flock(2)).
"""

import fcntl
import logging
import os
import pwd
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeAlias

from agent.errors import ConfigInvalid, InstanceBusy, JournalError

log = logging.getLogger(__name__)

# A function that writes the holder's present activity into the lock file.
WriteActivity: TypeAlias = Callable[[str], None]

_LOCKS = Path("/proc/locks")
_ACTIVITY_BYTES = 128
SECOND_AGENT = (
    "stop the other agent, or wait for its end, or set another state_folder for this instance"
)


@contextmanager
def only_agent(path: Path, *, hint: str = SECOND_AGENT) -> Iterator[WriteActivity]:
    """Hold the lock file `path` inside the block.

    Create the file if it is missing, and its directory with mode 0700. The context manager yields a
    function that writes the holder's present activity into the file. `activity_of_holder` returns
    that text.

    Raises:
        InstanceBusy: another process holds the lock. It is raised at once, with `hint`.
        ConfigInvalid: the directory belongs to another user.
        JournalError: the file or its directory can't be created or opened.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise JournalError(
            f"can't create or open the lock file {path}: {error.strerror}"
        ) from error
    try:
        _take(descriptor, path.parent, hint)
        _write_activity(descriptor, "")
        yield partial(_write_activity, descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def only_backup(datadir: Path) -> Iterator[bool]:
    """Hold a lock on the directory `datadir` itself inside the block, and yield True.

    If the filesystem has no such locks, log a warning, yield False and run the block without a
    lock. An example is NFS, which locks only files that are open for writing.

    Raises:
        InstanceBusy: another process holds the lock. It is raised at once.
        ConfigInvalid: the directory can't be opened.
    """
    try:
        descriptor = os.open(datadir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigInvalid(
            f"can't open the datadir {datadir}: {error.strerror}",
            hint="run the agent as the database server's own OS user",
        ) from error
    try:
        yield _take_datadir(descriptor, datadir)
    finally:
        os.close(descriptor)


def _take_datadir(descriptor: int, datadir: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = _holder(os.fstat(descriptor).st_ino)
        raise InstanceBusy(
            f"{holder} makes a backup of the datadir {datadir}, or restores into it"
        ) from error
    except OSError as error:
        log.warning("can't lock the datadir %s: %s", datadir, error.strerror)
        return False
    return True


def _check_owner(folder: Path) -> None:
    """Refuse a state directory that belongs to another user.

    The agent runs as the owner, who could not use files that this process makes there.

    Raises:
        ConfigInvalid: the directory belongs to another user.
    """
    owner, own = folder.stat().st_uid, os.geteuid()
    if owner != own:
        raise ConfigInvalid(
            f"the state folder {folder} belongs to {_user(owner)}, but this process runs as "
            f"{_user(own)}",
            hint=f"start the daemon by its unit (systemctl start backup-agent), so that it runs as "
            f"{_user(owner)}, and run commands as root",
        )


def _user(number: int) -> str:
    with suppress(KeyError):
        return pwd.getpwuid(number).pw_name
    return f"the user with uid {number}"


def activity_of_holder(path: Path) -> str | None:
    """Return the activity that the holder of the lock file `path` has written into it.

    Return None if no process holds the lock. This function takes no lock itself, so it can't
    disturb an agent.

    Raises:
        JournalError: the file can't be read.
    """
    try:
        if not _holders(path.stat().st_ino):
            return None
        return path.read_bytes()[:_ACTIVITY_BYTES].decode(errors="replace").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise JournalError(
            f"can't read the lock file {path}: {error.strerror}",
            hint="run the command as root, or as the agent's own user",
        ) from error


def _write_activity(descriptor: int, text: str) -> None:
    """Replace the text in the lock file.

    The text always has the same length, in one block of the file. So a full disk can prevent only
    the first write. The text of a holder that has died counts for nothing, because its lock has
    ended with it.
    """
    try:
        os.pwrite(descriptor, text.encode()[:_ACTIVITY_BYTES].ljust(_ACTIVITY_BYTES), 0)
    except OSError as error:
        log.warning("can't write the lock file: %s", error.strerror)


def _holders(inode: int) -> list[str]:
    """Return the ids of the processes that hold a lock on the file with this inode number."""
    # A line is "1: FLOCK  ADVISORY  WRITE 707 00:13:1234 0 EOF" (proc_locks(5)). 707 is the
    # process id, and 1234 is the inode.
    rows = [line.split() for line in _LOCKS.read_text().splitlines()]
    return [row[4] for row in rows if row[1] == "FLOCK" and row[5].rpartition(":")[2] == str(inode)]


def _holder(inode: int) -> str:
    """Return the holder of the lock in words, for a message."""
    try:
        return f"process {_holders(inode)[0]}"
    except (OSError, IndexError):
        return "another process"


def _take(descriptor: int, folder: Path, hint: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = _holder(os.fstat(descriptor).st_ino)
        raise InstanceBusy(
            f"another agent runs already with the state folder {folder}: {holder}", hint=hint
        ) from error
