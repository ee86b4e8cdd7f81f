"""The mapping of object names to paths under a directory.

Each name has one path of its own. The names that agent/records/object_names.py makes stay as they
are. No name leads out of the directory or clashes with another name.

In a store, `a` and `a/b` are two objects, but a file can't be a directory too. So a part of a name
that is a UUID is expected to be a directory, and every other part a file. A part that is the
opposite gets a `%` at its end. A `%` in the name itself becomes `%25`. All other file names
that contain a `%` belong to this store (`%tmp`, `%md5.NAME`), and never to an object.
"""

import os
from typing import Final, NamedTuple

from agent.errors import StoreRejected
from agent.model import is_uuid

TEMPORARY: Final = "%tmp"
_DIGEST_OF: Final = "%md5."
_LONGEST_NAME: Final = 1024  # bytes, as in Swift (max_object_name_length)
_LONGEST_FILE: Final = 255 - len(_DIGEST_OF)  # NAME_MAX of Linux, less the prefix of the MD5's file


class Place(NamedTuple):
    """The place of an object: the directories below the container's directory, and the file."""

    folders: tuple[str, ...]
    file: str


def place(name: str) -> Place:
    """Return the place of an object.

    Raises:
        StoreRejected: a directory can't hold such a name.
    """
    *folders, last = _components(name)
    there = Place(tuple(_marked(part, not is_uuid(part)) for part in folders), file_name(last))
    if len(os.fsencode(name)) > _LONGEST_NAME or any(
        len(os.fsencode(part)) > _LONGEST_FILE for part in (*there.folders, there.file)
    ):
        raise StoreRejected(f"the name {name[:80]!r}... is too long for a path in a directory")
    return there


def file_name(component: str) -> str:
    """Return the file name for the last part of an object's name."""
    return _marked(component, is_uuid(component))


def digest_name(file: str) -> str:
    """Return the name of the file with the MD5 of `file`, for filesystems without attributes."""
    return _DIGEST_OF + file


def container_directory(name: str) -> str:
    """Return the name of a container's directory, which is the container's name.

    Raises:
        StoreRejected: a directory can't have such a name.
    """
    if len(_components(name)) != 1:
        raise StoreRejected(f"the container's name {name!r} can't be the name of a directory")
    return name


def component(found: str, *, folder: bool) -> str | None:
    """Return the part of an object's name that a file or directory stands for.

    Return None if the file or directory does not belong to an object.
    """
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
        raise StoreRejected(f"the name {name[:200]!r} can't be a path in a directory")
    return parts


def _marked(plain: str, mark: bool) -> str:
    return plain.replace("%", "%25") + ("%" if mark else "")
