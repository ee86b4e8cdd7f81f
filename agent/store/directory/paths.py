"""Object names as paths under a folder, one to one.

The names that agent/records/object_names.py gives stay as they are, and no name leads out of the
folder or clashes with another.

In a store `a` and `a/b` are two objects, but a file can't be a folder too. So a name that is
a UUID is taken for a folder's, and every other one for a file's; where it is the other way
round, `%` is put behind it. A `%` of the name itself becomes `%25`. All other names that hold
a `%` are this store's own (`%tmp`, `%md5.NAME`), and never those of an object.
"""

import os
from typing import Final, NamedTuple

from agent.errors import StoreRejected
from agent.model import is_uuid

TEMPORARY: Final = "%tmp"
_DIGEST_OF: Final = "%md5."
_LONGEST_NAME: Final = 1024  # bytes, as in Swift (max_object_name_length)
_LONGEST_FILE: Final = 255 - len(_DIGEST_OF)  # NAME_MAX of Linux, and room for the digest's file


class Place(NamedTuple):
    """Where an object lies: the folders on the way, from the container's, and its file."""

    folders: tuple[str, ...]
    file: str


def place(name: str) -> Place:
    """The place of an object; StoreRejected where a folder can't hold such a name."""
    *folders, last = _components(name)
    there = Place(tuple(_marked(part, not is_uuid(part)) for part in folders), file_name(last))
    if len(os.fsencode(name)) > _LONGEST_NAME or any(
        len(os.fsencode(part)) > _LONGEST_FILE for part in (*there.folders, there.file)
    ):
        raise StoreRejected(f"the name {name[:80]!r}... is too long for a folder")
    return there


def file_name(component: str) -> str:
    """The file's name for the last component of an object's name."""
    return _marked(component, is_uuid(component))


def digest_name(file: str) -> str:
    """Where a file's MD5 is kept on a filesystem that can't keep it with the file."""
    return _DIGEST_OF + file


def container(name: str) -> str:
    """A container's name, which is that of its folder; StoreRejected where it can't be one."""
    if len(_components(name)) != 1:
        raise StoreRejected(f"the container {name!r} can't be the name of a folder")
    return name


def component(found: str, *, folder: bool) -> str | None:
    """The part of an object's name for which a file or folder stands; None for a stranger."""
    plain = found.removesuffix("%").replace("%25", "%")
    try:
        plain.encode()
        same = _marked(plain, is_uuid(plain) is not folder) == found
    except UnicodeEncodeError:
        return None
    return plain if same else None


def _components(name: str) -> list[str]:
    parts = name.split("/")
    try:
        name.encode()
    except UnicodeEncodeError:
        parts = [""]
    if "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise StoreRejected(f"{name[:200]!r} can't be an object's name in a folder")
    return parts


def _marked(plain: str, mark: bool) -> str:
    return plain.replace("%", "%25") + ("%" if mark else "")
