"""The paths in an xbstream, with the check that refuses unsafe ones and the digests of paths."""

from hashlib import blake2b
from typing import Final

MAX_PATH: Final = 511  # bytes, FN_REFLEN - 1, the longest path that mbstream and xbstream take
# A prepare opens a file of a full backup as `./` and its path, and a file of an incremental as the
# incremental's directory and its path. From 509 bytes on, mariadb-backup 10.11 overwrites its own
# memory (FN_REFLEN is 512). All in bytes.
MAX_OPENED: Final = 508
MAX_FULL: Final = MAX_OPENED - 2
MAX_INCREMENTAL: Final = 400  # the rest is for the directory
MAX_NAME: Final = 255  # bytes, NAME_MAX of all usual filesystems
_MOST_FOLDERS: Final = 16  # backup engines use two levels, some storage engines a few more


def refusal(path: bytes) -> str | None:
    """Return the reason why no file of a backup may have that path, or None if it is allowed."""
    if path[:1] == b"/" or b"\0" in path or b".." in path.split(b"/"):
        return f"the path {path!r} is not a plain relative path"
    if path.count(b"/") > _MOST_FOLDERS:
        return f"the path {path!r} is deeper than {_MOST_FOLDERS} directories"
    if path.rpartition(b"/")[2] in (b"", b"."):
        return f"the path {path!r} names no file"
    if len(path) > MAX_NAME and len(max(path.split(b"/"), key=len)) > MAX_NAME:
        return f"the path {path!r} is too long for a file's name"
    return None


def path_digest(path: bytes) -> int:
    """Return the digest, an 8-byte number, by which a parser identifies the file `path`."""
    return int.from_bytes(blake2b(path, digest_size=8).digest())


def plain_path(path: bytes) -> bytes:
    """Return the canonical spelling of a path, without its empty parts and its parts `.`."""
    if path[:2] != b"./" and b"//" not in path and b"/./" not in path:
        return path
    return b"/".join(part for part in path.split(b"/") if part not in (b"", b"."))
