"""What mariadb-backup and mbstream of 10.11 get wrong about tables that are renamed meanwhile.

Both concern the chunks R and D, which tell of DDL on tables that aren't InnoDB's, and both were
seen on 10.11.19:

- mbstream checks the checksum of each E chunk against the payload before it, whose buffer an R
  chunk has overwritten by then: it ends at the first E after an R with no P between them. An empty
  payload before that E makes it go on, and changes no file.
- mariadb-backup encodes the names in R and D twice, so that `d/a@002db.MAD` is `d/a@0040002db.MAD`
  there. mbstream passes over a path that isn't there, and exits 0.
"""

from typing import Final

from agent.codec.stream_paths import path_digest
from agent.codec.xbstream import HEAD, MAGIC, PAYLOAD, XbstreamParser

_MOST_ODD: Final = 10_000
_SEEK_BYTES: Final = 8
_AT: Final = b"@0040"


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

    def _on_path(self, path: bytes) -> None:
        self._path_bytes = len(path)
        super()._on_path(path)

    def _on_payload_head(self, head: bytes) -> None:
        self._renamed = False
        super()._on_payload_head(head)

    def _on_other_path(self, path: bytes) -> None:
        source, known = self._path, self._file in self.files
        super()._on_other_path(path)
        self._renamed = True
        if not known and _AT in source:
            self._unknown.append(source)
        if known and _AT in path:
            self._odd_targets.append(self._checked_path(path))
        if len(self._unknown) + len(self._odd_targets) > _MOST_ODD:
            raise self._invalid("it renames too many tables with signs in their names")


def _empty_payload(path: bytes, offset: int) -> bytes:
    return HEAD.pack(MAGIC, 0, b"P", len(path)) + path + PAYLOAD.pack(0, offset, 0)
