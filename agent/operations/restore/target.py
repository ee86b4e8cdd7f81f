"""Check the directory that a restore writes to, and work in a directory of its own inside it.

A restore makes the datadir in its own directory inside the target, which has the restore's id in
its name. At the end it moves the complete datadir up. So no server starts on half a database. After
a crash the leftovers can be removed, and files that other processes put into the target stay.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

from agent.codec.stream_paths import MAX_INCREMENTAL, MAX_OPENED
from agent.errors import TargetRefused
from agent.machine.account import FRESH, hand_over, remove_empty
from agent.machine.as_user import done_as
from agent.machine.host import (
    datadir_around,
    nearest,
    read_regular,
    replace_file,
    sync_filesystem,
    sync_folder,
)
from agent.machine.os_user import OsUser, first_user, owner_of
from agent.machine.passage import closed_directory, may_mount
from agent.model import is_uuid

_WORK: Final = ".backup-agent-restore-"
_SERVER_USERS: Final = ("mysql", "nobody")
_NAMED: Final = 5
_LONGEST_NOTE: Final = 16 << 20
# What the work directory adds to the target's path, before an incremental's paths, in bytes.
_ADDED: Final = len(f"/{_WORK}{'x' * 36}/incremental/")
# MariaDB 10.6 and later have a path of 57 bytes themselves, in the schema `sys`.
_LONGEST: Final = MAX_OPENED - _ADDED - 57
_ALWAYS: Final = MAX_OPENED - _ADDED - MAX_INCREMENTAL

T = TypeVar("T")


class RestoreWorkdir:
    """The directory in which the restore `run_id` (a UUID) works inside its target.

    All files there belong to `user`. None means this process's own user. The target belongs to the
    same user, who may put links there at any moment. So if this process is root, it does everything
    below the target with the rights of `user` only.
    """

    def __init__(self, target: Path, run_id: str, user: OsUser | None = None) -> None:
        self._named = target
        # Another user can be let through to the real path only (machine/passage.py).
        self.target = target if user is None else target.resolve()
        self.user = user
        self.folder = self.target / f"{_WORK}{run_id}"
        self.datadir = self.folder / "datadir"
        self.incremental = self.folder / "incremental"
        self._note = self.folder / "entries.json"

    def as_user(self, work: Callable[[], T]) -> T:
        """Call `work`, which changes files below the target, with the user's rights.

        Return its result.

        Raises:
            TargetRefused: the system refuses an operation.
        """
        with errors_translated(self.target):
            return done_as(self.user, self.target, work)

    def make(self) -> None:
        """Make the directory, and the target if it is missing, with access for the user only.

        An empty target that belongs to root is given to the user.

        Raises:
            TargetRefused: a directory can't be made, or the user can't reach the target.
        """
        with errors_translated(self.target):
            if self.user is not None:
                hand_over(self._named, self.user.uid, self.user.gid)
                _check_way(self.user, self.target)
            elif not self.target.exists():
                # `parents=True` of mkdir makes the parents with the mode of the umask.
                self.target.mkdir(mode=0o700, parents=True)
        self.make_inside(self.folder)

    def make_inside(self, folder: Path) -> None:
        """Make a directory inside the target. Raise TargetRefused if it can't be made."""
        self.as_user(lambda: folder.mkdir(mode=0o700))

    def remove_inside(self, folder: Path) -> None:
        """Remove a directory inside the target. Raise TargetRefused if it can't be removed."""
        self.as_user(lambda: shutil.rmtree(folder))

    def remove_target(self) -> None:
        """Remove the target. Raise TargetRefused if it isn't empty or can't be removed."""
        with errors_translated(self.target):
            remove_empty(self._named) if self.user else self._named.rmdir()

    def sync(self) -> None:
        """Write all of the datadir from the cache to the disk. Raise TargetRefused on failure."""
        self.as_user(lambda: sync_filesystem(self.folder))

    def move_up(self) -> None:
        """Move the datadir's entries into the target, and remove the work directory.

        If a process was killed during the move, this call continues it. If the move was complete,
        this call does nothing.

        Raises:
            TargetRefused: an entry can't be moved, the target has another entry of that name, or an
                entry that was moved earlier is missing. The entries that this call has moved are
                moved back then.
        """
        self.as_user(self._move_up)
        self.remove()

    def _move_up(self) -> None:
        moved: list[Path] = []
        try:
            with errors_translated(self.target):
                names = self._noted()
                for entry in self._entries():
                    self._move(entry)
                    moved.append(entry)
                self._check(names)
                sync_folder(self.target)
        except TargetRefused:
            with errors_translated(self.target):
                for entry in reversed(moved):
                    (self.target / entry.name).rename(entry)
            raise

    def remove(self) -> None:
        """Remove the work directory, if it is there. Raise TargetRefused if it can't be removed."""
        with errors_translated(self.target):
            if os.path.lexists(self.folder):
                self.as_user(self._remove)

    def _remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.folder)
            sync_folder(self.target)

    def discard(self) -> None:
        """Remove all that a restore which was killed left: its directory, and entries moved up.

        If all entries were moved up, the datadir is complete, and stays.

        Raises:
            TargetRefused: something can't be removed.
        """
        self.as_user(self._discard)

    def _discard(self) -> None:
        with errors_translated(self.target):
            left = {entry.name for entry in self._entries()}
            moved = set(self._read_note()) - left if left else set()
            for path in (self.target / name for name in moved):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            self._remove()

    def _noted(self) -> list[str]:
        """Return the names of all entries, and note them in a file before the first is moved."""
        if not self._note.exists() and self.datadir.exists():
            replace_file(self._note, json.dumps([entry.name for entry in self._entries()]))
        return self._read_note()

    def _read_note(self) -> list[str]:
        """Return the names in the note, none if there is no note.

        The user can put anything in its place.

        Raises:
            TargetRefused: it is not a list of names.
        """
        try:
            text = read_regular(self._note, _LONGEST_NOTE)
        except FileNotFoundError:
            return []
        names = json.loads(text)
        if not isinstance(names, list) or not all(_is_name(name) for name in names):
            raise TargetRefused(f"{self._note} is not the list that the restore made there")
        return names

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


def _is_name(name: object) -> bool:
    return isinstance(name, str) and "/" not in name and name not in ("", ".", "..")


def earlier_restores(target: Path) -> list[str]:
    """Return the ids of restores that left their directory in `target`.

    Raises:
        TargetRefused: `target` can't be read.
    """
    with errors_translated(target):
        found = sorted(target.iterdir()) if target.is_dir() else []
    ids = [entry.name.removeprefix(_WORK) for entry in found if entry.name.startswith(_WORK)]
    return [one for one in ids if is_uuid(one)]


def resolved_below(roots: Sequence[Path], target: Path) -> Path:
    """Return `target` with all links resolved.

    Raises:
        TargetRefused: `target` is below none of `roots`.
    """
    with errors_translated(target):
        real = target.resolve()
        if not any(root.resolve() in real.parents for root in roots):
            raise TargetRefused(f"{target} is below none of the configured restore roots")
    return real


def target_below(roots: Sequence[Path], target: Path) -> Path:
    """Return `target` with all links resolved, for a restore that is about to begin.

    Raises:
        TargetRefused: `target` is below none of `roots`, or `check_target` refuses it.
    """
    real = resolved_below(roots, target)
    check_target(target)
    return real


def check_target(target: Path, datadirs: Sequence[Path] = ()) -> None:
    """Check that a restore may begin in `target`.

    The target must be an absolute path. It must name a missing directory, an empty one, or the root
    of a fresh filesystem, which holds `lost+found`. It must not be a datadir or lie in one. A
    datadir is each of `datadirs`, and each directory that holds InnoDB's own files.

    Raises:
        TargetRefused: the target breaks one of these rules.
    """
    if not target.is_absolute() or ".." in target.parts:
        raise TargetRefused(f"the target {target} is not an absolute path without '..'")
    with errors_translated(target):
        excess = len(os.fsencode(target.resolve())) - _LONGEST
        if excess > 0:
            raise too_long(excess)
        with contextlib.suppress(FileNotFoundError):
            # Raises for paths that `exists` only answers with False: a path with a NUL, with a loop
            # of links, or with a file in the place of a directory.
            target.lstat()
        if target.is_symlink():
            raise TargetRefused(
                f"the target {target} is a symbolic link",
                hint="name the directory that the link leads to, as realpath prints it",
            )
        if target.exists() and not target.is_dir():
            raise TargetRefused(f"the target {target} is not a directory")
        if around := datadir_around(target, datadirs):
            raise TargetRefused(f"the target {target} is in {around}")
        found = sorted(target.iterdir()) if target.exists() else []
        _check_empty(target, [one for one in found if one.name != FRESH or not one.is_dir()])


def check_paths(work: RestoreWorkdir, longest: int) -> None:
    """Check that an engine can open the files of incrementals.

    Their longest path has `longest` bytes.

    Raises:
        TargetRefused: the path of the target is too long.
    """
    with errors_translated(work.target):
        folder = work.incremental.resolve()
    excess = len(os.fsencode(folder)) + 1 + longest - MAX_OPENED
    if longest and excess > 0:
        raise too_long(excess)


def too_long(excess: int) -> TargetRefused:
    """Return the error for a target whose path has `excess` bytes too many."""
    return TargetRefused(
        f"the path of the target, with all links resolved, is too long by {excess} bytes: an "
        f"engine opens paths of at most {MAX_OPENED} bytes, including the names of schemas and "
        "tables behind it",
        hint="restore into a directory with a shorter path. A path of "
        f"{_ALWAYS} bytes or less takes every backup",
    )


def _check_empty(target: Path, found: Sequence[Path]) -> None:
    left = [entry for entry in found if entry.name.startswith(_WORK)]
    if left:
        raise TargetRefused(
            f"another restore into {target} is running, or was interrupted and left {left[0]}",
            hint="if no restore runs there, remove that directory, or name another target",
        )
    if found:
        names = ", ".join(repr(entry.name) for entry in found[:_NAMED])
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise TargetRefused(f"the target {target} is not empty: it holds {names}{more}")


def restore_user(target: Path, datadirs: Sequence[Path]) -> OsUser | None:
    """Return the OS user that the programs of a restore run as, None for this process's own user.

    If this process isn't root, the result is None. As root, it is the first of these:

    1. The owner of the target, or of the directory in which it will be made, unless that is root.
    2. The owner of the server's datadir. None if that is root.
    3. Without a server on this machine, the user `mysql`, else `nobody`.

    The programs read data that someone else may have made. So they don't run as root, unless the
    server's datadir belongs to root.

    Raises:
        TargetRefused: there is no such user.
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
            f"the programs of a restore to {target} would run as root, with data that another user "
            "may have made",
            hint=f"create {target} and chown it to another OS user, or create the user mysql",
        )
    return user


def _check_way(user: OsUser, folder: Path) -> None:
    """Check that `user` can reach `folder`, if need be through a mount namespace.

    Raises:
        TargetRefused: neither is possible.
    """
    closed = closed_directory(user, folder)
    if closed is not None and not may_mount():
        raise TargetRefused(
            f"the directory {closed} is closed to {user.name}, the OS user that the restore's "
            "programs run as, and the system allows no mount namespace to get around it",
            hint=f"give that user access (chmod o+x {closed}), or name another target",
        )


@contextlib.contextmanager
def errors_translated(target: Path) -> Iterator[None]:
    """Raise TargetRefused for an error that the system raises for a path inside the block.

    Besides OSError, pathlib raises ValueError for a NUL and RuntimeError for a loop of links.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TargetRefused(f"the target {target} can't be used: {reason}") from error
