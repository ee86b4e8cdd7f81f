"""Gzip members that carry their own length, so that several cores can inflate one stream.

Each block of the plain stream becomes one RFC 1952 member. Its extra field holds one
subfield, `B` `A`, of four bytes: the little-endian length of the whole member, header and
trailer included. `gunzip` skips the field and reads the members as one stream. Byte by
byte: docs/format.md.
"""

import struct
from collections.abc import Iterator
from typing import Final

from isal import igzip_lib, isal_zlib

from agent.errors import DataDamaged, Internal

MAX_BLOCK: Final = 4 << 20
"""The largest block of one member, in bytes of plain stream."""

# ISA-L's level 0 writes noise 23 % larger (its fixed codes have up to 15 bits for 8); the
# other levels fall back to stored blocks and add 1 byte in 2,000.
_MAX_MEMBER: Final = 2 * MAX_BLOCK

# ID1 ID2 CM=deflate FLG=FEXTRA MTIME=0 XFL=0 OS=unknown XLEN=8 'B' 'A' LEN=4
_START: Final = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x08\0BA\x04\0"
_LENGTH: Final = struct.Struct("<I")
_TRAILER: Final = struct.Struct("<II")
_HEADER_BYTES: Final = len(_START) + _LENGTH.size
_OVERHEAD: Final = _HEADER_BYTES + _TRAILER.size
_RAW_DEFLATE: Final = -15


def deflate_member(block: memoryview | bytes, level: int = 1) -> bytes:
    """One member holding `block` (0 to MAX_BLOCK bytes); `level` is ISA-L's, 0 to 3.

    Threads may deflate at the same time: the GIL is released while ISA-L works.
    """
    if len(block) > MAX_BLOCK:
        raise Internal(f"a block of {len(block)} bytes exceeds the limit of {MAX_BLOCK}")
    body = isal_zlib.compress(block, level, _RAW_DEFLATE)
    return b"".join(
        (
            _START,
            _LENGTH.pack(len(body) + _OVERHEAD),
            body,
            _TRAILER.pack(isal_zlib.crc32(block), len(block)),
        )
    )


def inflate_member(member: memoryview | bytes, limit: int = MAX_BLOCK) -> bytes:
    """The block inside one whole `member`; DataDamaged unless every check of it holds.

    At most `limit` bytes are inflated, whatever the member claims.
    """
    view = memoryview(member)
    if member_length(view[:_HEADER_BYTES]) != len(view):
        raise DataDamaged("a gzip member is not as long as its header says")
    checksum, size = _TRAILER.unpack_from(view, len(view) - _TRAILER.size)
    if size > limit:
        raise DataDamaged(f"a gzip member claims {size} bytes, more than the limit of {limit}")
    block = _inflate(view[_HEADER_BYTES : -_TRAILER.size], size)
    if isal_zlib.crc32(block) != checksum:
        raise DataDamaged("a gzip member's content fails its CRC-32")
    return block


def _inflate(body: memoryview, size: int) -> bytes:
    inflater = isal_zlib.decompressobj(wbits=_RAW_DEFLATE)
    try:
        # one byte more than due, so that a longer content shows; 0 would mean no limit
        block = inflater.decompress(body, size + 1)
    except igzip_lib.IsalError as error:  # type: ignore[misc]  # the stub has it as an instance
        raise DataDamaged(f"a gzip member can't be inflated: {error}") from error
    if not inflater.eof or len(block) != size or inflater.unused_data:
        raise DataDamaged("a gzip member's content is not as long as its trailer says")
    return block


def member_length(header: memoryview | bytes) -> int:
    """The length in bytes of the member that begins with `header` (20 bytes).

    DataDamaged where no member of this format begins there.
    """
    if len(header) < _HEADER_BYTES or header[: len(_START)] != _START:
        raise DataDamaged("no gzip member of this format begins where one should")
    (length,) = _LENGTH.unpack_from(header, len(_START))
    if not _OVERHEAD < length <= _MAX_MEMBER:
        raise DataDamaged(f"a gzip member claims an impossible length of {length} bytes")
    return int(length)


class MemberSplitter:
    """Cuts a stream that arrives in pieces of any size into whole members.

    It checks headers and lengths only; `inflate_member` checks the rest.
    """

    def __init__(self) -> None:
        self._part = bytearray()
        self._length = 0
        self._seen = False

    def feed(self, view: memoryview) -> Iterator[bytes]:
        """The members that end inside `view`; exhaust this before `view` is reused."""
        position = 0
        while True:
            goal = self._length or _HEADER_BYTES
            piece = view[position : position + goal - len(self._part)]
            self._part += piece
            position += len(piece)
            if len(self._part) < goal:
                return
            if self._length:
                yield self._take()
            else:
                self._length = member_length(bytes(self._part))

    def _take(self) -> bytes:
        member = bytes(self._part)
        self._part.clear()
        self._length = 0
        self._seen = True
        return member

    def finish(self) -> None:
        """DataDamaged where the stream ended inside a member, or held none."""
        if self._part:
            raise DataDamaged("the stream ends in the middle of a gzip member")
        if not self._seen:
            raise DataDamaged("the stream holds no gzip member")
