"""The paths in an xbstream, with the check that refuses unsafe ones and the digests of paths."""

from hashlib import blake2b
from typing import Final

MAX_PATH: Final = 511  # bytes, FN_REFLEN - 1, the longest path that mbstream and xbstream take
_MAX_NAME: Final = 255  # bytes, NAME_MAX of all usual filesystems
_MOST_FOLDERS: Final = 16  # backup engines use two levels, some storage engines a few more


def refusal(path: bytes) -> str | None:
    """Return the reason why no file of a backup may have that path, or None if it is allowed."""
    if path[:1] == b"/" or b"\0" in path or b".." in path.split(b"/"):
        return f"the path {path!r} is not a plain relative path"
    if path.count(b"/") > _MOST_FOLDERS:
        return f"the path {path!r} is deeper than {_MOST_FOLDERS} directories"
    if path.rpartition(b"/")[2] in (b"", b"."):
        return f"the path {path!r} names no file"
    if len(path) > _MAX_NAME and len(max(path.split(b"/"), key=len)) > _MAX_NAME:
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
