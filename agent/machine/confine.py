"""Limit a program's writes to the directories that it works in (Linux Landlock).

An engine that prepares a backup takes paths from the backup's own files, which are its redo log,
its link files and its options. With Landlock the kernel refuses every write, removal, rename and
new file elsewhere. No privilege is needed. This is a second protection. The first is that paths
that are known to lead outside are refused before an engine starts.

This protection is missing if the kernel's Landlock is switched off or is version 1 (Linux 5.13 to
5.18). Version 1 isn't used, because it refuses every rename from one directory to another, even
between allowed directories. The extractor then drops such a file without a message.

The system calls, numbers and structures are in landlock(7) and include/uapi/linux/landlock.h.
"""

import ctypes
import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

from agent.machine.kernel import LIBC, checked

log = logging.getLogger(__name__)

# These numbers are the same on every architecture since Linux 5.1.
_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_VERSION: Final = 1  # LANDLOCK_CREATE_RULESET_VERSION
_PATH_BENEATH: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38

_WRITE_FILE: Final = 1 << 1
_TRUNCATE: Final = 1 << 14
_LEAST_VERSION: Final = 2
# The rights, by the Landlock version that introduced them. Version 2 has the rights to write, to
# remove and make anything, and to link or rename from one directory to another. Version 3 adds the
# right to truncate.
_RIGHTS: Final = {2: _WRITE_FILE | 0x3FF0, 3: _TRUNCATE}
_FOR_FILES: Final = _WRITE_FILE | _TRUNCATE
_DEVICES: Final = (Path("/dev/null"), Path("/dev/zero"))


class _Ruleset(ctypes.Structure):
    _fields_ = (("handled_access_fs", ctypes.c_uint64),)


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def confine_thread(writable: Sequence[Path]) -> None:
    """Let this thread, and the programs that it starts, write only below `writable`.

    The limit can't be removed again. If the kernel has no usable Landlock, log that once and do
    nothing.

    Raises:
        OSError: a directory of `writable` can't be opened, or a system call fails.
    """
    rights = sum(right for since, right in _RIGHTS.items() if since <= _version())
    if not rights:
        _warn()
        return
    ruleset = _Ruleset(rights)
    handle = _call(_CREATE_RULESET, ctypes.byref(ruleset), ctypes.sizeof(ruleset), 0)
    try:
        for path in writable:
            _allow(handle, path, rights)
        for path in _DEVICES:
            _allow(handle, path, rights & _FOR_FILES)
        # The kernel requires this of threads without CAP_SYS_ADMIN, and it is good for all others.
        checked(LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "landlock")
        _call(_RESTRICT_SELF, handle, 0)
    finally:
        os.close(handle)


@cache
def _warn() -> None:
    log.warning(
        "the kernel has no Landlock of version %d or later (Linux 5.19): one protection against a "
        "hostile backup is missing",
        _LEAST_VERSION,
    )


def _version() -> int:
    """Return the version of the kernel's Landlock, or 0 if it has none."""
    version = int(LIBC.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION))
    return max(version, 0)


def _allow(handle: int, path: Path, rights: int) -> None:
    """Add a rule to the ruleset `handle` that allows `rights` at `path` and below it."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = _PathBeneath(rights, descriptor)
        _call(_ADD_RULE, handle, _PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: object) -> int:
    return checked(int(LIBC.syscall(number, *arguments)), "landlock")
