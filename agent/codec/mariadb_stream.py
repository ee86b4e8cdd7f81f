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
"""

import re
from typing import Final

from agent.codec.stream_paths import path_digest
from agent.codec.xbstream import HEAD, MAGIC, PAYLOAD, XbstreamParser

_MOST_ODD: Final = 10_000
_SEEK_BYTES: Final = 8
_HEAD_BYTES: Final = 64
_FRM_MAGIC: Final = b"\xfe\x01"
# The files of data that a table needs, by the engine's number in its `.frm` (agent/codec/frm.py).
_DATA_OF: Final = {
    9: (b".MYI", b".MYD"),
    10: (b".MRG",),
    16: (b".ARZ",),
    17: (b".CSV",),
    42: (b".MAI", b".MAD"),
}
# The engine's number of a partitioned table, whose partitions' engine is at another place.
_PARTITIONED: Final = 20
_PARTITIONS_AT: Final = 61
_PARTITION: Final = re.compile(rb"#P#.*\.(?:MYD|MAD|ARZ|CSV)$", re.IGNORECASE | re.DOTALL)
_AT: Final = b"@0040"
# What is copied while the server holds DDL back: its table is there, and what a D before that DDL
# was about is not. `.new` is a table made meanwhile, `.ren` says a tablespace's last name.
_LASTING: Final = (b".frm", b".new", b".ren")


class MendedStream(XbstreamParser):
    """A parser that also hands the stream on, with what mbstream needs put in.

    `inserted` counts the bytes that were put in so far.
    """

    def __init__(self, *, checksums: bool = True) -> None:
        super().__init__(checksums=checksums)
        self.inserted = 0
        self._renamed = False  # and no payload since
        self._gaps: list[tuple[int, bytes]] = []
        self._held = b""
        self._path_bytes = 0
        self._unknown: list[bytes] = []
        self._odd_targets: list[bytes] = []
        self._head: bytearray | None = None  # how the `.frm` begins that is under way
        self._needed_by: dict[int, tuple[int, ...]] = {}
        self._partitioned: set[int] = set()  # the `.frm` files that need partitions
        self._parted: set[int] = set()  # those whose partitions have come, one at least
        self._lasting: dict[bytes, set[int]] = {}  # digests of such files by directory
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

    @property
    def names(self) -> int:
        """How many names of files and directories are kept in memory."""
        return super().names + len(self._removed) + len(self._parted)

    def lost(self) -> list[bytes]:
        """Return the paths of lasting files, or their directories, that were wrongly removed."""
        return sorted({path for file, path in self._removed.items() if file not in self.files})

    def without_data(self) -> set[int]:
        """Return the digests of the `.frm` files whose table has no data in the stream."""
        lacking = {frm for frm, data in self._needed_by.items() if not self.files.issuperset(data)}
        return self.files & (lacking | self._partitioned - self._parted)

    def _begin(self, length: int, offset: int, advance: int) -> None:
        self._head = bytearray() if offset == 0 and self._path.endswith(b".frm") else None
        super()._begin(length, offset, advance)

    def _on_payload(self, piece: memoryview) -> None:
        if self._head is not None:
            self._head += piece[: _HEAD_BYTES - len(self._head)]
        super()._on_payload(piece)

    def _end_payload(self) -> None:
        if self._head:
            self._note_definition(self._head)
        super()._end_payload()

    def _note_definition(self, head: bytearray) -> None:
        """Note what data the table needs whose `.frm` begins so; not of one half made."""
        name = self._path.rpartition(b"/")[2]
        is_table = head[:2] == _FRM_MAGIC and not name.startswith(b"#sql")
        ends = _DATA_OF.get(head[3], ()) if is_table else ()
        self._partitioned.discard(self._file)
        if is_table and head[3] == _PARTITIONED and head[_PARTITIONS_AT] in _DATA_OF:
            self._partitioned.add(self._file)
        stem = self._path.removesuffix(b".frm")
        self._needed_by.pop(self._file, None)
        if ends:
            self._needed_by[self._file] = tuple(path_digest(stem + end) for end in ends)

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
        if found := _PARTITION.search(self._path):
            self._parted.add(path_digest(self._path[: found.start()] + b".frm"))
        if self._path.endswith(_LASTING):
            folder = self._path.rpartition(b"/")[0]
            self._lasting.setdefault(folder, set()).add(self._file)

    def _on_remove(self) -> None:
        if self._file in self.files and self._path.endswith(_LASTING):
            self._removed[self._file] = self._path
        # mbstream takes a directory away with all that is in it
        for file in self._lasting.pop(self._path, set()) & self.files:
            self.files.remove(file)
            self._removed[file] = self._path
        self._folders.discard(self._path)
        super()._on_remove()

    def _remove(self) -> bool:
        self._lasting.get(self._path.rpartition(b"/")[0], set()).discard(self._file)
        return super()._remove()

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
        if not known and _AT in source:
            self._unknown.append(source)
        if known and _AT in path:
            self._odd_targets.append(self._checked_path(path))
        if len(self._unknown) + len(self._odd_targets) > _MOST_ODD:
            raise self._invalid("it renames too many tables with signs in their names")


def _empty_payload(path: bytes, offset: int) -> bytes:
    return HEAD.pack(MAGIC, 0, b"P", len(path)) + path + PAYLOAD.pack(0, offset, 0)
