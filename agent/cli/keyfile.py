"""Key files, which are written once, durably, and never over another file."""

import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from agent.errors import KeyUnusable
from agent.machine.host import sync_folder


def make_folder(folder: Path) -> None:
    """Make a directory for keys with mode 0700, unless it exists.

    Missing parents are made too. The new directories are on the disk when this returns. Raise
    KeyUnusable if the directory can't be made.
    """
    try:
        missing = [part for part in (folder, *folder.parents) if not part.exists()]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in missing:
            sync_folder(part.parent)
    except OSError as error:
        raise KeyUnusable(
            f"the directory {folder} can't be made: {error.strerror}",
            hint="create it and give it to the agent's user, or use another directory for keys",
        ) from error


def check_free(path: Path) -> None:
    """Raise KeyUnusable if a file, or anything else, has that name already."""
    if os.path.lexists(path):
        raise _taken(path)


def write_once(path: Path, content: bytes, mode: int, *, give: bool = False) -> None:
    """Write a file that is complete and durable from the moment at which it exists.

    If `give` is true and this process is root, the file gets the owner of its directory: root
    makes the key, and the database's user must be able to read it.

    Raises:
        KeyUnusable: `path` exists already, or the file can't be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid4()}")
    try:
        try:
            _write(temporary, content, mode, give=give)
            # unlike a rename, a link never replaces an existing file
            os.link(temporary, path)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
        sync_folder(path.parent)
    except FileExistsError as error:
        raise _taken(path) from error
    except OSError as error:
        raise KeyUnusable(
            f"{path} can't be written: {error.strerror}",
            hint="choose a directory on a local filesystem that this user may write to",
        ) from error


def _write(path: Path, content: bytes, mode: int, *, give: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        if give and os.geteuid() == 0:
            owner = path.parent.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        file.write(content)
        file.flush()
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)


def _taken(path: Path) -> KeyUnusable:
    return KeyUnusable(
        f"{path} exists already, and was not changed",
        hint="choose another id or another file. Keep the existing key: backups may need it",
    )
