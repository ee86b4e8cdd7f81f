"""Mounts of the calling process's own mount namespace."""

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_MS_RDONLY, _MS_REMOUNT, _MS_BIND = 0x1, 0x20, 0x1000


def bind(source: Path | str, target: Path, *, read_only: bool = False) -> None:
    """Show `source` at `target`, without the mounts below it. Create what is missing of both."""
    if Path(source).is_dir() or not Path(source).exists():
        Path(source).mkdir(parents=True, exist_ok=True)
        target.mkdir(parents=True, exist_ok=True)
    elif not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount(str(source), target, "", _MS_BIND)
    if read_only:
        freeze(target)


def freeze(mount: Path) -> None:
    """Make a mount read-only, also for root. Mounts below it stay as they are."""
    _mount("", mount, "", _MS_BIND | _MS_REMOUNT | _MS_RDONLY)


def memory(target: Path, *, device: str = "tmpfs", options: str = "mode=0755") -> None:
    """Mount an empty file system in memory. `device` is its name in /proc/mounts."""
    target.mkdir(parents=True, exist_ok=True)
    _mount(device, target, "tmpfs", 0, options)


def processes(target: Path) -> None:
    """Show the processes of this process's own tree at `target`, as /proc does."""
    _mount("proc", target, "proc", 0)


def hide(target: Path, kept: Iterable[Path], *, options: str = "mode=0755") -> None:
    """Hide a directory behind an empty file system in memory. Paths in `kept` stay visible."""
    held = [(path, os.open(path, os.O_PATH)) for path in kept if path.is_relative_to(target)]
    memory(target, options=options)
    for path, descriptor in held:
        bind(f"/proc/self/fd/{descriptor}", path)
        os.close(descriptor)


def overlay(target: Path, upper: Path) -> None:
    """Let `target` be written without an effect on it. The changes go to `upper`.

    Mounts below `target` are hidden.
    """
    changes, work = upper / "changes", upper / "work"
    for folder in (changes, work):
        folder.mkdir(parents=True)
    options = f"lowerdir={target},upperdir={changes},workdir={work}"
    _mount("overlay", target, "overlay", 0, options)


def _mount(source: str, target: Path, kind: str, flags: int, options: str = "") -> None:
    arguments = (source.encode(), str(target).encode(), kind.encode())
    if _LIBC.mount(*arguments, ctypes.c_ulong(flags), options.encode() or None):
        error = ctypes.get_errno()
        raise OSError(error, f"can't mount {source or kind} there: {os.strerror(error)}", target)
