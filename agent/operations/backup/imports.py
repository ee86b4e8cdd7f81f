"""Find tables with pages that an incremental backup would leave out.

The engines copy the pages that have a newer LSN than the end of the parent. Some tables that the
parent lacks have pages with an older LSN:

- After `ALTER TABLE ... IMPORT TABLESPACE` a file has pages with LSN 0.
- A file that was copied into the datadir has pages with the LSNs of its past.
- A table that an ALTER was making while the parent was made is not in the parent, and has pages
  with LSNs of that time.

So the files that came after the parent are read before an incremental begins. They are few. A table
that was made, rebuilt, truncated or imported has a table id higher than the parent's last. A table
that was half-made is listed in the parent's record. A file that was copied has a later birth time.
As a rule all pages of these files are in the incremental, so this reads no more than the engine
will.
"""

import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Protocol, TypeVar

from agent.codec.stream_paths import MAX_INCREMENTAL, MAX_NAME
from agent.database.datadir import birth_time
from agent.database.server import Tablespace
from agent.errors import DatadirUnfit, LineageChanged, ParentUnusable

_BLOCK = 1 << 20
_SUFFIX_BYTES = 6  # an incremental adds `.delta` to a name
# Page sizes in bytes.
_SMALLEST, _USUAL = 1 << 10, 1 << 14
# Source: storage/innobase/include/fil0types.h and fsp0types.h.
_LSN_AT, _LSN_END = 16, 24
_FLAGS_AT = 54
_FULL_CRC32 = 1 << 4

_UNREAD = (
    "make the file and the directories above it readable for the OS user of the agent, or run the "
    "agent as the database server's own OS user. After an input/output error look for messages "
    "about the disk in the kernel's log (journalctl -k)"
)

SHORTER = (
    "give the schema, table or partition a shorter name (any character but A-Z, a-z, 0-9 and _ "
    "takes up to five bytes in a file's name), or make full backups, which take longer ones"
)

Check = Callable[[], None]
T = TypeVar("T")


class ParentTables(Protocol):
    """What is known about the tables of a parent. Record describes each of these."""

    @property
    def id(self) -> str: ...
    @property
    def to_lsn(self) -> int | None: ...
    @property
    def created(self) -> str: ...
    @property
    def updated(self) -> str: ...
    @property
    def last_table_id(self) -> int | None: ...
    @property
    def absent_table_ids(self) -> Collection[int]: ...
    @property
    def listed_at(self) -> float | None: ...


def check_imports(
    parent: ParentTables, spaces: Mapping[int, Tablespace], datadir: Path, check: Check
) -> None:
    """Check that no tablespace has pages that an incremental on `parent` would leave out.

    `check` is called repeatedly, and raises the cause if the task is stopped.

    Raises:
        LineageChanged: a tablespace has such pages.
        ParentUnusable: the name of a file would be too long for a filesystem in an incremental.
        DatadirUnfit: a file can't be read.
    """
    for space in spaces.values():
        check_path(space.path, added=_SUFFIX_BYTES)
        file = tablespace_file(datadir, space.path) if space.whole else None
        if file is None or not _is_suspect(parent, space, file):
            continue
        # Without table ids each file that was changed is suspect, and most of these have old pages
        # that the parent holds. So only pages with LSN 0 count then.
        limit = parent.to_lsn or 0 if parent.last_table_id is not None else 0
        if has_old_page(file, limit, check):
            raise LineageChanged(
                f"the tablespace {space.path} has pages that neither parent {parent.id} has nor an "
                "incremental on it would have: it was imported, its file was copied into place, or "
                "an ALTER was making it while the parent was made"
            )


def check_path(path: str, added: int = 0) -> None:
    """Check that an incremental, which adds `added` bytes to the file's name, can hold a file.

    Raises:
        ParentUnusable: the path is too long. Then the task may allow a full backup instead.
    """
    encoded = os.fsencode(path)
    name = encoded.rpartition(b"/")[2]
    if len(name) + added > MAX_NAME or len(encoded) + added > MAX_INCREMENTAL:
        raise ParentUnusable(
            f"the path of the file {path} is too long for an incremental backup", hint=SHORTER
        )


def tablespace_file(datadir: Path, name: str) -> Path | None:
    """Return the path of a tablespace's file, None if the file was deleted.

    The file is in the datadir, or at the path that its `.isl` file names.

    Raises:
        DatadirUnfit: the path can't be read.
    """
    path = datadir / name
    if _is_file(path):
        return path
    link = _of_file(path.with_suffix(".isl"), Path.read_bytes, b"").strip()
    linked = Path(os.fsdecode(link))
    return linked if link and _is_file(linked) else None


def has_old_page(path: Path, limit: int, check: Check) -> bool:
    """Return True if a tablespace has a page with an LSN of at most `limit`.

    The first page and empty pages don't count. `check` is called for each block of 1 MiB. Return
    False if the file was deleted. A page that the server is writing at this moment can look as if
    its first half were empty. So an old page counts only if a second look finds one, too.

    Raises:
        DatadirUnfit: the file can't be read.
    """

    def look(file: Path) -> bool:
        return any(lsn <= limit for lsn in _lsns(file, check))

    return all(_of_file(path, look, False) for _ in range(2))


def read_file(path: Path, offset: int, size: int) -> bytes:
    """Return at most `size` bytes of a file from `offset` on, none if the file was deleted.

    Raises:
        DatadirUnfit: the file can't be read.
    """

    def read(file: Path) -> bytes:
        with file.open("rb", buffering=0) as opened:
            return os.pread(opened.fileno(), size, offset)

    return _of_file(path, read, b"")


def _of_file(path: Path, read: Callable[[Path], T], gone: T) -> T:
    """Return the result of `read` for a file, or `gone` if the server has dropped the file.

    Raises:
        DatadirUnfit: the file can't be read.
    """
    try:
        return read(path)
    except FileNotFoundError:
        return gone
    except OSError as error:
        raise DatadirUnfit(f"can't read {path}: {error.strerror}", hint=_UNREAD) from error


def _is_file(path: Path) -> bool:
    # Not Path.is_file: in Python 3.14 it returns False for every OSError.
    return _of_file(path, lambda file: stat.S_ISREG(file.stat().st_mode), False)


def _is_suspect(parent: ParentTables, space: Tablespace, path: Path) -> bool:
    if parent.last_table_id is None:
        # An earlier agent made this record without table ids. So each file that was changed since
        # the parent began is suspect.
        changed = _of_file(path, lambda file: file.stat().st_ctime, 0.0)
        return changed >= datetime.fromisoformat(parent.created).timestamp()
    listed = parent.listed_at or datetime.fromisoformat(parent.updated).timestamp()
    absent = space.table_id > parent.last_table_id or space.table_id in parent.absent_table_ids
    return absent or (birth_time(path) or 0.0) > listed


def _lsns(path: Path, check: Check) -> Iterator[int]:
    """Yield the LSN of each page, except the first page and empty pages."""
    block = bytearray(_BLOCK)
    with path.open("rb", buffering=0) as file:
        size = start = 0
        while count := file.readinto(block):
            check()
            if not size:
                size = start = page_size(block)
            for at in range(start, count - _LSN_END + 1, size):
                lsn = int.from_bytes(block[at + _LSN_AT : at + _LSN_END])
                if lsn or block.count(0, at, min(at + size, count)) < min(size, count - at):
                    yield lsn
            start = 0


def page_size(first: bytes | bytearray) -> int:
    """Return the size in bytes of a tablespace's pages in the file, from the flags in page 0."""
    flags = int.from_bytes(first[_FLAGS_AT : _FLAGS_AT + 4])
    if flags & _FULL_CRC32:
        return max(_SMALLEST, 512 << (flags & 15))
    zipped, logical = flags >> 1 & 15, flags >> 6 & 15
    shift = zipped or logical
    return max(_SMALLEST, 512 << shift) if shift else _USUAL
