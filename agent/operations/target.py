"""The folder that a restore writes to: whether it may, and what is left after a failure."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.errors import SpaceLacking, TargetRefused
from agent.host import free_bytes, nearest


def target_below(roots: Sequence[Path], target: Path) -> Path:
    """`target` with all links resolved, which must be below one of `roots`, or TargetRefused.

    Not a root itself: incrementals are extracted beside the target.
    """
    with usable(target):
        real = target.resolve()
        if not any(root.resolve() in real.parents for root in roots):
            raise TargetRefused(f"{target} is below none of the configured restore roots")
    check_target(target)
    return real


def check_target(target: Path) -> None:
    """TargetRefused unless it is an absolute path to an empty or a missing folder."""
    if not target.is_absolute() or ".." in target.parts:
        raise TargetRefused(f"the target {target} is not an absolute path without '..'")
    with usable(target):
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise TargetRefused(f"the target {target} is not a folder")
        if target.exists() and any(target.iterdir()):
            raise TargetRefused(f"the target {target} is not empty")
        with contextlib.suppress(FileNotFoundError):
            folder_beside(target).lstat()
            raise TargetRefused(
                f"{folder_beside(target)}, where incrementals would be extracted, exists already",
                hint="remove it, if no restore runs there, or name another target",
            )


def folder_beside(target: Path) -> Path:
    """Where an incremental is extracted before it is applied to the target."""
    return target.with_name(f".{target.name}.incremental")


@contextlib.contextmanager
def usable(target: Path) -> Iterator[None]:
    """What the system says of a path becomes TargetRefused.

    ValueError and RuntimeError are pathlib's own words for a NUL and for a loop of links.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TargetRefused(f"the target {target} can't be used: {reason}") from error


def check_space(target: Path, full: int, incremental: int) -> None:
    """SpaceLacking unless so many bytes fit there: the full backup, and the largest incremental.

    An incremental lies beside the target, which may be another filesystem where the target is
    a mount point: TargetRefused where nothing may be written there.
    """
    needs = {target: full} | ({folder_beside(target): incremental} if incremental else {})
    wanted: dict[int, int] = {}
    with usable(target):
        for folder, size in needs.items():
            there = nearest(folder)
            if not os.access(there, os.W_OK | os.X_OK):
                raise TargetRefused(f"restoring has to write in {there}, which is not allowed")
            device = there.stat().st_dev
            wanted[device] = wanted.get(device, 0) + size
            if (free := free_bytes(there)) < wanted[device]:
                raise SpaceLacking(
                    f"restoring needs {wanted[device]} bytes under {there}, {free} are free"
                )


def clear(target: Path, *, remove: bool) -> None:
    """Remove what a failed restore left: it is half a database."""
    if not target.exists():
        return
    for entry in target.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    if remove:
        target.rmdir()
