"""Tables whose pages an incremental backup would leave out: imported, put in place, half-made.

The engines copy the pages that have a newer LSN than the parent ends at. `ALTER TABLE ... IMPORT
TABLESPACE` leaves pages with LSN 0, and a file that was copied into place has those of its past.
What an ALTER was making while the parent ran is not in it, and has pages of that time. So the
files that came since the parent are read before an incremental begins. They are few: what was
made, rebuilt, truncated or imported has a table id higher than the parent's last, what was
half-made is listed in its record, and what was copied has a later birth time. All their pages are
in the incremental as a rule, so this reads no more than the engine will.
"""

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from agent.codec.stream_paths import MAX_INCREMENTAL, MAX_NAME
from agent.database import Tablespace
from agent.datadir import birth_time
from agent.errors import DatadirUnfit, LineageChanged, ParentUnusable
from agent.model import Record

_BLOCK = 1 << 20
# What an incremental adds to a name: `.delta`
_ADDED = 6
_SMALLEST, _USUAL = 1 << 10, 1 << 14
# storage/innobase/include/fil0types.h and fsp0types.h
_LSN_AT, _LSN_END = 16, 24
_FLAGS_AT = 54
_FULL_CRC32 = 1 << 4

_UNREAD = (
    "make the file and the directories above it readable for the OS user of the agent, or run the "
    "agent as the database server's own OS user; after an input/output error look for the disk in "
    "the kernel's log (journalctl -k)"
)

SHORTER = (
    "give the schema, table or partition a shorter name (most letters and signs but a-z have five "
    "bytes in a file's name), or make full backups, which take longer ones"
)

Check = Callable[[], None]
T = TypeVar("T")


def check_imports(
    parent: Record, spaces: Mapping[int, Tablespace], datadir: Path, check: Check
) -> None:
    """Raise LineageChanged if a tablespace has pages that an incremental would leave out.

    ParentUnusable if an incremental would give it a name that no filesystem takes.

    `check` is called now and then, to raise what stops the task.
    """
    for space in spaces.values():
        check_path(space.path, added=_ADDED)
        file = tablespace_file(datadir, space.path) if space.whole else None
        if file is None or not _is_suspect(parent, space, file):
            continue
        # without an id all that was touched is suspect, and most of it has old pages by right
        limit = parent.to_lsn or 0 if parent.last_table_id is not None else 0
        if imported(file, limit, check):
            raise LineageChanged(
                f"the tablespace {space.path} has pages that neither parent {parent.id} has nor an "
                "incremental on it would: it was imported, its file was put in place, or an ALTER "
                "was making it while the parent was made"
            )


def check_path(path: str, added: int = 0) -> None:
    """Check that an incremental can hold a file, to whose name it adds some bytes; ParentUnusable.

    A full backup is made instead where the task allows that.
    """
    encoded = os.fsencode(path)
    name = encoded.rpartition(b"/")[2]
    if len(name) + added > MAX_NAME or len(encoded) + added > MAX_INCREMENTAL:
        raise ParentUnusable(
            f"the path of the file {path} is too long for an incremental backup", hint=SHORTER
        )


def tablespace_file(datadir: Path, name: str) -> Path | None:
    """Return where a tablespace's file is: in the datadir, or where its link says; None if gone.

    DatadirUnfit if that can't be looked up.
    """
    path = datadir / name
    if _is_file(path):
        return path
    link = _of_file(path.with_suffix(".isl"), Path.read_bytes, b"").strip()
    linked = Path(os.fsdecode(link))
    return linked if link and _is_file(linked) else None


def imported(path: Path, limit: int, check: Check) -> bool:
    """Tell whether a tablespace has a page, not empty and not its first, of no later LSN.

    DatadirUnfit if it can't be read. False if it is gone.
    """
    return _of_file(path, lambda file: any(lsn <= limit for lsn in _lsns(file, check)), False)


def _of_file(path: Path, read: Callable[[Path], T], gone: T) -> T:
    """Return what `read` finds in a file that the server may drop meanwhile."""
    try:
        return read(path)
    except FileNotFoundError:
        return gone
    except OSError as error:
        raise DatadirUnfit(f"{path} can't be read: {error.strerror}", hint=_UNREAD) from error


def _is_file(path: Path) -> bool:
    # Path.is_file of Python 3.14 takes an error for an answer
    return _of_file(path, lambda file: stat.S_ISREG(file.stat().st_mode), False)


def _is_suspect(parent: Record, space: Tablespace, path: Path) -> bool:
    if parent.last_table_id is None:
        # a record of an agent that didn't note the ids: all that was touched since it began
        changed = _of_file(path, lambda file: file.stat().st_ctime, 0.0)
        return changed >= datetime.fromisoformat(parent.created).timestamp()
    listed = parent.listed_at or datetime.fromisoformat(parent.updated).timestamp()
    absent = space.table_id > parent.last_table_id or space.table_id in parent.absent_table_ids
    return absent or (birth_time(path) or 0.0) > listed


def _lsns(path: Path, check: Check) -> Iterator[int]:
    """Yield the LSN of each page that isn't empty, but of the first."""
    block = bytearray(_BLOCK)
    with path.open("rb", buffering=0) as file:
        size = start = 0
        while count := file.readinto(block):
            check()
            if not size:
                size = start = _page_size(block)
            for at in range(start, count - _LSN_END + 1, size):
                lsn = int.from_bytes(block[at + _LSN_AT : at + _LSN_END])
                if lsn or block.count(0, at, min(at + size, count)) < min(size, count - at):
                    yield lsn
            start = 0


def _page_size(first: bytearray) -> int:
    """Return the size of a tablespace's pages as they are in the file, by its flags."""
    flags = int.from_bytes(first[_FLAGS_AT : _FLAGS_AT + 4])
    if flags & _FULL_CRC32:
        return max(_SMALLEST, 512 << (flags & 15))
    zipped, logical = flags >> 1 & 15, flags >> 6 & 15
    shift = zipped or logical
    return max(_SMALLEST, 512 << shift) if shift else _USUAL
