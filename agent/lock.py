"""One agent at a time for a state folder: a second one would end the first one's tasks.

The kernel gives the lock back when the process ends, whatever ended it (flock(2)).
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.errors import ConfigInvalid, JournalError

_LOCKS = Path("/proc/locks")


@contextmanager
def only_agent(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, which is made where there is none, inside the block.

    ConfigInvalid at once where another process holds it or the folder is another user's,
    JournalError where the file or its folder (made with mode 0700) can't be used.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise JournalError(f"the lock file {path} can't be made: {error.strerror}") from error
    try:
        _take(descriptor, path.parent)
        yield
    finally:
        os.close(descriptor)


def _check_owner(folder: Path) -> None:
    """What root made in the state folder of `mysql`, the agent could not use any more."""
    owner = folder.stat().st_uid
    if owner != os.geteuid():
        raise ConfigInvalid(
            f"the state folder {folder} is that of the user with number {owner}",
            hint=f"run it as that user (sudo -u '#{owner}'), or have the running agent do it",
        )


def held(path: Path) -> bool:
    """Whether some process holds that lock file; takes nothing, so that it disturbs nobody."""
    try:
        inode = path.stat().st_ino
        locks = _LOCKS.read_text()
    except OSError:
        return False
    # 1: FLOCK  ADVISORY  WRITE 707 00:13:1234 0 EOF (proc_locks(5)); the last part is the inode
    return any(
        line.split()[1] == "FLOCK" and line.split()[5].rpartition(":")[2] == str(inode)
        for line in locks.splitlines()
    )


def _take(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigInvalid(
            f"another agent runs already with the state folder {folder}",
            hint="end the other agent, or give this instance a state_folder of its own",
        ) from error
