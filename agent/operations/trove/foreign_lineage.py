"""Compare the pages of a backup that Trove's own code made with those of the live datadir.

Such a backup has no note of the datadir's history. But each page of InnoDB has the LSN of its last
change (FIL_PAGE_LSN), which only grows in one history. So a live page that is older than that of
the backup, or that has the same LSN and other bytes, belongs to another history. Pages with equal
LSN and bytes show that the histories are the same up to that LSN.

Skipped are the first page of a file, empty pages, and pages that carry another number than that of
their place, such as those in InnoDB's doublewrite buffer.
"""

import os
from pathlib import Path
from typing import Final, NamedTuple

from agent.codec.xbstream import XbstreamParser
from agent.errors import LineageChanged, ParentUnusable
from agent.operations.backup.imports import page_size, read_file, tablespace_file
from agent.stop import Stop

# In bytes. How much of the tables of users is compared.
_ENOUGH: Final = 64 << 20
# The head of page 0, with the number and the flags of the tablespace. Source: fil0types.h.
_HEAD: Final = 64
_NUMBER: Final = slice(4, 8)
_LSN: Final = slice(16, 24)
_SPACE: Final = slice(34, 38)
_SYSTEM_FILE: Final = b"ibdata1"
# These have equal pages on servers that were installed in the same way.
_SYSTEM_SCHEMAS: Final = frozenset((b"", b"mysql", b"sys"))
# How often a page that differs is read again, because the server may be writing it, and the seconds
# between two reads.
_READS: Final = 10
_PAUSE: Final = 0.1


class _Space(NamedTuple):
    """The tablespace that the stream has at this moment, and its file in the datadir."""

    path: bytes
    number: bytes
    page_bytes: int
    file: Path


class PageComparison(XbstreamParser):
    """A parser that compares the pages in the stream of a full backup with those in `datadir`.

    It raises LineageChanged as soon as one shows another history.

    Attributes:
        equal: The number of pages of users' tables that are the same in both.
        newest: The greatest LSN of these pages.
        enough: True if as much was compared as is of use.
    """

    def __init__(self, backup_id: str, datadir: Path, stop: Stop) -> None:
        super().__init__()
        self.equal = self.newest = 0
        self._backup_id = backup_id
        self._datadir = datadir
        self._stop = stop
        self._compared = 0
        self._space: _Space | None = None
        self._watched = False  # True if the current payload is compared
        self._at = 0  # offset in the file of the first byte in `_block`
        self._block = bytearray()

    @property
    def enough(self) -> bool:
        return self._compared >= _ENOUGH

    def check(self) -> None:
        """Raise ParentUnusable unless pages have shown that the histories are the same."""
        if not self.equal:
            raise ParentUnusable(
                f"nothing shows that parent {self._backup_id}, which Trove's own code made, is a "
                "backup of this datadir: no page of a table with a file of its own is the same",
                hint="make a full backup. It is small if the database had no tables until now, or "
                "if all of it has changed",
            )

    def _begin(self, length: int, offset: int, advance: int) -> None:
        if not offset:
            self._space = None
        known = self._space is not None and self._space.path == self._path
        named = self._path == _SYSTEM_FILE or self._path.endswith(b".ibd")
        self._watched = named and length == advance and not self.enough and (known or not offset)
        self._at = offset
        self._block.clear()
        super()._begin(length, offset, advance)

    def _on_payload(self, piece: memoryview) -> None:
        if self._watched:
            self._block += piece
            self._compare_block()
        super()._on_payload(piece)

    def _end_payload(self) -> None:
        # The engine leaves out the holes in compressed pages, so the rest is a part of a page.
        space, at = self._space, self._at
        if self._watched and space and len(self._block) >= _HEAD and not at % space.page_bytes:
            self._compare(space, at, bytes(self._block))
        super()._end_payload()

    def _compare_block(self) -> None:
        if self._space is None:
            if len(self._block) < _HEAD:
                return
            self._space = self._opened()
            if self._space is None:
                self._watched = False
                return
        size = self._space.page_bytes
        skipped = -self._at % size
        whole = (len(self._block) - skipped) // size * size
        if whole <= 0:
            return
        self._compare(self._space, self._at + skipped, bytes(self._block[skipped:][:whole]))
        del self._block[: skipped + whole]
        self._at += skipped + whole

    def _opened(self) -> _Space | None:
        """Return the tablespace that begins here, or None if the datadir doesn't have it."""
        file = tablespace_file(self._datadir, os.fsdecode(self._path))
        if file is None:
            return None
        head, number = read_file(file, 0, _HEAD), bytes(self._block[_SPACE])
        if len(head) < _HEAD or head[_SPACE] != number:
            return None  # another table has its name now
        return _Space(self._path, number, page_size(self._block), file)

    def _compare(self, space: _Space, at: int, pages: bytes) -> None:
        self._stop.check()
        size, live = space.page_bytes, read_file(space.file, at, len(pages))
        for start in range(0, len(pages), size):
            self._compare_page(
                space, at + start, pages[start : start + size], live[start : start + size]
            )
        if self._path.rpartition(b"/")[0] not in _SYSTEM_SCHEMAS:
            self._compared += len(pages)

    def _compare_page(self, space: _Space, at: int, page: bytes, live: bytes) -> None:
        if not at or not _is_at(space, at, page):
            return
        for _ in range(_READS):
            if not _is_at(space, at, live) or _lsn(live) > _lsn(page):
                return
            if live == page:
                self._note_equal(_lsn(page))
                return
            self._stop.wait(_PAUSE)
            live = read_file(space.file, at, len(page))
        raise LineageChanged(
            f"parent {self._backup_id} was made from another datadir, or this one was restored or "
            f"rolled back since: a page of {os.fsdecode(space.path)!r} with LSN {_lsn(page)} in "
            f"the parent is another one here, with LSN {_lsn(live)}",
            hint="make a full backup",
        )

    def _note_equal(self, lsn: int) -> None:
        if self._path.rpartition(b"/")[0] not in _SYSTEM_SCHEMAS:
            self.equal += 1
            self.newest = max(self.newest, lsn)


def _is_at(space: _Space, at: int, page: bytes) -> bool:
    """Return True if a page has an LSN, and the number that belongs to its place.

    Compressed pages don't have the number of their tablespace, and need not have it: only the
    system tablespace holds copies of other pages.
    """
    number = int.from_bytes(page[_NUMBER])
    copied = space.path == _SYSTEM_FILE and page[_SPACE] != space.number
    whole = len(page) >= _HEAD and number == at // space.page_bytes and not copied
    return whole and _lsn(page) > 0


def _lsn(page: bytes) -> int:
    return int.from_bytes(page[_LSN])
