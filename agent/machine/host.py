"""This machine's space, memory, cores and clock, and control over processes.

The module also lowers the priority of this process, and kills processes that carry a mark.
"""

import contextlib
import ctypes
import errno
import math
import os
import re
import resource
import select
import signal
import socket
import stat
import time
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import psutil

from agent.errors import ConfigInvalid

_GIB = 1 << 30
_BLOCK = 512  # the unit of st_blocks in bytes, for every filesystem (stat(2))
_CGROUPS = Path("/sys/fs/cgroup")
_NICENESS = 10
_UNCOPIED = re.compile(r"ib_logfile\d+|ibtmp\d+|#ib_\w+\.dblwr|core(\.\d+)?")
# The first exists in MySQL 8.0.30 and later, and the second in MySQL 8.0 and later.
_UNCOPIED_FOLDERS = frozenset({"#innodb_redo", "#innodb_temp"})
_SYSTEM_TABLESPACE = "ibdata1"
_ROUND_SECONDS = 0.05
_IO_LOWEST = 7  # the lowest priority of the best-effort class, from 0 to 7 (ioprio_set(2))
_CPUINFO = Path("/proc/cpuinfo")
_TIMESYNC = Path("/run/systemd/timesync/synchronized")
_TIME_ERROR = 5  # the result of adjtimex(2) if the clock is not synchronised


def size_gib(size: int) -> float:
    """Return `size` bytes in GiB, with two decimals and at least 0.01."""
    return max(0.01, round(size / _GIB, 2))


def datadir_bytes(datadir: Path) -> int:
    """Return the bytes that a datadir uses.

    If the datadir is a mount point, they are the used bytes of its filesystem. If not, they are the
    bytes allocated to the files below it.

    Raises:
        ConfigInvalid: the datadir can't be read.
    """
    with _errors_translated(datadir):
        if os.path.ismount(datadir):
            return int(psutil.disk_usage(str(datadir)).used)
        return _allocated(datadir)


def uncopied_bytes(datadir: Path, logs: Iterable[Path]) -> int:
    """Return the bytes below `datadir` that no engine copies as files.

    They are InnoDB's redo log, temporary tablespaces and doublewrite files, core files, and the
    server's `logs`. Each of `logs` is a file, or the first part of the names of several files. An
    example is `binlog` for `binlog.000001`.

    Raises:
        ConfigInvalid: a directory can't be read.
    """
    inside = {log for log in logs if datadir in log.parents}
    total = 0
    for folder in {datadir, *(log.parent for log in inside)}:
        names = {log.name for log in inside if log.parent == folder}
        with (
            _errors_translated(folder),
            contextlib.suppress(FileNotFoundError),
            os.scandir(folder) as found,
        ):
            for entry in found:
                with contextlib.suppress(FileNotFoundError):
                    total += _uncopied(entry, names)
    return total


def _uncopied(entry: "os.DirEntry[str]", logs: set[str]) -> int:
    """Return the bytes of a datadir's entry if no engine copies it, or else 0."""
    if entry.is_dir(follow_symlinks=False):
        return _allocated(Path(entry.path)) if entry.name in _UNCOPIED_FOLDERS else 0
    own = _UNCOPIED.fullmatch(entry.name) or entry.name in logs
    if own or re.sub(r"\.(\d+|index|state)$", "", entry.name) in logs:
        return entry.stat(follow_symlinks=False).st_blocks * _BLOCK
    return 0


def free_bytes(path: Path) -> int:
    """Return the bytes that this user may still write at `path`.

    If `path` does not exist, the nearest existing directory above it counts.

    Raises:
        ConfigInvalid: the filesystem can't be queried.
    """
    with _errors_translated(path):
        return int(psutil.disk_usage(str(nearest(path.absolute()))).free)


class Space(NamedTuple):
    """The space of a filesystem, in bytes and in files.

    `total` and `files` are all that the filesystem has. `free` and `free_files` are those that this
    user may still use. `files` and `free_files` are 0 if the filesystem does not count files
    (btrfs).
    """

    total: int
    free: int
    files: int
    free_files: int


def space_of(path: Path) -> Space:
    """Return the space of the filesystem at `path`.

    If `path` does not exist, the nearest existing directory above it counts.

    Raises:
        ConfigInvalid: the filesystem can't be queried.
    """
    with _errors_translated(path):
        found = os.statvfs(nearest(path.absolute()))
    unit = found.f_frsize
    return Space(found.f_blocks * unit, found.f_bavail * unit, found.f_files, found.f_favail)


def nearest(path: Path) -> Path:
    """Return `path` if it exists, or else the nearest existing directory above it."""
    return next(one for one in (path, *path.parents) if one.exists())


def datadir_around(path: Path, datadirs: Iterable[Path]) -> str | None:
    """Return in words the datadir that `path` is, or lies in.

    A datadir is one of `datadirs`, or a directory that holds InnoDB's own files. Links are
    followed. Return None if `path` is in no datadir.
    """
    known = {os.path.realpath(datadir) for datadir in datadirs}
    real = os.path.realpath(path)
    for folder in (real, *map(str, Path(real).parents)):
        if folder in known:
            return f"{folder}, the server's own datadir"
        if os.path.lexists(f"{folder}/{_SYSTEM_TABLESPACE}"):
            return f"{folder}, which is a datadir: it holds {_SYSTEM_TABLESPACE}"
    return None


def sync_folder(folder: Path) -> None:
    """Make files that were created or renamed in a directory survive a power failure.

    Raises:
        OSError: the directory can't be opened or synced.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, text: str, *, mode: int | None = None) -> None:
    """Write a file so that a crash leaves either its old content or all of `text`.

    `mode` is its mode. None means that of the umask.

    Raises:
        OSError: the file can't be written or synced.
    """
    draft = path.with_suffix(".partial")
    draft.unlink(missing_ok=True)
    with draft.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        if mode is not None:
            os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(path.parent)


def read_regular(path: Path, limit: int) -> bytes:
    """Return the content of a file of at most `limit` bytes. It may not be a link or a FIFO.

    Raises:
        OSError: it can't be read, or it is no such file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            raise OSError(errno.EINVAL, "it is not a small regular file", str(path))
        return file.read(limit)


def sync_filesystem(folder: Path) -> None:
    """Write all pending data of the directory's filesystem to the disk (syncfs(2)).

    Raises:
        OSError: the directory can't be opened, or the data can't be written.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(folder))
    finally:
        os.close(descriptor)


def is_this_machine(name: str) -> bool:
    """Return True if all addresses of a host name are this machine's own.

    Return False if the name can't be resolved.
    """
    try:
        found = {(info[0], str(info[4][0])) for info in socket.getaddrinfo(name, None)}
    except (OSError, UnicodeError):
        return False
    return all(ip_address(one[1]).is_loopback or _is_own(*one) for one in found)


def _is_own(family: int, address: str) -> bool:
    """Return True if a socket of this machine can be bound to `address`.

    The addresses aren't listed, because the sandbox of the systemd unit doesn't allow it.
    """
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def cores() -> int:
    """Return the number of cores that this process may use.

    It is limited by the CPU affinity, and by the CPU quotas of the cgroups (v2).
    """
    allowed = len(os.sched_getaffinity(0))
    return max(1, min([allowed, *_quotas(_own_cgroup(), _CGROUPS)]))


def lower_priority() -> None:
    """Lower this process's priority, in favour of the database.

    The nice value becomes at least 10, and the I/O priority the lowest one of the best-effort
    class. Linux keeps both for each thread. The threads and processes that a thread starts inherit
    them. So call this function from the main thread, before any other thread starts.
    """
    os.nice(max(0, _NICENESS - os.nice(0)))
    psutil.Process().ionice(psutil.IOPRIO_CLASS_BE, _IO_LOWEST)


def end_processes(variable: str, value: str, seconds: float) -> list[str]:
    """Kill this user's processes that have `variable` in their environment with exactly `value`.

    Processes that they have started inherited the variable, so these are killed, too. If this
    process is root, kill such processes of every user, because the engine then runs as the
    datadir's owner. This is safe, because a user who marks a process in this way endangers only
    that process.

    Return the names and numbers of the killed processes, when all have ended or `seconds` have
    passed. A killed process that the kernel still holds then executes no more code of its own.
    """
    killed: dict[int, str] = {}
    deadline = time.monotonic() + seconds
    # The next round finds a process that was just being forked.
    while found := _kill_marked(variable, value):
        killed |= found
        if time.monotonic() > deadline:
            break
        time.sleep(_ROUND_SECONDS)
    return [f"{name} ({pid})" for pid, name in killed.items()]


def _kill_marked(variable: str, value: str) -> dict[int, str]:
    """Kill the processes with this variable, and return their names by their numbers."""
    killed = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if _marked(process, variable, value):
                killed[process.pid] = process.name()
                _kill(process, variable, value)
    return killed


def _marked(process: psutil.Process, variable: str, value: str) -> bool:
    """Return True if `process` has this variable and may be killed by this user."""
    return (
        process.pid != os.getpid()
        and (os.getuid() == 0 or process.uids().real == os.getuid())
        and process.environ().get(variable) == value
    )


def _kill(process: psutil.Process, variable: str, value: str) -> None:
    """Kill `process`, and wait for its end for at most 0.05 seconds.

    Before that, check the process again, because another process may have got its number.
    """
    descriptor = os.pidfd_open(process.pid)
    try:
        # Either this checks the process of the descriptor, or that process has ended. In the latter
        # case the signal reaches no process.
        if _marked(psutil.Process(process.pid), variable, value):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            select.select([descriptor], [], [], _ROUND_SECONDS)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _errors_translated(path: Path) -> Iterator[None]:
    """Raise ConfigInvalid for an OSError in the block."""
    try:
        yield
    except OSError as error:
        raise ConfigInvalid(
            f"can't read {error.filename or path}: {error.strerror}",
            hint="check the path, and run the agent as the database server's own OS user",
        ) from error


def _allocated(folder: Path) -> int:
    """Return the bytes of all blocks below `folder`.

    Files that are deleted meanwhile count nothing.
    """
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                total += entry.stat(follow_symlinks=False).st_blocks * _BLOCK
                # Skip a directory that this user can't read, because the result is an estimate.
                # Other code checks that all directories can be read.
                if entry.is_dir(follow_symlinks=False) and os.access(entry.path, os.R_OK | os.X_OK):
                    total += _allocated(Path(entry.path))
    return total


def _own_cgroup() -> str:
    """Return the path of this process's cgroup in the unified hierarchy (cgroups(7)).

    Return `/` if there is none.
    """
    with contextlib.suppress(FileNotFoundError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return line[3:]
    return "/"


def _levels(cgroup: str, root: Path) -> Iterator[Path]:
    """Return the directory of a cgroup, and those of the cgroups that contain it."""
    folder = root / cgroup.lstrip("/")
    return (level for level in (folder, *folder.parents) if level.is_relative_to(root))


def _quotas(cgroup: str, root: Path) -> list[int]:
    """Return the CPU quotas of a cgroup, and of the cgroups that contain it.

    The unit is whole cores, rounded up. A cgroup without a quota adds nothing to the list.
    """
    quotas = []
    for level in _levels(cgroup, root):
        with contextlib.suppress(OSError):
            quota, period = (level / "cpu.max").read_text().split()
            if quota != "max":
                quotas.append(math.ceil(int(quota) / int(period)))
    return quotas


def available_bytes() -> int:
    """Return the bytes of memory that this process can get without swapping.

    The memory limits of its cgroups (v2) count, too.
    """
    return min([int(psutil.virtual_memory().available), *_memory_left(_own_cgroup(), _CGROUPS)])


def open_files() -> tuple[int, int]:
    """Return the soft and the hard limit of files that this process may have open.

    The process may raise its soft limit up to the hard limit without further rights.
    """
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def cpu_flags() -> frozenset[str]:
    """Return the processor's features by the kernel's names.

    The kernel lists them as `flags` on x86, and as `Features` on ARM. Return an empty set if they
    can't be read.
    """
    with contextlib.suppress(OSError):
        for line in _CPUINFO.read_text().splitlines():
            name, _, flags = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return frozenset(flags.split())
    return frozenset()


def clock_synchronised() -> bool:
    """Return True if the kernel (adjtimex(2)) or systemd reports a synchronised clock."""
    # The call only reads, because the first field, `modes`, is 0. The buffer is larger than struct
    # timex of any Linux.
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
    return state in range(_TIME_ERROR) or _TIMESYNC.exists()


def _memory_left(cgroup: str, root: Path) -> list[int]:
    """Return the bytes that are free until each memory limit of a cgroup.

    The limits of the cgroups that contain it count, too. A cgroup without a limit adds nothing.
    """
    left = []
    for level in _levels(cgroup, root):
        with contextlib.suppress(OSError, ValueError):
            # The value "max" means no limit. int() then raises ValueError.
            limit = int((level / "memory.max").read_text())
            used = int((level / "memory.current").read_text())
            found = re.search(r"^inactive_file (\d+)$", (level / "memory.stat").read_text(), re.M)
            # The page cache counts as used, but the kernel frees it when memory is needed.
            left.append(max(0, limit - used + int(found[1] if found else 0)))
    return left
