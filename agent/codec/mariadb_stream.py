"""What mariadb-backup and mbstream of 10.11 get wrong about DDL that is done meanwhile.

All concern the chunks R and D, which tell of DDL on tables that aren't InnoDB's, and all were
seen on 10.11.19:

- mbstream checks the checksum of each E chunk against the payload before it, whose buffer an R
  chunk has overwritten by then: it ends at the first E after an R with no P between them. An empty
  payload before that E makes it go on, and changes no file.
- mariadb-backup encodes the names in R and D twice, so that `d/a@002db.MAD` is `d/a@0040002db.MAD`
  there. mbstream passes over a path that isn't there, and exits 0.
- mariadb-backup leaves out an Aria table that is renamed between its look at the directory and its
  opening of the file, and says `completed OK!`. Its `.frm` is in the stream, and its data isn't.
- mariadb-backup replays the server's list of DDL over a copy that is newer: a D takes away what was
  made again under the name of a dropped table or schema and is in the stream by then.
- The prepare of an incremental renames InnoDB's tables by their names and not by their numbers: it
  loses one whose name another got that was made meanwhile, and ends at two that exchanged names.
  That of a full backup does it well.
"""

import os
from collections.abc import Iterable
from typing import Final, NamedTuple

from agent.codec.frm import HEAD_BYTES, INNODB, definition
from agent.codec.redo_log import RedoTail
from agent.codec.stream_paths import MAX_NAME, path_digest
from agent.codec.xbstream import HEAD, MAGIC, PAYLOAD, XbstreamParser

_MOST_ODD: Final = 10_000
# A schema, a slash, a table and a partition, of at most 255 bytes each in a file's name.
_MOST_NAMED: Final = 1 << 10
_SEEK_BYTES: Final = 8
# Files that hold a partition's rows, with this before the partition's name; in any case of letters.
_PARTITION: Final = b"#P#"
_PARTITION_ENDS: Final = (b".MYD", b".MAD", b".ARZ", b".CSV")
# Of these one is enough for a table of InnoDB: in a full backup, in an incremental, made meanwhile.
_TABLESPACES: Final = (b".ibd", b".ibd.delta", b".new")
_AT: Final = b"@0040"
# What is copied while the server holds DDL back: its table is there, and what a D before that DDL
# was about is not. `.new` is a table made meanwhile, `.ren` says a tablespace's last name.
_RENAMED: Final = b".ren"
_LASTING: Final = (b".frm", b".new", _RENAMED)
_REDO_LOG: Final = path_digest(b"ib_logfile0")


class Rename(NamedTuple):
    """What a `.ren` file says: a table's name at the last checkpoint, and its last one."""

    old: bytes
    new: bytes


def exchanged(renames: Iterable[Rename]) -> bytes | None:
    """Return a name from which the renames lead back to it, by way of others; None without one.

    No old name is there twice. Takes time in proportion to the number of renames.
    """
    left = {old: new for old, new in renames if old != new}
    while left:
        start, name = left.popitem()
        walked = {start}
        while name in left:
            walked.add(name)
            name = left.pop(name)
        if name in walked:
            return name
    return None


class MendedStream(XbstreamParser):
    """A parser that also hands the stream on, with what mbstream needs put in.

    `inserted` counts the bytes that were put in so far. If it is `proving` it also keeps what
    `misnamed`, `lost`, `confused`, `untrue_name` and `without_data` need: some 400 bytes a table
    that isn't InnoDB's or was renamed meanwhile, and 40 another table of InnoDB's. The last names
    of renamed tables, which a prepare takes from `.ren` files, are always judged.
    """

    def __init__(self, *, proving: bool = True) -> None:
        super().__init__(proving=proving)
        self.inserted = 0
        self.redo = RedoTail()
        self._renamed = False  # and no payload since
        self._gaps: list[tuple[int, bytes]] = []
        self._held = b""
        self._path_bytes = 0
        self._unknown: list[bytes] = []
        self._odd_targets: list[bytes] = []
        self._head: bytearray | None = None  # how the `.frm` or `.ren` begins that is under way
        self._head_bytes = 0  # how much of it is kept
        self._renames: dict[int, Rename] = {}  # of InnoDB's tables, by their `.ren` files
        self._longest_new = b""  # of their last names the one with the longest path
        self._widest_new = b""  # and the one with the longest part behind the slash
        self._definitions: dict[int, bytes] = {}  # the paths of the `.frm` files that need data
        self._needed_by: dict[int, tuple[int, ...]] = {}
        self._partitioned: set[int] = set()  # the `.frm` files that need partitions
        self._parted: set[int] = set()  # those whose partitions have come, one at least
        self._swept: set[int] = set()  # what went with its directory
        self._swept_of: dict[int, tuple[int, ...]] = {}  # the tablespaces of such a table's `.frm`
        self._lasting: set[int] = set()
        self._removed: dict[int, bytes] = {}  # which of them a D took, and what it named

    def passed(self, view: memoryview) -> bytes | None:
        """Take the next bytes; return what takes their place, or None if they go on as they are."""
        start = self.raw_bytes - len(self._held)
        self.feed(view)
        unsettled = self._unsettled()
        if not (self._gaps or self._held or unsettled):
            return None
        data = self._held + bytes(view)
        mended, at = bytearray(), 0
        for position, chunk in self._gaps:
            mended += data[at : position - start] + chunk
            at = position - start
            self.inserted += len(chunk)
        self._gaps.clear()
        end = len(data) - unsettled
        self._held = data[end:]
        return bytes(mended + data[at:end])

    def misnamed(self) -> bytes | None:
        """Return a path that was renamed under a wrong name, so that its table is broken."""
        for source in self._unknown:
            if path_digest(source.replace(_AT, b"@")) in self.files:
                return source
        for target in self._odd_targets:
            stem = target.rpartition(b".")[0].partition(b"#P#")[0]
            if path_digest(target) in self.files and path_digest(stem + b".frm") not in self.files:
                return target
        return None

    def lost(self) -> list[bytes]:
        """Return the paths of lasting files, or their directories, that were wrongly removed."""
        return sorted({path for file, path in self._removed.items() if file not in self.files})

    def confused(self) -> bytes | None:
        """Return the former name of a table that the prepare of an incremental takes for another.

        It is `schema/table`, as in the names of files.
        """
        for name, _ in self._renames.values():
            if path_digest(name + b".new") in self.files:
                return name
        return exchanged(self._renames.values())

    def untrue_name(self, paths: Iterable[str]) -> str | None:
        """Return the name that a table should have got by a rename that the server refused.

        `paths` are the server's tablespaces now, as `schema/table.ibd`. The server writes a rename
        into its log before it does it. If it fails, as to a schema that is a file, the log still
        says so, and the engine believes it.
        """
        if not self._renames:
            return None
        names = [
            tuple(os.fsdecode(one) + ".ibd" for one in pair) for pair in self._renames.values()
        ]
        there = {name for pair in names for name in pair}.intersection(paths)
        return next((new for old, new in names if old in there and new not in there), None)

    def unopenable(self, *, longest: int, incremental: bool) -> bytes | None:
        """Return a path that a prepare can't open, None if there is none so far.

        It is longer than `longest`, or its file's name is longer than any. A table that was renamed
        meanwhile gets its last name in the prepare, and what an incremental has of it ends in
        `.ibd.delta` and `.ibd.meta`.
        """
        end = b".ibd.delta" if incremental else b".ibd"
        renamed = self._longest_new + end if self._longest_new else b""
        widest = self._widest_new + end
        if len(widest.rpartition(b"/")[2]) > MAX_NAME:
            return widest
        found = max(self.longest, renamed, key=len)
        return found if len(found) > longest else None

    def longest_opened(self, *, incremental: bool) -> int:
        """Return how many bytes the longest path has that a prepare opens."""
        end = b".ibd.delta" if incremental else b".ibd"
        return max(len(self.longest), len(self._longest_new + end) if self._longest_new else 0)

    def without_data(self) -> dict[int, bytes]:
        """Return the `.frm` files whose table has no data in the stream, by their digests."""
        lacking = {frm for frm, data in self._needed_by.items() if not self.files.issuperset(data)}
        lacking |= {frm for frm, one in self._swept_of.items() if self.files.isdisjoint(one)}
        lacking = self.files & (lacking | self._partitioned - self._parted)
        return {frm: self._definitions[frm] for frm in lacking}

    def _begin(self, length: int, offset: int, advance: int) -> None:
        renamed = self._path.endswith(_RENAMED)
        if renamed and offset:
            raise self._invalid(f"the new name of a table in {self._path!r} is in several pieces")
        begins = offset == 0 and (renamed or (self._proving and self._path.endswith(b".frm")))
        self._head = bytearray() if begins else None
        self._head_bytes = _MOST_NAMED if renamed else HEAD_BYTES
        super()._begin(length, offset, advance)

    def _on_payload(self, piece: memoryview) -> None:
        if self._proving and self._file == _REDO_LOG:
            self.redo.add(piece)
        if self._head is not None:
            self._head += piece[: self._head_bytes - len(self._head)]
        super()._on_payload(piece)

    def _end_payload(self) -> None:
        if self._head and self._path.endswith(_RENAMED):
            self._note_new_name(bytes(self._head))
        elif self._head:
            self._note_definition(self._head)
        super()._end_payload()

    def _note_new_name(self, name: bytes) -> None:
        self._checked_path(name)
        self._longest_new = max(self._longest_new, name, key=len)
        self._widest_new = max(self._widest_new, name, key=_width)
        self._renames[self._file] = Rename(self._path.removesuffix(_RENAMED), name)
        if len(self._renames) > _MOST_ODD:
            raise self._invalid(f"more than {_MOST_ODD} tables were renamed while it was made")

    def _note_definition(self, head: bytearray) -> None:
        """Note what data the table needs whose `.frm` begins so; not of one half made."""
        self._forget_definition(self._file)
        found = definition(head)
        if found is None or self._path.rpartition(b"/")[2].startswith(b"#sql"):
            return
        stem = self._path.removesuffix(b".frm")
        if found.partitioned and found.data:
            self._partitioned.add(self._file)
        elif found.data:
            self._needed_by[self._file] = tuple(path_digest(stem + end) for end in found.data)
        elif self._swept and found.number == INNODB and not found.partitioned:
            # no other one is known to need a file: it may be in the system tablespace
            spaces = tuple(path_digest(stem + end) for end in _TABLESPACES)
            if self._swept.isdisjoint(spaces):
                return
            self._swept_of[self._file] = spaces
        else:
            return
        self._definitions[self._file] = self._path

    def _forget_definition(self, file: int) -> None:
        self._definitions.pop(file, None)
        self._needed_by.pop(file, None)
        self._swept_of.pop(file, None)
        self._partitioned.discard(file)

    def _unsettled(self) -> int:
        """Return how many of the last bytes are the head of a chunk that may need a payload."""
        if not self._renamed:
            return 0
        if self._step == self._on_head:
            return len(self._pending)
        if self._step == self._on_seek_or_sparse:  # it takes the next chunk's magic with it
            return max(0, len(self._pending) - _SEEK_BYTES)
        return HEAD.size + len(self._pending) if self._step == self._on_path else 0

    def _on_end_of_file(self) -> None:
        if self._renamed:
            self._renamed = False
            start = self.raw_bytes - HEAD.size - self._path_bytes
            self._gaps.append((start, _empty_payload(self._path, self._open.get(self._file, 0))))
        super()._on_end_of_file()
        if self._proving:
            self._note_end()

    def _note_end(self) -> None:
        """Note a file that lasts, and that a partition of a table has come."""
        if self._path.endswith(_LASTING):
            self._lasting.add(self._file)
            return
        upper = self._path.upper()
        at = upper.find(_PARTITION)
        if at >= 0 and upper.endswith(_PARTITION_ENDS):
            self._parted.add(path_digest(self._path[:at] + b".frm"))

    def _on_remove(self) -> None:
        for file in self._folders.get(self._path, (self._file,)):
            if file in self._lasting:
                self._removed[file] = self._path
        super()._on_remove()

    def _remove_folder(self) -> None:
        if self._proving:
            self._swept.update(self.files.intersection(self._folders[self._path]))
        super()._remove_folder()

    def _forget(self, file: int) -> bool:
        self._lasting.discard(file)
        self._renames.pop(file, None)
        self._forget_definition(file)
        return super()._forget(file)

    def _replace(self, path: bytes, target: int, space: int | None) -> None:
        if path.endswith(_RENAMED):
            raise self._invalid(f"a file is renamed to {path!r}, which only an engine writes")
        super()._replace(path, target, space)
        if self._proving and path.endswith(_LASTING):
            self._lasting.add(target)

    def _on_path(self, path: bytes) -> None:
        self._path_bytes = len(path)
        super()._on_path(path)

    def _on_payload_head(self, head: bytes) -> None:
        self._renamed = False
        super()._on_payload_head(head)

    def _on_other_path(self, path: bytes) -> None:
        self._renamed = True
        source, known = self._path, self._file in self.files
        folder = self._checked_path(path).rpartition(b"/")[0]
        if folder and folder not in self._folders:
            # mbstream makes no directory for it and passes over the error: the file stays
            self._await(HEAD.size, self._on_head)
            return
        super()._on_other_path(path)
        if self._proving:
            self._note_odd(source, self._checked_path(path), known=known)

    def _note_odd(self, source: bytes, target: bytes, *, known: bool) -> None:
        """Note a rename whose names may be encoded twice."""
        if not known and _AT in source:
            self._unknown.append(source)
        if known and _AT in target:
            self._odd_targets.append(target)
        if len(self._unknown) + len(self._odd_targets) > _MOST_ODD:
            raise self._invalid("it renames too many tables with signs in their names")


def _width(path: bytes) -> int:
    return len(path.rpartition(b"/")[2])


def _empty_payload(path: bytes, offset: int) -> bytes:
    return HEAD.pack(MAGIC, 0, b"P", len(path)) + path + PAYLOAD.pack(0, offset, 0)
