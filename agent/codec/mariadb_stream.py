"""Correct or detect the defects of mariadb-backup and mbstream 10.11 with concurrent DDL.

All of them concern DDL during the backup, and all were seen on 10.11.19. In the stream, the chunks
R and D report DDL on tables that aren't InnoDB tables.

- mbstream compares the checksum of each E chunk with the payload before it. If an R chunk came in
  between, it has overwritten the buffer of that payload. So mbstream stops at the first E after an
  R if no P is between them. An empty payload before that E makes mbstream go on, and changes no
  file.
- mariadb-backup encodes the names in R and D twice. So `d/a@002db.MAD` is `d/a@0040002db.MAD` in
  such a chunk. mbstream ignores a path that doesn't exist, and ends with exit status 0.
- mariadb-backup leaves out an Aria table that is renamed after mariadb-backup read the directory
  and before it opened the file. It still says `completed OK!`. The stream has the table's `.frm`,
  but not its data.
- mariadb-backup replays the server's list of DDL on a copy that is newer than the DDL. If a table
  or schema was dropped and another was made with the same name, the stream may have the second
  one already. The D chunk of the drop then removes it.
- The prepare of an incremental renames InnoDB tables by their names and not by their numbers. It
  loses a renamed table if another table, which was made during the backup, got its former name.
  It fails at two tables that exchanged their names. The prepare of a full backup handles both.
"""

import os
from collections.abc import Iterable
from typing import Final, NamedTuple

from agent.codec.frm import HEAD_BYTES, INNODB, definition
from agent.codec.redo_log import RedoTail
from agent.codec.stream_paths import MAX_NAME, path_digest
from agent.codec.xbstream import HEAD, MAGIC, PAYLOAD, XbstreamParser

# The most renames of a kind that are kept, so that the memory is bounded.
_MOST_ODD: Final = 10_000
# The most bytes of a name in a `.ren` file: a schema, a slash, a table and a partition, of at most
# 255 bytes each in a file's name.
_MOST_NAMED: Final = 1 << 10
_SEEK_BYTES: Final = 8
# The mark before a partition's name in a file's name, and the ends of the names of the files that
# have a partition's rows. Their letters may be upper or lower case.
_PARTITION: Final = b"#P#"
_PARTITION_ENDS: Final = (b".MYD", b".MAD", b".ARZ", b".CSV")
# The ends of the names of an InnoDB table's data files, of which one is enough. They are for a full
# backup, for an incremental, and for a table that was made during the backup.
_TABLESPACES: Final = (b".ibd", b".ibd.delta", b".new")
# An "@" that is encoded once more.
_AT: Final = b"@0040"
# The ends of the names of files that mariadb-backup writes while the server blocks DDL. The table
# of such a file exists at that time. A D chunk is about a DDL before that, so it must not remove
# such a file. `.new` is a table that was made during the backup. `.ren` has a tablespace's last
# name.
_RENAMED: Final = b".ren"
_LASTING: Final = (b".frm", b".new", _RENAMED)
_REDO_LOG: Final = path_digest(b"ib_logfile0")


class Rename(NamedTuple):
    """The content of a `.ren` file.

    `old` is a table's name at the last checkpoint, and `new` is its last name.
    """

    old: bytes
    new: bytes


def exchanged(renames: Iterable[Rename]) -> bytes | None:
    """Return a name on a cycle of renames, or None if there is no cycle.

    In a cycle, tables exchanged their names. A rename to the same name is no cycle. `renames` must
    not have an old name twice. The time is proportional to the number of renames.
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


class MendingParser(XbstreamParser):
    """A parser that also passes the stream on, and inserts the payloads that mbstream needs.

    `inserted` is the number of bytes that were inserted so far. With `proving` the parser also
    keeps the data for `misnamed`, `wrongly_removed`, `confused`, `untrue_name` and `without_data`.
    It takes about 400 bytes for each table that isn't an InnoDB table or was renamed during the
    backup, and 40 bytes for each other InnoDB table.

    The names that a prepare gives to renamed tables, which it takes from `.ren` files, are always
    judged.
    """

    def __init__(self, *, proving: bool = True) -> None:
        super().__init__(proving=proving)
        self.inserted = 0
        self.redo = RedoTail()
        self._renamed = False  # True after an R chunk until the next payload
        self._insertions: list[tuple[int, bytes]] = []  # position in the stream, bytes to insert
        self._kept_back = b""  # bytes that are kept back until the next chunk is known
        self._path_bytes = 0  # length of the current chunk's path as it is in the stream
        # The paths of renames that may be encoded twice: sources that are not in the stream, and
        # targets.
        self._unknown: list[bytes] = []
        self._odd_targets: list[bytes] = []
        self._head: bytearray | None = None  # the first bytes of the current `.frm` or `.ren`
        self._head_bytes = 0  # the most bytes of it that are kept
        # In the following collections a file is represented by the digest of its path.
        self._renames: dict[int, Rename] = {}  # renames of InnoDB tables, by their `.ren` files
        self._longest_new = b""  # the new name with the longest path
        self._widest_new = b""  # the new name with the longest part behind the slash
        self._definitions: dict[int, bytes] = {}  # the paths of the `.frm` files that need data
        self._needed_by: dict[int, tuple[int, ...]] = {}  # by `.frm`: the data files that it needs
        self._partitioned: set[int] = set()  # the `.frm` files that need data files of partitions
        self._with_partition: set[int] = set()  # the `.frm` files with data of a partition
        self._removed_with_folder: set[int] = set()  # files that a D removed with their directory
        # The possible files of a tablespace that a D removed with its directory, by the `.frm` of
        # its table.
        self._possible_spaces: dict[int, tuple[int, ...]] = {}
        self._lasting: set[int] = set()  # the files that no D chunk may remove, see _LASTING
        self._removed: dict[int, bytes] = {}  # those that a D removed, with the path in the D

    def mend(self, view: memoryview) -> bytes | None:
        """Parse the next bytes, and return the bytes to pass on instead of them.

        Return None if they must be passed on without a change.

        Raises:
            StreamInvalid: the stream is not a valid xbstream.
        """
        start = self.raw_bytes - len(self._kept_back)
        self.feed(view)
        kept_back = self._count_kept_back()
        if not (self._insertions or self._kept_back or kept_back):
            return None
        data = self._kept_back + bytes(view)
        mended, at = bytearray(), 0
        for position, chunk in self._insertions:
            mended += data[at : position - start] + chunk
            at = position - start
            self.inserted += len(chunk)
        self._insertions.clear()
        end = len(data) - kept_back
        self._kept_back = data[end:]
        return bytes(mended + data[at:end])

    def misnamed(self) -> bytes | None:
        """Return a path that a rename encodes wrongly, so that its table is broken, or None."""
        for source in self._unknown:
            if path_digest(source.replace(_AT, b"@")) in self.files:
                return source
        for target in self._odd_targets:
            stem = target.rpartition(b".")[0].partition(b"#P#")[0]
            if path_digest(target) in self.files and path_digest(stem + b".frm") not in self.files:
                return target
        return None

    def wrongly_removed(self) -> list[bytes]:
        """Return the paths of D chunks that removed an existing table or a directory with one."""
        return sorted({path for file, path in self._removed.items() if file not in self.files})

    def confused(self) -> bytes | None:
        """Return the former name of a table that the prepare of an incremental would confuse.

        The name is `schema/table`, as in the names of files. Return None if there is no such table.
        """
        for name, _ in self._renames.values():
            if path_digest(name + b".new") in self.files:
                return name
        return exchanged(self._renames.values())

    def untrue_name(self, paths: Iterable[str]) -> str | None:
        """Return the new name of a rename that the server refused, or None if there is none.

        `paths` are the tablespaces of the server at the end of the run, as `schema/table.ibd`. The
        server writes a rename to its log before it renames the file. If that fails, for example
        because the new schema is a file, the log still has the rename, and the engine applies it.
        """
        if not self._renames:
            return None
        names = [
            tuple(os.fsdecode(one) + ".ibd" for one in pair) for pair in self._renames.values()
        ]
        there = {name for pair in names for name in pair}.intersection(paths)
        return next((new for old, new in names if old in there and new not in there), None)

    def unopenable(self, *, longest: int, incremental: bool) -> bytes | None:
        """Return a path that a prepare can't open, or None if there is none so far.

        The path is longer than `longest` bytes, or its file's name is longer than MAX_NAME. If a
        table was renamed during the backup, the prepare renames its files. In an incremental, these
        end in `.ibd.delta` and `.ibd.meta`.
        """
        widest = self._widest_new + _file_end(incremental)
        if len(widest.rpartition(b"/")[2]) > MAX_NAME:
            return widest
        found = self._longest_opened(incremental)
        return found if len(found) > longest else None

    def longest_opened(self, *, incremental: bool) -> int:
        """Return the length in bytes of the longest path that a prepare opens."""
        return len(self._longest_opened(incremental))

    def _longest_opened(self, incremental: bool) -> bytes:
        new = self._longest_new
        return max(self.longest, new + _file_end(incremental) if new else b"", key=len)

    def without_data(self) -> dict[int, bytes]:
        """Return the `.frm` files of tables that have no data in the stream, by their digests."""
        lacking = {frm for frm, data in self._needed_by.items() if not self.files.issuperset(data)}
        lacking |= {frm for frm, one in self._possible_spaces.items() if self.files.isdisjoint(one)}
        lacking = self.files & (lacking | self._partitioned - self._with_partition)
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
            raise self._invalid(f"more than {_MOST_ODD} tables were renamed during the backup")

    def _note_definition(self, head: bytearray) -> None:
        """Note the data files that the table of a `.frm` with this head needs.

        Ignore a table that an ALTER is making. Its name begins with `#sql`.
        """
        self._forget_definition(self._file)
        found = definition(head)
        if found is None or self._path.rpartition(b"/")[2].startswith(b"#sql"):
            return
        stem = self._path.removesuffix(b".frm")
        if found.partitioned and found.data:
            self._partitioned.add(self._file)
        elif found.data:
            self._needed_by[self._file] = tuple(path_digest(stem + end) for end in found.data)
        elif self._removed_with_folder and found.number == INNODB and not found.partitioned:
            # Other InnoDB tables may be in the system tablespace, so they may need no file.
            spaces = tuple(path_digest(stem + end) for end in _TABLESPACES)
            if self._removed_with_folder.isdisjoint(spaces):
                return
            self._possible_spaces[self._file] = spaces
        else:
            return
        self._definitions[self._file] = self._path

    def _forget_definition(self, file: int) -> None:
        self._definitions.pop(file, None)
        self._needed_by.pop(file, None)
        self._possible_spaces.pop(file, None)
        self._partitioned.discard(file)

    def _count_kept_back(self) -> int:
        """Return the number of last bytes that must be kept back.

        They are the incomplete head of a chunk, which may need an inserted payload before it.
        """
        if not self._renamed:
            return 0
        if self._step == self._on_head:
            return len(self._pending)
        if self._step == self._on_seek_or_sparse:  # the step also reads the next chunk's magic
            return max(0, len(self._pending) - _SEEK_BYTES)
        return HEAD.size + len(self._pending) if self._step == self._on_path else 0

    def _on_end_of_file(self) -> None:
        if self._path.endswith(_RENAMED) and self._file not in self._renames:
            raise self._invalid(f"there is no new name of a table in {self._path!r}")
        if self._renamed:
            self._renamed = False
            start = self.raw_bytes - HEAD.size - self._path_bytes
            self._insertions.append(
                (start, _empty_payload(self._path, self._open.get(self._file, 0)))
            )
        super()._on_end_of_file()
        if self._proving:
            self._note_end()

    def _note_end(self) -> None:
        """Note the end of a file that no D chunk may remove, or that has a partition's rows."""
        if self._path.endswith(_LASTING):
            self._lasting.add(self._file)
            return
        upper = self._path.upper()
        at = upper.find(_PARTITION)
        if at >= 0 and upper.endswith(_PARTITION_ENDS):
            self._with_partition.add(path_digest(self._path[:at] + b".frm"))

    def _on_remove(self) -> None:
        for file in self._folders.get(self._path, (self._file,)):
            if file in self._lasting:
                self._removed[file] = self._path
        super()._on_remove()

    def _remove_folder(self) -> None:
        if self._proving:
            self._removed_with_folder.update(self.files.intersection(self._folders[self._path]))
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
            # mbstream makes no directory for the target and ignores the error. So the file keeps
            # its name.
            self._await(HEAD.size, self._on_head)
            return
        super()._on_other_path(path)
        if self._proving:
            self._note_odd(source, self._checked_path(path), known=known)

    def _note_odd(self, source: bytes, target: bytes, *, known: bool) -> None:
        """Note a rename if its names may be encoded twice."""
        if not known and _AT in source:
            self._unknown.append(source)
        if known and _AT in target:
            self._odd_targets.append(target)
        if len(self._unknown) + len(self._odd_targets) > _MOST_ODD:
            raise self._invalid(
                f"more than {_MOST_ODD} tables with special characters in their names were renamed"
            )


def _file_end(incremental: bool) -> bytes:
    """Return the end of the longest name of a file that a prepare gives a renamed table."""
    return b".ibd.delta" if incremental else b".ibd"


def _width(path: bytes) -> int:
    return len(path.rpartition(b"/")[2])


def _empty_payload(path: bytes, offset: int) -> bytes:
    return HEAD.pack(MAGIC, 0, b"P", len(path)) + path + PAYLOAD.pack(0, offset, 0)
