"""What the agent asks of its machine: space, cores, time, and a low priority for itself."""

import contextlib
import ctypes
import math
import os
import re
import resource
import select
import signal
import socket
import time
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import psutil

from agent.errors import ConfigInvalid

_GIB = 1 << 30
_BLOCK = 512  # the unit of st_blocks, whatever the filesystem's own block size (stat(2))
_CGROUPS = Path("/sys/fs/cgroup")
_NICENESS = 10
_UNCOPIED = re.compile(r"ib_logfile\d+|ibtmp\d+|#ib_\w+\.dblwr|core(\.\d+)?")
# MySQL 8.0.30 and later, 8.0 and later
_UNCOPIED_FOLDERS = frozenset({"#innodb_redo", "#innodb_temp"})
_SYSTEM_TABLESPACE = "ibdata1"
_ROUND_SECONDS = 0.05
_IO_LOWEST = 7  # of the best-effort class: 0 to 7 (ioprio_set(2))
_CPUINFO = Path("/proc/cpuinfo")
_TIMESYNC = Path("/run/systemd/timesync/synchronized")
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised


def size_gib(size: int) -> float:
    """`size` bytes in GiB with two decimals, and at least 0.01."""
    return max(0.01, round(size / _GIB, 2))


def datadir_bytes(datadir: Path) -> int:
    """The bytes a datadir takes: the used space of its own filesystem.

    Where it is no mount point itself, the bytes allocated to the files under it.
    ConfigInvalid where it can't be read.
    """
    with _readable(datadir):
        if os.path.ismount(datadir):
            return int(psutil.disk_usage(str(datadir)).used)
        return _allocated(datadir)


def uncopied_bytes(datadir: Path, logs: Iterable[Path]) -> int:
    """Return the bytes under `datadir` that no engine copies as files.

    Those are InnoDB's redo log, temporary tablespaces and doublewrite files, and the server's
    `logs`: each is a file, or the first part of the names of several, as `binlog` of
    `binlog.000001`. ConfigInvalid if a folder can't be read.
    """
    inside = {log for log in logs if datadir in log.parents}
    total = 0
    for folder in {datadir, *(log.parent for log in inside)}:
        names = {log.name for log in inside if log.parent == folder}
        with _readable(folder), contextlib.suppress(FileNotFoundError), os.scandir(folder) as found:
            for entry in found:
                with contextlib.suppress(FileNotFoundError):
                    total += _uncopied(entry, names)
    return total


def _uncopied(entry: "os.DirEntry[str]", logs: set[str]) -> int:
    """Return the bytes of an entry of the datadir that is not copied, else 0."""
    if entry.is_dir(follow_symlinks=False):
        return _allocated(Path(entry.path)) if entry.name in _UNCOPIED_FOLDERS else 0
    own = _UNCOPIED.fullmatch(entry.name) or entry.name in logs
    if own or re.sub(r"\.(\d+|index|state)$", "", entry.name) in logs:
        return entry.stat(follow_symlinks=False).st_blocks * _BLOCK
    return 0


def free_bytes(path: Path) -> int:
    """The bytes this user may still write at `path`, or where it would be created."""
    with _readable(path):
        return int(psutil.disk_usage(str(nearest(path.absolute()))).free)


class Space(NamedTuple):
    """A filesystem: the bytes and files that this user may still make, and all that it has.

    `files` and `free_files` are 0 if it counts none, as btrfs.
    """

    total: int
    free: int
    files: int
    free_files: int


def space_of(path: Path) -> Space:
    """Return the space of the filesystem at `path`, or where it would be created."""
    with _readable(path):
        found = os.statvfs(nearest(path.absolute()))
    unit = found.f_frsize
    return Space(found.f_blocks * unit, found.f_bavail * unit, found.f_files, found.f_favail)


def nearest(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    return next(one for one in (path, *path.parents) if one.exists())


def datadir_around(path: Path, datadirs: Iterable[Path]) -> str | None:
    """Return the datadir that `path` is, or is in, in words; None if it is in none.

    That is one of `datadirs`, or a folder that holds InnoDB's own files. Links are followed.
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
    """Make what was made or renamed in a folder outlast a power cut; OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_filesystem(folder: Path) -> None:
    """Have all that was written to the folder's filesystem on the disk (syncfs(2)); OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(folder))
    finally:
        os.close(descriptor)


def is_this_machine(name: str) -> bool:
    """Return True if all addresses of a host name are this machine's own."""
    try:
        found = {(info[0], str(info[4][0])) for info in socket.getaddrinfo(name, None)}
    except (OSError, UnicodeError):
        return False
    return all(ip_address(one[1]).is_loopback or _is_own(*one) for one in found)


def _is_own(family: int, address: str) -> bool:
    """Whether a socket may have that address: the unit's sandbox lets nobody list them."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def cores() -> int:
    """The cores this process may use: its CPU affinity, and its cgroups' CPU quotas (v2)."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, min([allowed, *_quotas(_own_cgroup(), _CGROUPS)]))


def lower_priority() -> None:
    """Give way to the database: nice 10, lowest best-effort I/O priority.

    Linux keeps both per thread, and what a thread starts inherits them: call it from the
    main thread before any other is started.
    """
    os.nice(max(0, _NICENESS - os.nice(0)))
    psutil.Process().ionice(psutil.IOPRIO_CLASS_BE, _IO_LOWEST)


def end_processes(variable: str, value: str, seconds: float) -> list[str]:
    """Kill this user's processes in whose environment `variable` is exactly `value`.

    As root, those of every user: the engine runs as the datadir's owner then, and a user who
    marks a process puts only that one at risk. Whatever they started inherited the variable.
    Returns what was killed, once it has ended or `seconds` have passed: a process that the
    kernel still holds runs no instruction of its own any more.
    """
    killed: dict[int, str] = {}
    deadline = time.monotonic() + seconds
    # one that was just being forked is seen in the next round
    while found := _kill_marked(variable, value):
        killed |= found
        if time.monotonic() > deadline:
            break
        time.sleep(_ROUND_SECONDS)
    return [f"{name} ({pid})" for pid, name in killed.items()]


def _kill_marked(variable: str, value: str) -> dict[int, str]:
    killed = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if _marked(process, variable, value):
                killed[process.pid] = process.name()
                _kill(process, variable, value)
    return killed


def _marked(process: psutil.Process, variable: str, value: str) -> bool:
    return (
        process.pid != os.getpid()
        and (os.getuid() == 0 or process.uids().real == os.getuid())
        and process.environ().get(variable) == value
    )


def _kill(process: psutil.Process, variable: str, value: str) -> None:
    """Kill it and wait a round for its end; its number may be another process's by now."""
    descriptor = os.pidfd_open(process.pid)
    try:
        # What is asked now is asked of the process that the descriptor stands for, or else that
        # one has ended and the signal reaches nobody.
        if _marked(psutil.Process(process.pid), variable, value):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            select.select([descriptor], [], [], _ROUND_SECONDS)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigInvalid(
            f"can't read {error.filename or path}: {error.strerror}",
            hint="check the path, and run the agent as the database server's own OS user",
        ) from error


def _allocated(folder: Path) -> int:
    """Bytes of all blocks under `folder`; files that vanish meanwhile count nothing."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                total += entry.stat(follow_symlinks=False).st_blocks * _BLOCK
                # this is an estimate; whether all can be read is for others to find out
                if entry.is_dir(follow_symlinks=False) and os.access(entry.path, os.R_OK | os.X_OK):
                    total += _allocated(Path(entry.path))
    return total


def _own_cgroup() -> str:
    """The path of this process's cgroup in the unified hierarchy (cgroups(7)), or `/`."""
    with contextlib.suppress(FileNotFoundError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return line[3:]
    return "/"


def _levels(cgroup: str, root: Path) -> Iterator[Path]:
    """The folder of a cgroup, and those of the cgroups around it."""
    folder = root / cgroup.lstrip("/")
    return (level for level in (folder, *folder.parents) if level.is_relative_to(root))


def _quotas(cgroup: str, root: Path) -> list[int]:
    """CPU quotas in whole cores, rounded up, of a cgroup and those around it."""
    quotas = []
    for level in _levels(cgroup, root):
        with contextlib.suppress(OSError):
            quota, period = (level / "cpu.max").read_text().split()
            if quota != "max":
                quotas.append(math.ceil(int(quota) / int(period)))
    return quotas


def available_bytes() -> int:
    """The memory that can be had without swapping, and within this process's cgroups (v2)."""
    return min([int(psutil.virtual_memory().available), *_memory_left(_own_cgroup(), _CGROUPS)])


def open_files() -> tuple[int, int]:
    """How many files this process may have open: now, and at most without more rights."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def cpu_flags() -> frozenset[str]:
    """What the processor can do, in the kernel's words (`flags` on x86, `Features` on ARM)."""
    with contextlib.suppress(OSError):
        for line in _CPUINFO.read_text().splitlines():
            name, _, flags = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return frozenset(flags.split())
    return frozenset()


def clock_synchronised() -> bool:
    """Whether something keeps the clock right: the kernel knows (adjtimex(2)), or systemd."""
    # asks only, as the first field, `modes`, is 0; larger than struct timex of any Linux
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
    return state in range(_TIME_ERROR) or _TIMESYNC.exists()


def _memory_left(cgroup: str, root: Path) -> list[int]:
    """Bytes until the memory limits of a cgroup and of those around it."""
    left = []
    for level in _levels(cgroup, root):
        with contextlib.suppress(OSError, ValueError):
            limit = int((level / "memory.max").read_text())  # "max": no limit
            used = int((level / "memory.current").read_text())
            found = re.search(r"^inactive_file (\d+)$", (level / "memory.stat").read_text(), re.M)
            # the page cache counts as used, and gives way
            left.append(max(0, limit - used + int(found[1] if found else 0)))
    return left
