"""Key files are written once, durably, and never over another one."""

import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from agent.errors import KeyUnusable
from agent.machine.host import sync_folder


def make_folder(folder: Path) -> None:
    """Make a folder for keys, mode 0700, where there is none; KeyUnusable where that can't be."""
    try:
        missing = [part for part in (folder, *folder.parents) if not part.exists()]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in missing:
            sync_folder(part.parent)
    except OSError as error:
        raise KeyUnusable(
            f"the folder {folder} can't be made: {error.strerror}",
            hint="name another one with --folder, or make it and give it to the agent's user",
        ) from error


def check_free(path: Path) -> None:
    """KeyUnusable where there is a file, or anything else, with that name."""
    if os.path.lexists(path):
        raise _taken(path)


def write_once(path: Path, content: bytes, mode: int, *, give: bool = False) -> None:
    """Write a file that is whole and durable as soon as it is there; KeyUnusable otherwise.

    With `give` it belongs to the owner of its folder, where we may give it away: root makes
    the key that the database's user is to read.
    """
    temporary = path.with_name(f".{path.name}.{uuid4()}")
    try:
        try:
            _write(temporary, content, mode, give=give)
            # a link, unlike a rename, never replaces what is there
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
            hint="choose a folder on a local filesystem that this user may write to",
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
        f"{path} exists already, and is left as it is",
        hint="choose another id, or another file: a key that was used once may be needed again",
    )
