"""A push parser that proves an xbstream whole while it passes by, without keeping it.

An xbstream is a row of chunks: `XBSTCK01`, a flags byte, a type byte, the path's length and
the path, then what the type asks for. Numbers are little-endian. The types (xbstream*.cc in
extra/mariabackup of MariaDB, storage/innobase/xtrabackup/src of Percona):

    P  payload   length u64, offset u64, CRC-32 u32, bytes    both
    E  end of file                                            both
    R  rename    length u32, the other path                   MariaDB
    D  remove                                                 MariaDB
    S  seek      offset u64                                   MariaDB
    S  sparse    entries u32, length u64, offset u64,         Percona
                 CRC-32 u32, entries of (skip u32, write u32), bytes

MariaDB sends R, D, and payloads flagged REWRITE when tables change meanwhile. The two S chunks
can't be confused: after a seek the next chunk's magic follows, where a sparse one holds the upper
half of a length, which is 0, and the lower half of an offset.
"""

import re
import struct
from array import array
from collections.abc import Callable
from typing import Final

from isal import isal_zlib

from agent.codec.stream_paths import MAX_PATH, path_digest, plain_path, refusal
from agent.errors import StreamInvalid

# The option file that an engine writes for the one that will prepare the backup.
OPTION_FILE: Final = "backup-my.cnf"
MAGIC: Final = b"XBSTCK01"
HEAD: Final = struct.Struct("<8sBcI")
PAYLOAD: Final = struct.Struct("<QQI")
_SPARSE: Final = struct.Struct("<IQQI")
_SEEK: Final = struct.Struct("<Q8s")
_NUMBER: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<II")
_FLAG_REWRITE: Final = 2

_MAX_PAYLOAD: Final = 1 << 30  # the engines send about 10 MiB; it is not buffered here
_MAX_ENTRIES: Final = 1 << 18
_MAX_OFFSET: Final = 1 << 48  # InnoDB's largest tablespace, 65,536 bytes a page
_MAX_METADATA: Final = 1 << 20  # a GTID set of many servers is long
MAX_OPTIONS: Final = 1 << 16
_MAX_META: Final = 1 << 12  # four short lines about a tablespace

# FIL_PAGE_SPACE_ID (storage/innobase/include/fil0types.h): four bytes, big-endian, never
# compressed nor encrypted on the first page. `.new` is a table made during the backup.
_SPACE_AT: Final = 34
_SPACE_END: Final = 38
_TABLESPACE_ENDS: Final = (b".ibd", b".new")
# In an incremental, the engine's note about a tablespace says its number.
_META_END: Final = b".meta"
_META_SPACE: Final = re.compile(rb"^space_id = (\d{1,10})$", re.MULTILINE)

_METADATA: Final = {
    prefix + name: name.decode()
    for prefix in (b"xtrabackup_", b"mariadb_backup_")
    for name in (b"checkpoints", b"info", b"binlog_info", b"slave_info", b"galera_info")
} | {OPTION_FILE.encode(): "options"}

# The parser needs some 85 bytes a file, and up to 900 a directory: 0.6 GB at most. MariaDB's
# incrementals have three files a table. A stream with more is no backup.
MOST_FILES: Final = 5_000_000
MOST_FOLDERS: Final = 200_000

_TWICE: Final = "if its table was dropped and made again meanwhile, back up at a quieter time"
_TOO_MANY: Final = (
    "a restore keeps every name in memory and takes no more: drop tables or schemas, or spread "
    "them over several servers"
)
_Step = Callable[[bytes], None]


class XbstreamParser:
    """Takes a stream in pieces of any size and raises StreamInvalid where it is none.

    It checks CRCs, the order of each file's bytes, that each file ends, and that no path is
    both a file and a directory; it does not check what files there are. Of an InnoDB tablespace
    it keeps the number (some 120 bytes), which stands on its first page (in an incremental, in its
    `.meta`) and outlives every rename.

    Without `proving` it keeps nothing but names, and leaves the CRCs to the program that reads the
    stream next. A stream that was proved passes without it, too.

    `files` holds the digests of the complete files, `raw_bytes` is the length of the stream
    so far, `longest` the longest path of a file in it. `spaces` maps the digests of tablespaces to
    their numbers. `hidden` is the first path that begins with a dot; mbstream takes none.
    `metadata` maps `checkpoints`, `info`, `binlog_info`, `slave_info`, `galera_info` and `options`
    to the content of the engine's own files.
    """

    def __init__(self, *, proving: bool = True) -> None:
        self._proving = proving
        self.files: set[int] = set()
        self.spaces: dict[int, int] = {}
        self.raw_bytes = 0
        self.longest = b""
        self.metadata: dict[str, bytes] = {}
        self.hidden: bytes | None = None
        # The digests of the files that each directory has or had. None of these shrinks by a
        # rename, so that their sizes bound the memory whatever a stream does.
        self._folders: dict[bytes, array[int]] = {}
        self._nested: set[bytes] = set()  # directories at the top with directories in them
        self._files_seen = 0
        self._folders_seen = 0
        self._captures: dict[str, bytearray] = {}
        self._open: dict[int, int] = {}  # digest of an unfinished file -> its next offset
        self._pending = bytearray()
        self._flags = 0
        self._type = b""
        self._path = b""
        self._file = 0
        self._capture: bytearray | None = None
        self._page: bytearray | None = None  # how the tablespace begins that is under way
        self._meta: bytearray | None = None  # an incremental's note about one
        self._left = 0
        self._crc = 0
        self._expected_crc = 0
        self._sparse = (0, 0, 0, 0)
        self._needed = 0
        self._step: _Step = self._on_head
        self._await(HEAD.size, self._on_head)

    def feed(self, view: memoryview) -> None:
        """Take the next bytes; `view` may be reused as soon as this returns."""
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
        """StreamInvalid unless the stream ended between chunks and each file ended in it."""
        if self._left or self._pending or self._step != self._on_head:
            raise self._invalid("it ends in the middle of a chunk")
        if self._open:
            raise self._invalid(f"{len(self._open)} files in it have no end")
        if not self.files:
            raise self._invalid("it holds no file")

    def contains(self, path: str) -> bool:
        """Whether the stream holds the whole of the file `path`, as in `db/table.ibd`."""
        return path_digest(plain_path(path.encode("utf-8", "surrogateescape"))) in self.files

    def _invalid(self, why: str, hint: str | None = None) -> StreamInvalid:
        at = self.raw_bytes
        return StreamInvalid(f"the stream is not a whole xbstream at byte {at}: {why}", hint=hint)

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

    # --- steps: each gets the bytes it waited for and says what to wait for next ---------

    def _on_head(self, head: bytes) -> None:
        magic, self._flags, self._type, length = HEAD.unpack(head)
        if magic != MAGIC:
            raise self._invalid("a chunk does not begin with XBSTCK01")
        if self._type not in _ON_PATH:
            raise self._invalid(f"chunks of type {self._type!r} are unknown")
        if self._flags and (self._flags, self._type) != (_FLAG_REWRITE, b"P"):
            raise self._invalid(f"flags {self._flags:#x} of a chunk are unknown")
        self._await(self._path_length(length), self._on_path)

    def _path_length(self, length: int) -> int:
        if not 0 < length <= MAX_PATH:
            raise self._invalid(f"a path of {length} bytes")
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
        # the engine also renames what it has not sent yet; mbstream lets that pass
        if self._remove():
            self._replace(path, target, space)
        self._await(HEAD.size, self._on_head)

    def _replace(self, path: bytes, target: int, space: int | None) -> None:
        """Note that a file has got the name `path`."""
        if path in _METADATA:
            raise self._invalid(f"a file is renamed to {path!r}, which only an engine writes")
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
        """Forget the current chunk's file; return True if it was there."""
        if self._file in self._open:
            raise self._invalid(f"the file {self._path!r} is renamed or removed before its end")
        if not self._forget(self._file):
            return False
        self.metadata.pop(_METADATA.get(self._path, ""), None)
        return True

    def _remove_folder(self) -> None:
        """Forget the current chunk's directory and all files in it, as mbstream does.

        Engines remove those of schemas, which have no directories in them.
        """
        if b"/" in self._path or self._path in self._nested:
            raise self._invalid(f"{self._path!r}, a directory among others, is removed")
        for file in self._folders.pop(self._path):
            if file in self._open:
                raise self._invalid(f"the directory {self._path!r} of an open file is removed")
            self._forget(file)

    def _forget(self, file: int) -> bool:
        """Forget a file; return True if it was there."""
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
            raise self._invalid(f"a seek to {offset} in {self._path!r}")
        self._open[self._file] = offset
        del self._pending[: -len(MAGIC)]
        self._await(HEAD.size, self._on_head)

    def _on_sparse_head(self, head: bytes) -> None:
        self._sparse = _SPARSE.unpack(head)
        entries = self._sparse[0]
        if not 0 < entries <= _MAX_ENTRIES:
            raise self._invalid(f"a sparse map of {entries} entries")
        self._await(entries * _ENTRY.size, self._on_sparse_map)

    def _on_sparse_map(self, entries: bytes) -> None:
        _, length, offset, self._expected_crc = self._sparse
        skipped = written = 0
        for skip, write in _ENTRY.iter_unpack(entries):
            skipped += skip
            written += write
        if written != length:
            raise self._invalid("a sparse map does not fit its payload")
        self._crc = isal_zlib.crc32(entries)
        self._begin(length, offset, skipped + length)

    def _open_file(self) -> None:
        """Note the current chunk's file as begun, unless it is open already."""
        if self._file in self._open:
            return
        # mbstream stops at a file that exists, and still exits 0
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
        """Note a file in its directory. Refuse one that is a directory, and one too many."""
        if path in self._folders:
            raise self._invalid(f"the path {path!r} is both a file and a directory")
        if path[:1] == b"." and self.hidden is None:
            self.hidden = path
        if len(path) > len(self.longest):
            self.longest = path
        self._files_seen += 1
        if self._files_seen > MOST_FILES:
            raise self._invalid(f"it holds more than {MOST_FILES} files", _TOO_MANY)
        folder = path.rpartition(b"/")[0]
        if folder:
            if folder not in self._folders:
                self._note_folder(folder)
            self._folders[folder].append(file)

    def _note_folder(self, folder: bytes) -> None:
        """Note a directory and those above it. Refuse one that is a file, and one too many."""
        if b"/" in folder:
            self._nested.add(folder.partition(b"/")[0])
        while folder and folder not in self._folders:
            digest = path_digest(folder)
            if digest in self.files or digest in self._open:
                raise self._invalid(f"the path {folder!r} is both a file and a directory")
            self._folders[folder] = array("Q")
            self._folders_seen += 1
            if self._folders_seen > MOST_FOLDERS:
                raise self._invalid(f"it holds more than {MOST_FOLDERS} directories", _TOO_MANY)
            folder = folder.rpartition(b"/")[0]

    def _begin(self, length: int, offset: int, advance: int) -> None:
        """Expect `length` payload bytes for the file's `offset`, which moves by `advance`."""
        self._open_file()
        if offset != self._open[self._file]:
            raise self._invalid(f"bytes of {self._path!r} are missing or out of order")
        if length > _MAX_PAYLOAD or offset + advance > _MAX_OFFSET:
            raise self._invalid(f"a payload of {length} bytes")
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
        """Take the number of a tablespace from the head of its first page."""
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
