"""What the agent asks of its machine: space, cores, and a low priority for itself."""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from agent.errors import ConfigInvalid

_GIB = 1 << 30
_BLOCK = 512  # the unit of st_blocks, whatever the filesystem's own block size (stat(2))
_CGROUPS = Path("/sys/fs/cgroup")
_NICENESS = 10
_IO_LOWEST = 7  # of the best-effort class: 0 to 7 (ioprio_set(2))


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


def free_bytes(path: Path) -> int:
    """The bytes this user may still write at `path`, or where it would be created."""
    with _readable(path):
        existing = path.absolute()
        while not existing.exists():
            existing = existing.parent
        return int(psutil.disk_usage(str(existing)).free)


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
                if entry.is_dir(follow_symlinks=False):
                    total += _allocated(Path(entry.path))
    return total


def _own_cgroup() -> str:
    """The path of this process's cgroup in the unified hierarchy (cgroups(7)), or `/`."""
    with contextlib.suppress(FileNotFoundError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return line[3:]
    return "/"


def _quotas(cgroup: str, root: Path) -> list[int]:
    """CPU quotas in whole cores, rounded up, of a cgroup and those around it."""
    quotas = []
    folder = root / cgroup.lstrip("/")
    for level in (folder, *folder.parents):
        if not level.is_relative_to(root):
            break
        with contextlib.suppress(OSError):
            quota, period = (level / "cpu.max").read_text().split()
            if quota != "max":
                quotas.append(math.ceil(int(quota) / int(period)))
    return quotas
