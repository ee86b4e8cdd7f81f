"""The folder that a restore writes to: whether it may, and where in it the work is done.

A datadir is made in a folder of the restore's own inside the target, whose name tells whose it
is, and moved up as a whole in the end. So no server starts on half a database, and what a crash
leaves can be removed without touching anything else that somebody put there meanwhile.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

from agent.account import FRESH, hand_over, remove_empty
from agent.codec.stream_paths import MAX_INCREMENTAL, MAX_OPENED
from agent.engine.as_user import done_as
from agent.engine.os_user import OsUser, first_user, owner_of
from agent.engine.passage import closed_directory, possible
from agent.errors import TargetRefused
from agent.host import datadir_around, nearest, sync_filesystem, sync_folder

_WORK: Final = ".backup-agent-restore-"
_SERVER_USERS: Final = ("mysql", "nobody")
_NAMED: Final = 5
# What the work folder adds to the target's path in bytes, in front of an incremental's paths.
_ADDED: Final = len(f"/{_WORK}{'x' * 36}/incremental/")
# MariaDB 10.6 and later have a path of 57 bytes themselves, in the schema `sys`.
_LONGEST: Final = MAX_OPENED - _ADDED - 57
_ALWAYS: Final = MAX_OPENED - _ADDED - MAX_INCREMENTAL

T = TypeVar("T")


class Work:
    """Where the restore `run_id` (a UUID) works inside its target.

    All that is made there is `user`'s, None being this process's own. So is the target, in which
    that user may put links at any moment: as root this process does everything below it with no
    more rights than `user` has.
    """

    def __init__(self, target: Path, run_id: str, user: OsUser | None = None) -> None:
        self._named = target
        # another user reaches the real path alone (passage.py)
        self.target = target if user is None else target.resolve()
        self.user = user
        self.folder = self.target / f"{_WORK}{run_id}"
        self.datadir = self.folder / "datadir"
        self.incremental = self.folder / "incremental"
        self._note = self.folder / "entries.json"

    def as_user(self, work: Callable[[], T]) -> T:
        """Do `work` on files below the target with the user's rights; TargetRefused."""
        with usable(self.target):
            return done_as(self.user, self.target, work)

    def make(self) -> None:
        """Make it, and the target if it is missing, for the user alone; TargetRefused.

        An empty target of root's is given to the user. It is refused if the user couldn't get
        there.
        """
        with usable(self.target):
            if self.user is not None:
                hand_over(self._named, self.user.uid, self.user.gid)
                _check_way(self.user, self.target)
            elif not self.target.exists():
                # `parents` of mkdir gives the parents the umask's mode
                self.target.mkdir(mode=0o700, parents=True)
        self.make_inside(self.folder)

    def make_inside(self, folder: Path) -> None:
        """Make one of the folders in it; TargetRefused."""
        self.as_user(lambda: folder.mkdir(mode=0o700))

    def remove_inside(self, folder: Path) -> None:
        """Remove one of the folders in it; TargetRefused."""
        self.as_user(lambda: shutil.rmtree(folder))

    def remove_target(self) -> None:
        """Remove the target if it is empty; TargetRefused."""
        with usable(self.target):
            remove_empty(self._named) if self.user else self._named.rmdir()

    def sync(self) -> None:
        """Have all of the datadir on the disk; TargetRefused where that fails."""
        self.as_user(lambda: sync_filesystem(self.folder))

    def move_up(self) -> None:
        """Move the datadir's entries into the target, and remove the work folder.

        Begun by a process that was killed, it goes on where that was; nothing is left to do
        where it had ended. TargetRefused where that fails, an entry's name is taken, or what was
        moved before isn't there any more; those that this call moved are moved back then.
        """
        self.as_user(self._move_up)
        self.remove()

    def _move_up(self) -> None:
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

    def remove(self) -> None:
        """Remove what the restore left, and nothing else; TargetRefused where that fails."""
        with usable(self.target):
            if os.path.lexists(self.folder):
                self.as_user(self._remove)

    def _remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.folder)
            sync_folder(self.target)

    def _noted(self) -> list[str]:
        """The names of all entries, which are noted before the first of them is moved."""
        if not self._note.exists() and self.datadir.exists():
            draft = self._note.with_suffix(".partial")
            draft.unlink(missing_ok=True)
            with draft.open("x", encoding="utf-8") as file:
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


def check_target(target: Path, datadirs: Sequence[Path] = ()) -> None:
    """Check that a restore may begin in `target`; TargetRefused.

    It is an absolute path to a missing folder, to an empty one, or to the root of a fresh
    filesystem, which holds `lost+found`. It is no datadir, and in none: neither in one of
    `datadirs` nor below a folder that holds InnoDB's own files.
    """
    if not target.is_absolute() or ".." in target.parts:
        raise TargetRefused(f"the target {target} is not an absolute path without '..'")
    with usable(target):
        excess = len(os.fsencode(target.resolve())) - _LONGEST
        if excess > 0:
            raise too_long(excess)
        with contextlib.suppress(FileNotFoundError):
            # says what `exists` keeps to itself: a NUL, a loop of links, a file on the way
            target.lstat()
        if target.is_symlink():
            raise TargetRefused(
                f"the target {target} is a symbolic link",
                hint="name the folder itself that it leads to, as realpath prints it",
            )
        if target.exists() and not target.is_dir():
            raise TargetRefused(f"the target {target} is not a folder")
        if around := datadir_around(target, datadirs):
            raise TargetRefused(f"the target {target} is in {around}")
        found = sorted(target.iterdir()) if target.exists() else []
        _check_empty(target, [one for one in found if one.name != FRESH or not one.is_dir()])


def check_paths(work: Work, longest: int) -> None:
    """Check that an engine can open the incrementals' files, whose longest path has `longest`
    bytes; TargetRefused."""
    with usable(work.target):
        folder = work.incremental.resolve()
    excess = len(os.fsencode(folder)) + 1 + longest - MAX_OPENED
    if longest and excess > 0:
        raise too_long(excess)


def too_long(excess: int) -> TargetRefused:
    """Return the error for a target whose path has `excess` bytes too many."""
    return TargetRefused(
        f"the path of the target, with all links resolved, is too long by {excess} bytes: an "
        f"engine opens paths of {MAX_OPENED} bytes at most, and the names of schemas and tables "
        "stand behind it",
        hint=f"restore into a folder with a shorter path; one of {_ALWAYS} bytes or less takes "
        "every backup",
    )


def _check_empty(target: Path, found: Sequence[Path]) -> None:
    left = [entry for entry in found if entry.name.startswith(_WORK)]
    if left:
        raise TargetRefused(
            f"another restore into {target} runs, or was cut off and left {left[0]}",
            hint="remove that folder, if no restore runs there, or name another target",
        )
    if found:
        names = ", ".join(repr(entry.name) for entry in found[:_NAMED])
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise TargetRefused(f"the target {target} is not empty: it holds {names}{more}")


def restore_user(target: Path, datadirs: Sequence[Path]) -> OsUser | None:
    """Return whom a restore's programs run as; None is this process's own user.

    What they read was made by somebody else, so nothing of it runs as root, if root is not the
    one whom the server's datadir belongs to. It is the owner of the target, or of the folder
    that it will be made in, if that is not root; else the owner of the server's datadir; without
    a server here `mysql`, or `nobody`. TargetRefused if there is neither.
    """
    if os.geteuid() != 0:
        return None
    if (owner := owner_of(nearest(target))) is not None:
        return owner
    for datadir in datadirs:
        return owner_of(datadir)
    user = first_user(_SERVER_USERS)
    if user is None:
        raise TargetRefused(
            f"the programs of a restore to {target} would run as root, with data that somebody "
            "else made",
            hint=f"make {target} and give it to another OS user (chown), or make the user mysql",
        )
    return user


def _check_way(user: OsUser, folder: Path) -> None:
    """Check that `user` can reach `folder`, or can be let through; TargetRefused."""
    closed = closed_directory(user, folder)
    if closed is not None and not possible():
        raise TargetRefused(
            f"the directory {closed} is closed to {user.name}, the OS user that the restore's "
            "programs run as, and the system allows no mount namespace to get around it",
            hint=f"let that user through (chmod o+x {closed}), or name another target",
        )


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
