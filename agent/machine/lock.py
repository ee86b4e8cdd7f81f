"""One agent at a time for a state folder, and one backup at a time of a datadir.

A second agent with one state folder would end the first one's tasks. With two state folders
only the datadir tells them that they share it: nothing is made there, the folder itself is
locked, which no server does. The kernel gives a lock back when the process ends, whatever
ended it (flock(2)).
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

# Says in the lock file what its holder is at.
Said: TypeAlias = Callable[[str], None]

_LOCKS = Path("/proc/locks")
_SAID_BYTES = 128
SECOND_AGENT = (
    "end the other agent, or wait for its end, or give this instance a state_folder of its own"
)


@contextmanager
def only_agent(path: Path, *, hint: str = SECOND_AGENT) -> Iterator[Said]:
    """Hold the lock file `path` inside the block; make it if it is missing.

    The block is given what says in the file what the holder is at, for `held`. InstanceBusy at
    once if another process holds it, with that `hint`. ConfigInvalid if the folder belongs to
    another user, JournalError if the file or its folder (made with mode 0700) can't be used.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise JournalError(f"the lock file {path} can't be made: {error.strerror}") from error
    try:
        _take(descriptor, path.parent, hint)
        _say(descriptor, "")
        yield partial(_say, descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def only_backup(datadir: Path) -> Iterator[None]:
    """Hold a lock on the folder `datadir` itself inside the block.

    InstanceBusy at once where another process holds it, ConfigInvalid where the folder can't be
    opened. A filesystem that has no such locks (NFS locks what is open for writing only) gives
    none, which is logged.
    """
    try:
        descriptor = os.open(datadir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigInvalid(
            f"can't open the datadir {datadir}: {error.strerror}",
            hint="run the agent as the database server's own OS user",
        ) from error
    try:
        _take_datadir(descriptor, datadir)
        yield
    finally:
        os.close(descriptor)


def _take_datadir(descriptor: int, datadir: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = _holder(os.fstat(descriptor).st_ino)
        raise InstanceBusy(f"{holder} makes a backup of the datadir {datadir}") from error
    except OSError as error:
        log.warning("the datadir %s can't be locked: %s", datadir, error.strerror)


def _check_owner(folder: Path) -> None:
    """Refuse another user's state folder: its owner could not use files that we make there."""
    owner, own = folder.stat().st_uid, os.geteuid()
    if owner != own:
        raise ConfigInvalid(
            f"the state folder {folder} belongs to {_user(owner)}, and this runs as {_user(own)}",
            hint=f"run the daemon as {_user(owner)}, by its unit (systemctl start backup-agent), "
            "and commands as root",
        )


def _user(number: int) -> str:
    with suppress(KeyError):
        return pwd.getpwuid(number).pw_name
    return f"the user with number {number}"


def held(path: Path) -> str | None:
    """Return what the holder of that lock file says it is at, None if no process holds it.

    Takes no lock, and so disturbs nobody. JournalError if the file can't be read.
    """
    try:
        if not _holders(path.stat().st_ino):
            return None
        return path.read_bytes()[:_SAID_BYTES].decode(errors="replace").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise JournalError(
            f"the lock file {path} can't be read: {error.strerror}",
            hint="run the command as root, or as the agent's own user",
        ) from error


def _say(descriptor: int, text: str) -> None:
    """Replace what the lock file says, in its one block, so that a full disk hinders it once only.

    What a dead holder said counts for nothing: the lock is gone with it.
    """
    try:
        os.pwrite(descriptor, text.encode()[:_SAID_BYTES].ljust(_SAID_BYTES), 0)
    except OSError as error:
        log.warning("the lock file can't be written: %s", error.strerror)


def _holders(inode: int) -> list[str]:
    """The numbers of the processes that hold a lock on the file with that inode."""
    # 1: FLOCK  ADVISORY  WRITE 707 00:13:1234 0 EOF (proc_locks(5)); the last part is the inode
    rows = [line.split() for line in _LOCKS.read_text().splitlines()]
    return [row[4] for row in rows if row[1] == "FLOCK" and row[5].rpartition(":")[2] == str(inode)]


def _holder(inode: int) -> str:
    try:
        return f"the process with number {_holders(inode)[0]}"
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
