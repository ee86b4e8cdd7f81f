"""Gzip members that carry their own length, so that several cores can decompress one stream.

Each block of the plain stream becomes one member of RFC 1952. Its extra field has one subfield,
`B` `A`, of 4 bytes. The subfield is the little-endian length of the whole member in bytes, with
header and trailer. `gunzip` skips the field and reads the members as one stream. docs/format.md
describes every byte.
"""

import struct
from collections.abc import Iterator
from typing import Final

from isal import igzip_lib, isal_zlib

from agent.errors import DataDamaged, Internal

MAX_BLOCK: Final = 4 << 20
"""The largest block of one member, in bytes of the plain stream."""

# ISA-L's level 0 makes random bytes 23 % larger, because its fixed codes have up to 15 bits for 8
# bits. The other levels use stored blocks for such bytes and add 1 byte in 2,000.
_MAX_MEMBER: Final = 2 * MAX_BLOCK

# ID1 ID2 CM=deflate FLG=FEXTRA MTIME=0 XFL=0 OS=unknown XLEN=8 'B' 'A' LEN=4
_START: Final = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x08\0BA\x04\0"
_LENGTH: Final = struct.Struct("<I")
_TRAILER: Final = struct.Struct("<II")
_HEADER_BYTES: Final = len(_START) + _LENGTH.size
_OVERHEAD: Final = _HEADER_BYTES + _TRAILER.size
_RAW_DEFLATE: Final = -15


def deflate_member(block: memoryview | bytes, level: int = 1) -> bytes:
    """Return a gzip member with the content `block`, which has 0 to MAX_BLOCK bytes.

    `level` is the level of ISA-L, from 0 to 3. Several threads may compress at the same time,
    because ISA-L releases the GIL during its work.

    Raises:
        Internal: the block is larger than MAX_BLOCK.
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
    """Return the block inside one whole `member`.

    It decompresses at most `limit` + 1 bytes, even if the member claims more.

    Raises:
        DataDamaged: the length, the compressed bytes or the checksum of the member are wrong, or
            its block is larger than `limit`.
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
        # One byte more than the expected size shows if the content is longer. A limit of 0 would
        # mean no limit.
        block = inflater.decompress(body, size + 1)
    except igzip_lib.IsalError as error:  # type: ignore[misc]  # the stub has it as an instance
        raise DataDamaged(f"a gzip member can't be inflated: {error}") from error
    if not inflater.eof or len(block) != size or inflater.unused_data:
        raise DataDamaged("a gzip member's content is not as long as its trailer says")
    return block


def member_length(header: memoryview | bytes) -> int:
    """Return the length in bytes of the member that begins with `header` (20 bytes).

    Raises:
        DataDamaged: `header` is not the header of a member of this format.
    """
    if len(header) < _HEADER_BYTES or header[: len(_START)] != _START:
        raise DataDamaged("no gzip member of this format begins at the expected place")
    (length,) = _LENGTH.unpack_from(header, len(_START))
    if not _OVERHEAD < length <= _MAX_MEMBER:
        raise DataDamaged(f"a gzip member claims an impossible length of {length} bytes")
    return int(length)


class MemberSplitter:
    """A splitter that divides a stream, which arrives in pieces of any size, into whole members.

    It checks only headers and lengths. `inflate_member` checks the rest.
    """

    def __init__(self) -> None:
        self._part = bytearray()
        self._length = 0
        self._seen = False

    def feed(self, view: memoryview) -> Iterator[bytes]:
        """Yield the members that end inside `view`.

        Exhaust this iterator before you reuse `view`.

        Raises:
            DataDamaged: no member of this format begins at the expected place, or its length is
                impossible.
        """
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
        """Raise DataDamaged if the stream ended inside a member, or had none."""
        if self._part:
            raise DataDamaged("the stream ends in the middle of a gzip member")
        if not self._seen:
            raise DataDamaged("the stream has no gzip member")
