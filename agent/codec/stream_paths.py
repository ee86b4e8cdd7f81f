"""The paths in an xbstream: which are refused, and by what a parser knows the others."""

from hashlib import blake2b
from typing import Final

MAX_PATH: Final = 511  # FN_REFLEN - 1, what mbstream and xbstream take
# By what a prepare opens a file: `./` and its path in a full backup, its folder and its path in an
# incremental. mariadb-backup 10.11 overwrites its own memory at 509 bytes (FN_REFLEN is 512).
MAX_OPENED: Final = 508
# Of a path in a full backup; and in an incremental, the rest being for its folder.
MAX_FULL: Final = MAX_OPENED - 2
MAX_INCREMENTAL: Final = 400
MAX_NAME: Final = 255  # bytes, NAME_MAX of all usual filesystems
_MOST_FOLDERS: Final = 16  # engines go two deep, those of some storage engines a little deeper


def refusal(path: bytes) -> str | None:
    """Return why no file of a backup may have that path, None if one may."""
    if path[:1] == b"/" or b"\0" in path or b".." in path.split(b"/"):
        return f"the path {path!r} is not a plain relative one"
    if path.count(b"/") > _MOST_FOLDERS:
        return f"the path {path!r} is deeper than {_MOST_FOLDERS} directories"
    if path.rpartition(b"/")[2] in (b"", b"."):
        return f"the path {path!r} names no file"
    if len(path) > MAX_NAME and len(max(path.split(b"/"), key=len)) > MAX_NAME:
        return f"the path {path!r} is too long for a file's name"
    return None


def path_digest(path: bytes) -> int:
    """Return the 8 bytes by which a parser knows the file `path`."""
    return int.from_bytes(blake2b(path, digest_size=8).digest())


def plain_path(path: bytes) -> bytes:
    """Return the one spelling of a path, whose parts may be spelled `.` or be empty."""
    if path[:2] != b"./" and b"//" not in path and b"/./" not in path:
        return path
    return b"/".join(part for part in path.split(b"/") if part not in (b"", b"."))
