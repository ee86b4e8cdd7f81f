"""The folder that a restore writes to: whether it may, and where in it the work is done.

A datadir is made in a folder of the restore's own inside the target, whose name tells whose it
is, and moved up as a whole in the end. So no server starts on half a database, and what a crash
leaves can be removed without touching anything else that somebody put there meanwhile.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from agent.errors import SpaceLacking, TargetRefused
from agent.host import free_bytes, nearest, sync_filesystem, sync_folder

_WORK: Final = ".backup-agent-restore-"


class Work:
    """Where the restore `run_id` (a UUID) works inside its target."""

    def __init__(self, target: Path, run_id: str) -> None:
        self.target = target
        self.folder = target / f"{_WORK}{run_id}"
        self.datadir = self.folder / "datadir"
        self.incremental = self.folder / "incremental"
        self._note = self.folder / "entries.json"

    def make(self) -> None:
        """Make it, and the target where that is missing, for this user alone; TargetRefused."""
        with usable(self.target):
            # `parents` of mkdir gives the parents the umask's mode
            self.target.parent.mkdir(parents=True, exist_ok=True)
            for folder in (self.target, self.folder):
                folder.mkdir(mode=0o700, exist_ok=folder is self.target)

    def sync(self) -> None:
        """Have all of the datadir on the disk; TargetRefused where that fails."""
        with usable(self.target):
            sync_filesystem(self.folder)

    def move_up(self) -> None:
        """Move the datadir's entries into the target, and remove the work folder.

        Begun by a process that was killed, it goes on where that was; nothing is left to do
        where it had ended. TargetRefused where that fails, an entry's name is taken, or what was
        moved before isn't there any more; those that this call moved are moved back then.
        """
        moved: list[Path] = []
        try:
            with usable(self.target):
                names = self._noted()
                for entry in self._entries():
                    self._move(entry)
                    moved.append(entry)
                self._check(names)
                sync_folder(self.target)
        except TargetRefused:
            with usable(self.target):
                for entry in reversed(moved):
                    (self.target / entry.name).rename(entry)
            raise
        self.remove()

    def remove(self) -> None:
        """Remove what the restore left, and nothing else; TargetRefused where that fails."""
        with usable(self.target), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.folder)
            sync_folder(self.target)

    def _noted(self) -> list[str]:
        """The names of all entries, which are noted before the first of them is moved."""
        if not self._note.exists() and self.datadir.exists():
            draft = self._note.with_suffix(".partial")
            with draft.open("w", encoding="utf-8") as file:
                json.dump([entry.name for entry in self._entries()], file)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._note)
            sync_folder(self.folder)
        try:
            return [str(name) for name in json.loads(self._note.read_bytes())]
        except FileNotFoundError:
            return []

    def _check(self, names: Sequence[str]) -> None:
        gone = [name for name in names if not os.path.lexists(self.target / name)]
        if gone:
            raise TargetRefused(f"{self.target / gone[0]} was removed while the restore ran")

    def _entries(self) -> list[Path]:
        try:
            return sorted(self.datadir.iterdir())
        except FileNotFoundError:
            return []

    def _move(self, entry: Path) -> None:
        if os.path.lexists(self.target / entry.name):
            raise TargetRefused(f"{self.target / entry.name} was made while the restore ran")
        entry.rename(self.target / entry.name)


def resolved(roots: Sequence[Path], target: Path) -> Path:
    """`target` with all links resolved, which must be below one of `roots`, or TargetRefused."""
    with usable(target):
        real = target.resolve()
        if not any(root.resolve() in real.parents for root in roots):
            raise TargetRefused(f"{target} is below none of the configured restore roots")
    return real


def target_below(roots: Sequence[Path], target: Path) -> Path:
    """As `resolved`, for a restore that begins; TargetRefused also as by `check_target`."""
    real = resolved(roots, target)
    check_target(target)
    return real


def check_target(target: Path) -> None:
    """TargetRefused unless it is an absolute path to an empty or a missing folder."""
    if not target.is_absolute() or ".." in target.parts:
        raise TargetRefused(f"the target {target} is not an absolute path without '..'")
    with usable(target):
        with contextlib.suppress(FileNotFoundError):
            # says what `exists` keeps to itself: a NUL, a loop of links, a file on the way
            target.lstat()
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise TargetRefused(f"the target {target} is not a folder")
        found = list(target.iterdir()) if target.exists() else []
        left = [entry for entry in found if entry.name.startswith(_WORK)]
        if left:
            raise TargetRefused(
                f"another restore into {target} runs, or was cut off and left {left[0]}",
                hint="remove that folder, if no restore runs there, or name another target",
            )
        if found:
            raise TargetRefused(f"the target {target} is not empty")


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

    TargetRefused where nothing may be written there.
    """
    with usable(target):
        there = nearest(target)
        if not os.access(there, os.W_OK | os.X_OK):
            raise TargetRefused(f"restoring has to write in {there}, which is not allowed")
        if (free := free_bytes(there)) < full + incremental:
            raise SpaceLacking(
                f"restoring needs {full + incremental} bytes under {there}, {free} are free"
            )
