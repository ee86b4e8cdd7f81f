"""Any gzip stream of RFC 1952, inflated in blocks of bounded size.

The stream may be made by any program. It may have several members, empty ones too, and each of the
header's optional fields. Each member is compared with its CRC-32 and its length. As with the
program `gzip`, zero bytes may follow the last member.

One stream is one long row of bytes, so one thread inflates it. Our own members (gzip_members.py)
can be inflated in parallel.
"""

import struct
import zlib
from collections.abc import Generator, Iterator
from typing import Final

from isal import igzip_lib, isal_zlib

from agent.errors import DataDamaged

MAX_INFLATED: Final = 1 << 20
"""The largest block that the inflater yields, in bytes."""

START: Final = b"\x1f\x8b\x08"
"""The bytes with which each member begins: ID1, ID2, CM=deflate."""

RESERVED_FLAGS: Final = 0xE0
"""The bits of the flags, byte 3 of a member, that are 0 in each member."""

_FLAGS_AT: Final = 3
_FIXED: Final = 10
_FHCRC: Final = 2
_FEXTRA: Final = 4
_TEXTS: Final = (8, 16)  # FNAME and FCOMMENT, which end with a zero byte
_SHORT: Final = struct.Struct("<H")
_TRAILER: Final = struct.Struct("<II")
# FEXTRA has at most 64 KiB. RFC 1952 has no limit for the file's name and the comment.
_MAX_HEADER: Final = 256 << 10
_HEADER_STEP: Final = 4 << 10
# The inflater copies what it is given and does not need. So it is given little at the begin of a
# member, which may be short, and more later.
_FIRST_STEP: Final = 4 << 10
_LAST_STEP: Final = 256 << 10


class Gunzip:
    """The inflater of one stream, which arrives in pieces of any size.

    All methods raise DataDamaged if the stream is not whole, or not gzip.
    """

    def __init__(self) -> None:
        self._members = 0
        self._part = bytearray()  # of a header or trailer
        self._content: _Content | None = None
        self._padding = False

    def feed(self, piece: memoryview | bytes) -> Iterator[bytes]:
        """Yield the content of the stream that `piece` completes, in blocks.

        A block has 1 to MAX_INFLATED bytes. Exhaust this iterator before you reuse `piece`.
        """
        view = memoryview(piece)
        while view:
            if self._padding:
                view = self._skip_padding(view)
            elif self._content is None:
                view = self._read_header(view)
            elif not self._content.ended:
                view = yield from self._content.inflate(view)
            else:
                view = self._read_trailer(view, self._content)

    def finish(self) -> None:
        """Check that the stream ends behind a member, and has at least one."""
        if self._part or self._content is not None:
            raise DataDamaged(f"the stream ends in the middle of gzip member {self._members}")
        if not self._members:
            raise DataDamaged("the stream is empty, and has no gzip member")

    def _read_header(self, view: memoryview) -> memoryview:
        """Read the next bytes of a member's header, and return those that follow."""
        before = len(self._part)
        if self._members and not before and not view[0]:
            self._padding = True
            return view
        self._part += view[:_HEADER_STEP]
        length = self._header_length()
        if not length:
            return view[_HEADER_STEP:]
        self._part.clear()
        self._content = _Content(self._members)
        return view[length - before :]

    def _header_length(self) -> int:
        try:
            length = header_length(self._part)
        except DataDamaged as error:
            if not self._members:
                raise DataDamaged(f"the stream is not gzip: {error}") from error
            where = f"the bytes behind gzip member {self._members - 1} are no gzip member"
            raise DataDamaged(f"{where}: {error}") from error
        return length

    def _read_trailer(self, view: memoryview, content: "_Content") -> memoryview:
        """Read the next bytes of a member's trailer, and return those that follow."""
        taken = view[: _TRAILER.size - len(self._part)]
        self._part += taken
        if len(self._part) == _TRAILER.size:
            content.check(*_TRAILER.unpack(self._part))
            self._part.clear()
            self._content = None
            self._members += 1
        return view[len(taken) :]

    def _skip_padding(self, view: memoryview) -> memoryview:
        taken = view[:MAX_INFLATED]
        if bytes(taken).strip(b"\0"):
            raise DataDamaged(
                f"the stream has other bytes behind gzip member {self._members - 1} and the zero "
                "bytes that follow it"
            )
        return view[len(taken) :]


class _Content:
    """The compressed content of one member."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._inflater = igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_DEFLATE)
        self._step = _FIRST_STEP
        self._checksum = 0
        self._size = 0

    @property
    def ended(self) -> bool:
        """Return True if the content is whole."""
        return self._inflater.eof

    def inflate(self, view: memoryview) -> Generator[bytes, None, memoryview]:
        """Yield the content of the next bytes in blocks, and return the bytes behind its end."""
        at = 0
        while at < len(view) and not self.ended:
            given = view[at : at + self._step]
            self._step = min(2 * self._step, _LAST_STEP)
            yield from self._blocks(given)
            at += len(given)
        return view[at - len(self._inflater.unused_data) :]

    def _blocks(self, given: memoryview | bytes) -> Iterator[bytes]:
        while True:
            block = self._decompress(given)
            if block:
                self._checksum = isal_zlib.crc32(block, self._checksum)
                self._size += len(block)
                yield block
            if self.ended or len(block) < MAX_INFLATED:
                return
            given = b""  # The inflater has a copy of the rest.

    def _decompress(self, given: memoryview | bytes) -> bytes:
        try:
            return self._inflater.decompress(given, MAX_INFLATED)
        except igzip_lib.IsalError as error:  # type: ignore[misc]  # the stub has it as an instance
            raise DataDamaged(
                f"gzip member {self._number} can't be inflated behind {self._size} bytes of its "
                f"content: {error}"
            ) from error

    def check(self, checksum: int, size: int) -> None:
        """Compare the content with the trailer of the member."""
        if self._checksum != checksum:
            raise DataDamaged(f"the content of gzip member {self._number} fails its CRC-32")
        if self._size & 0xFFFFFFFF != size:
            raise DataDamaged(
                f"the content of gzip member {self._number} has {self._size} bytes, but its "
                f"trailer says {size} (modulo 2^32)"
            )


def header_length(header: bytes | bytearray) -> int:
    """Return the length in bytes of the member's header that `header` begins with.

    Return 0 if more bytes are necessary to tell.

    Raises:
        DataDamaged: no member begins so.
    """
    if not header.startswith(START[: len(header)]):
        raise DataDamaged(f"it begins with {header[: len(START)].hex()}, not with {START.hex()}")
    if len(header) < _FIXED:
        return 0
    flags = header[_FLAGS_AT]
    if flags & RESERVED_FLAGS:
        raise DataDamaged(f"its header has the flags {flags:#04x}, which RFC 1952 reserves")
    end = _end_of_fields(header, flags)
    if end and flags & _FHCRC:
        end += _SHORT.size
        if end <= len(header):
            _check_header(header[: end - _SHORT.size], header[end - _SHORT.size : end])
    if 0 < end <= len(header):
        return end
    if len(header) > _MAX_HEADER:
        raise DataDamaged(f"its header has more than {_MAX_HEADER} bytes")
    return 0


def _end_of_fields(header: bytes | bytearray, flags: int) -> int:
    """Return the offset behind the optional fields, or 0 if more bytes are necessary to tell."""
    end = _FIXED
    if flags & _FEXTRA:
        if len(header) < end + _SHORT.size:
            return 0
        end += _SHORT.size + _SHORT.unpack_from(header, end)[0]
    for flag in _TEXTS:
        if flags & flag:
            end = header.find(b"\0", end) + 1
            if not end:
                return 0
    return end


def _check_header(header: bytes | bytearray, stored: bytes | bytearray) -> None:
    if _SHORT.pack(zlib.crc32(header) & 0xFFFF) != stored:
        raise DataDamaged("its header fails its own checksum")
