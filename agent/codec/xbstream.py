"""A push parser that checks an xbstream while it passes through, without keeping it.

An xbstream is a sequence of chunks. A chunk consists of `XBSTCK01` (the magic), a flags byte, a
type byte, the path's length and the path, and then the data of its type. Numbers are
little-endian. The sources of the types are xbstream*.cc in extra/mariabackup of MariaDB, and in
storage/innobase/xtrabackup/src of Percona:

    P  payload   length u64, offset u64, CRC-32 u32, bytes    both
    E  end of file                                            both
    R  rename    length u32, the other path                   MariaDB
    D  remove                                                 MariaDB
    S  seek      offset u64                                   MariaDB
    S  sparse    entries u32, length u64, offset u64,         Percona
                 CRC-32 u32, entries of (skip u32, write u32), bytes

MariaDB sends R, D, and payloads with the flag REWRITE if tables change during the backup. The two
S chunks can't be confused. The 8 bytes after the offset of a seek are the next chunk's magic. In
a sparse chunk they are the upper half of a length, which is 0, and the lower half of an offset.
"""

import re
import struct
from array import array
from collections.abc import Callable
from typing import Final

from isal import isal_zlib

from agent.codec.stream_paths import MAX_PATH, path_digest, plain_path, refusal
from agent.errors import StreamInvalid

# The option file that an engine writes for the engine that will prepare the backup.
OPTION_FILE: Final = "backup-my.cnf"
MAGIC: Final = b"XBSTCK01"
HEAD: Final = struct.Struct("<8sBcI")
PAYLOAD: Final = struct.Struct("<QQI")
_SPARSE: Final = struct.Struct("<IQQI")
_SEEK: Final = struct.Struct("<Q8s")
_NUMBER: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<II")
_FLAG_REWRITE: Final = 2

# Limits in bytes, except that of the entries.
_MAX_PAYLOAD: Final = 1 << 30  # the engines send about 10 MiB, which the parser doesn't buffer
_MAX_ENTRIES: Final = 1 << 18  # entries of a sparse map
_MAX_OFFSET: Final = 1 << 48  # InnoDB's largest tablespace, with pages of 65,536 bytes
_MAX_METADATA: Final = 1 << 20  # a GTID set of many servers is long
MAX_OPTIONS: Final = 1 << 16
_MAX_META: Final = 1 << 12  # a `.meta` has four short lines about a tablespace

# The offset of FIL_PAGE_SPACE_ID (storage/innobase/include/fil0types.h), the tablespace's number.
# It has four bytes, big-endian, and is never compressed or encrypted on the first page.
_SPACE_AT: Final = 34
_SPACE_END: Final = 38
# `.new` is a table that was made during the backup.
_TABLESPACE_ENDS: Final = (b".ibd", b".new")
# In an incremental, the engine's `.meta` file has the number of a tablespace.
_META_END: Final = b".meta"
_META_SPACE: Final = re.compile(rb"^space_id = (\d{1,10})$", re.MULTILINE)

_METADATA: Final = {
    prefix + name: name.decode()
    for prefix in (b"xtrabackup_", b"mariadb_backup_")
    for name in (b"checkpoints", b"info", b"binlog_info", b"slave_info", b"galera_info")
} | {OPTION_FILE.encode(): "options"}

# The parser needs about 85 bytes for a file, and up to 900 for a directory, so at most 0.6 GB.
# MariaDB's incrementals have three files for each table. A stream that exceeds these limits is
# refused.
MOST_FILES: Final = 5_000_000
MOST_FOLDERS: Final = 200_000

_TWICE: Final = (
    "if the file's table was dropped and made again during the backup, back up at a quieter time"
)
_TOO_MANY: Final = (
    "a restore keeps every name in memory, so it accepts no more: drop tables or schemas, or "
    "spread them over several servers"
)
_Step = Callable[[bytes], None]


class XbstreamParser:
    """A parser that takes a stream in pieces of any size.

    It raises StreamInvalid if the stream is not a complete xbstream. It checks CRCs, the order of
    each file's bytes, that each file ends, and that no path is both a file and a directory. It
    does not check if the expected files are in the stream.

    For each InnoDB tablespace it keeps the tablespace's number, which takes about 120 bytes. The
    number is on the first page of the tablespace. In an incremental it is in the `.meta` file. A
    rename does not change it.

    Without `proving` the parser keeps only names, and leaves the CRCs to the program that reads
    the stream next. A stream that is valid with `proving` is also valid without it.

    Attributes:
        files: The digests of the complete files.
        raw_bytes: The length of the stream so far, in bytes.
        longest: The longest path of a file so far.
        spaces: The numbers of the tablespaces, by the digests of their files.
        hidden: The first path that begins with a dot, or None. mbstream accepts no such path.
        metadata: The content of the engine's own files, by the names `checkpoints`, `info`,
            `binlog_info`, `slave_info`, `galera_info` and `options`.
    """

    def __init__(self, *, proving: bool = True) -> None:
        self._proving = proving
        self.files: set[int] = set()
        self.spaces: dict[int, int] = {}
        self.raw_bytes = 0
        self.longest = b""
        self.metadata: dict[str, bytes] = {}
        self.hidden: bytes | None = None
        # The digests of the files that each directory has or had. A rename never makes these
        # collections and counts smaller. So their limits bound the memory for any stream.
        self._folders: dict[bytes, array[int]] = {}
        self._nested: set[bytes] = set()  # the top directories that have subdirectories
        self._files_seen = 0
        self._folders_seen = 0
        self._captures: dict[str, bytearray] = {}
        self._open: dict[int, int] = {}  # the next offsets of unfinished files, by their digests
        self._pending = bytearray()
        self._flags = 0
        self._type = b""
        self._path = b""
        self._file = 0
        self._capture: bytearray | None = None
        self._page: bytearray | None = None  # the first bytes of the current tablespace
        self._meta: bytearray | None = None  # the content of the current `.meta` file
        self._left = 0
        self._crc = 0
        self._expected_crc = 0
        self._sparse = (0, 0, 0, 0)
        self._needed = 0
        self._step: _Step = self._on_head
        self._await(HEAD.size, self._on_head)

    def feed(self, view: memoryview) -> None:
        """Parse the next bytes of the stream.

        The caller may reuse `view` after the return.

        Raises:
            StreamInvalid: the stream is not a valid xbstream.
        """
        position = 0
        while position < len(view):
            if self._left:
                piece = view[position : position + self._left]
                self._on_payload(piece)
            else:
                piece = view[position : position + self._needed - len(self._pending)]
                self._gather(piece)
            position += len(piece)

    def finish(self) -> None:
        """Raise StreamInvalid unless the stream ended between chunks and each file ended in it.

        A stream without any file is also invalid.
        """
        if self._left or self._pending or self._step != self._on_head:
            raise self._invalid("it ends in the middle of a chunk")
        if self._open:
            raise self._invalid(f"{len(self._open)} files in it have no end")
        if not self.files:
            raise self._invalid("it has no file")

    def contains(self, path: str) -> bool:
        """Return True if the stream has the complete file `path`, such as `db/table.ibd`."""
        return path_digest(plain_path(path.encode("utf-8", "surrogateescape"))) in self.files

    def _invalid(self, why: str, hint: str | None = None) -> StreamInvalid:
        at = self.raw_bytes
        return StreamInvalid(f"the stream is not a valid xbstream at byte {at}: {why}", hint=hint)

    def _await(self, needed: int, step: _Step) -> None:
        self._needed = needed
        self._step = step

    def _gather(self, piece: memoryview) -> None:
        self.raw_bytes += len(piece)
        self._pending += piece
        if len(self._pending) == self._needed:
            whole = bytes(self._pending)
            self._pending.clear()
            self._step(whole)

    # --- steps: each takes the bytes that it waited for and sets the next step ---------

    def _on_head(self, head: bytes) -> None:
        magic, self._flags, self._type, length = HEAD.unpack(head)
        if magic != MAGIC:
            raise self._invalid("a chunk does not begin with XBSTCK01")
        if self._type not in _ON_PATH:
            raise self._invalid(f"the type {self._type!r} of a chunk is unknown")
        if self._flags and (self._flags, self._type) != (_FLAG_REWRITE, b"P"):
            raise self._invalid(f"the flags {self._flags:#x} of a chunk are unknown")
        self._await(self._path_length(length), self._on_path)

    def _path_length(self, length: int) -> int:
        if not 0 < length <= MAX_PATH:
            raise self._invalid(f"a path has {length} bytes instead of 1 to {MAX_PATH}")
        return length

    def _checked_path(self, path: bytes) -> bytes:
        if why := refusal(path):
            raise self._invalid(why)
        return plain_path(path)

    def _on_path(self, path: bytes) -> None:
        self._path = self._checked_path(path)
        self._file = path_digest(self._path)
        _ON_PATH[self._type](self)

    def _on_end_of_file(self) -> None:
        self._open_file()
        del self._open[self._file]
        self.files.add(self._file)
        name = _METADATA.get(self._path, "")
        if name in self._captures:
            self.metadata[name] = bytes(self._captures.pop(name))
        self._await(HEAD.size, self._on_head)

    def _on_payload_head(self, head: bytes) -> None:
        length, offset, self._expected_crc = PAYLOAD.unpack(head)
        self._crc = 0
        self._begin(length, offset, length)

    def _on_rename_length(self, number: bytes) -> None:
        (length,) = _NUMBER.unpack(number)
        self._await(self._path_length(length), self._on_other_path)

    def _on_other_path(self, path: bytes) -> None:
        path = self._checked_path(path)
        target = path_digest(path)
        if self._path in self._folders:
            raise self._invalid(f"the directory {self._path!r} is renamed")
        if target in self._open:
            raise self._invalid(f"the file {path!r} is replaced before its end")
        space = self.spaces.get(self._file)
        # The engine also renames files that it has not sent yet. mbstream ignores such a rename.
        if self._remove():
            self._replace(path, target, space)
        self._await(HEAD.size, self._on_head)

    def _replace(self, path: bytes, target: int, space: int | None) -> None:
        """Note that the current chunk's file has the name `path` after its rename."""
        if path in _METADATA:
            raise self._invalid(f"a file is renamed to {path!r}, a name that only an engine writes")
        if not self._forget(target):
            self._place(path, target)
        self.files.add(target)
        if space is not None:
            self.spaces[target] = space

    def _on_remove(self) -> None:
        if self._path in self._folders:
            self._remove_folder()
        else:
            self._remove()
        self._await(HEAD.size, self._on_head)

    def _remove(self) -> bool:
        """Forget the current chunk's file, and return True if the stream had it."""
        if self._file in self._open:
            raise self._invalid(f"the file {self._path!r} is renamed or removed before its end")
        if not self._forget(self._file):
            return False
        self.metadata.pop(_METADATA.get(self._path, ""), None)
        return True

    def _remove_folder(self) -> None:
        """Forget the current chunk's directory and all files in it, as mbstream does.

        Engines remove only the directories of schemas, which have no subdirectories.
        """
        if b"/" in self._path or self._path in self._nested:
            raise self._invalid(
                f"the directory {self._path!r} is removed, but it has or is a subdirectory"
            )
        for file in self._folders.pop(self._path):
            if file in self._open:
                raise self._invalid(
                    f"the directory {self._path!r} is removed before the end of a file in it"
                )
            self._forget(file)

    def _forget(self, file: int) -> bool:
        """Forget a file, and return True if the stream had it."""
        if file not in self.files:
            return False
        self.files.remove(file)
        self.spaces.pop(file, None)
        return True

    def _on_seek_or_sparse(self, start: bytes) -> None:
        offset, magic = _SEEK.unpack(start)
        self._pending += start
        if magic != MAGIC:
            self._await(_SPARSE.size, self._on_sparse_head)
            return
        self._open_file()
        if offset >= _MAX_OFFSET or self._path in _METADATA:
            raise self._invalid(f"a seek to {offset} in {self._path!r} is not allowed")
        self._open[self._file] = offset
        del self._pending[: -len(MAGIC)]
        self._await(HEAD.size, self._on_head)

    def _on_sparse_head(self, head: bytes) -> None:
        self._sparse = _SPARSE.unpack(head)
        entries = self._sparse[0]
        if not 0 < entries <= _MAX_ENTRIES:
            raise self._invalid(
                f"a sparse map has {entries} entries instead of 1 to {_MAX_ENTRIES}"
            )
        self._await(entries * _ENTRY.size, self._on_sparse_map)

    def _on_sparse_map(self, entries: bytes) -> None:
        _, length, offset, self._expected_crc = self._sparse
        skipped = written = 0
        for skip, write in _ENTRY.iter_unpack(entries):
            skipped += skip
            written += write
        if written != length:
            raise self._invalid("the sizes in a sparse map do not fit its payload")
        self._crc = isal_zlib.crc32(entries)
        self._begin(length, offset, skipped + length)

    def _open_file(self) -> None:
        """Note the start of the current chunk's file, unless it is open already."""
        if self._file in self._open:
            return
        # mbstream stops at a file that exists, but ends with exit status 0.
        if self._file in self.files and not self._flags & _FLAG_REWRITE:
            raise self._invalid(f"the file {self._path!r} goes on after its end", _TWICE)
        if self._file in self.files:
            self.files.remove(self._file)
        else:
            self._place(self._path, self._file)
        self._open[self._file] = 0
        if self._proving and self._path in _METADATA:
            self._captures[_METADATA[self._path]] = bytearray()

    def _place(self, path: bytes, file: int) -> None:
        """Note a file in its directory.

        Raises:
            StreamInvalid: the path is also a directory, or there are too many files.
        """
        if path in self._folders:
            raise self._invalid(f"the path {path!r} is both a file and a directory")
        if path[:1] == b"." and self.hidden is None:
            self.hidden = path
        if len(path) > len(self.longest):
            self.longest = path
        self._files_seen += 1
        if self._files_seen > MOST_FILES:
            raise self._invalid(f"it has more than {MOST_FILES} files", _TOO_MANY)
        folder = path.rpartition(b"/")[0]
        if folder:
            if folder not in self._folders:
                self._note_folder(folder)
            self._folders[folder].append(file)

    def _note_folder(self, folder: bytes) -> None:
        """Note a directory and its parent directories.

        Raises:
            StreamInvalid: the path is also a file, or there are too many directories.
        """
        if b"/" in folder:
            self._nested.add(folder.partition(b"/")[0])
        while folder and folder not in self._folders:
            digest = path_digest(folder)
            if digest in self.files or digest in self._open:
                raise self._invalid(f"the path {folder!r} is both a file and a directory")
            self._folders[folder] = array("Q")
            self._folders_seen += 1
            if self._folders_seen > MOST_FOLDERS:
                raise self._invalid(f"it has more than {MOST_FOLDERS} directories", _TOO_MANY)
            folder = folder.rpartition(b"/")[0]

    def _begin(self, length: int, offset: int, advance: int) -> None:
        """Expect `length` payload bytes at the file's `offset`, and move the offset by `advance`.

        Raises:
            StreamInvalid: `offset` is not the next one of the file, or a limit is exceeded.
        """
        self._open_file()
        if offset != self._open[self._file]:
            raise self._invalid(f"bytes of {self._path!r} are missing or out of order")
        if length > _MAX_PAYLOAD or offset + advance > _MAX_OFFSET:
            raise self._invalid(f"a payload of {length} bytes at offset {offset} is too large")
        self._open[self._file] = offset + advance
        name = _METADATA.get(self._path, "")
        if name and offset + length > (MAX_OPTIONS if name == "options" else _MAX_METADATA):
            raise self._invalid(f"{self._path!r} is too large")
        self._capture = self._captures.get(name)
        begins = self._proving and offset == 0
        self._page = bytearray() if begins and self._path.endswith(_TABLESPACE_ENDS) else None
        note = begins and length <= _MAX_META and self._path.endswith(_META_END)
        self._meta = bytearray() if note else None
        self._left = length
        if not length:
            self._end_payload()

    def _on_payload(self, piece: memoryview) -> None:
        self.raw_bytes += len(piece)
        if self._proving:
            self._crc = isal_zlib.crc32(piece, self._crc)
        if self._capture is not None:
            self._capture += piece
        if self._page is not None:
            self._note_space(piece)
        if self._meta is not None:
            self._meta += piece
        self._left -= len(piece)
        if not self._left:
            self._end_payload()

    def _note_space(self, piece: memoryview) -> None:
        """Read the number of a tablespace from the head of its first page."""
        assert self._page is not None
        self._page += piece[: _SPACE_END - len(self._page)]
        if len(self._page) == _SPACE_END:
            self.spaces[self._file] = int.from_bytes(self._page[_SPACE_AT:])
            self._page = None

    def _end_payload(self) -> None:
        if self._proving and self._crc != self._expected_crc:
            raise self._invalid(f"bytes of {self._path!r} fail their CRC-32")
        if self._meta is not None and (found := _META_SPACE.search(self._meta)):
            self.spaces[self._file] = int(found[1])
        self._await(HEAD.size, self._on_head)


_ON_PATH: Final[dict[bytes, Callable[[XbstreamParser], None]]] = {
    b"P": lambda parser: parser._await(PAYLOAD.size, parser._on_payload_head),
    b"E": lambda parser: parser._on_end_of_file(),
    b"R": lambda parser: parser._await(_NUMBER.size, parser._on_rename_length),
    b"D": lambda parser: parser._on_remove(),
    b"S": lambda parser: parser._await(_SEEK.size, parser._on_seek_or_sparse),
}
