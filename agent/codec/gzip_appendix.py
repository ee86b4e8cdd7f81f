"""Bytes that travel behind a gzip stream and that every gzip reader skips.

They are the extra fields (FEXTRA, RFC 1952 section 2.3.1.1) of empty gzip members. `gunzip` reads
such members as no bytes. One member takes at most _PIECE bytes, so longer content has several. The
last member is the locator, which has always the same length and states the length of the whole
appendix. So a reader finds the appendix from the end of an object.

    stream | member with 'B' 'R' piece 1 | ... | member with 'B' 'R' piece n | locator with 'B' 'L'

docs/format.md describes every byte.
"""

import struct
from typing import Final

from agent.errors import DataDamaged

# The header of a member with an extra field: ID1 ID2 CM FLG=FEXTRA MTIME XFL OS=unknown.
_HEAD: Final = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff"
# An empty block of deflate, then CRC-32 and ISIZE of no bytes.
_TAIL: Final = b"\x03\0" + bytes(8)
_SUBFIELD: Final = struct.Struct("<H2sH")  # XLEN, then the id and the length of the only subfield
_RECORD: Final = b"BR"
_LOCATOR: Final = b"BL"
_LENGTH: Final = struct.Struct("<Q")
# An extra field has at most 65,535 bytes, of which a subfield's head takes 4.
_PIECE: Final = 60_000
_OVERHEAD: Final = len(_HEAD) + _SUBFIELD.size + len(_TAIL)

LOCATOR_BYTES: Final = _OVERHEAD + _LENGTH.size
"""The length in bytes of the locator, which ends each appendix."""


def encode(content: bytes) -> bytes:
    """Return the appendix that carries `content`, which must not be empty."""
    pieces = [content[at : at + _PIECE] for at in range(0, len(content), _PIECE)]
    members = [_member(_RECORD, piece) for piece in pieces]
    whole = sum(map(len, members)) + LOCATOR_BYTES
    return b"".join((*members, _member(_LOCATOR, _LENGTH.pack(whole))))


def appendix_bytes(locator: bytes) -> int | None:
    """Return the length in bytes of the appendix that `locator` ends.

    `locator` is the last LOCATOR_BYTES of an object. Return None if there is no appendix.
    """
    found = _content(locator, _LOCATOR)
    if found is None or len(found) != _LENGTH.size:
        return None
    return int(_LENGTH.unpack(found)[0])


def decode(appendix: bytes) -> bytes:
    """Return the content of a whole appendix.

    Raises:
        DataDamaged: it isn't one.
    """
    content = bytearray()
    at, end = 0, len(appendix) - LOCATOR_BYTES
    if end <= 0 or appendix_bytes(appendix[end:]) != len(appendix):
        raise DataDamaged("the end of a backup's object states a wrong length")
    while at < end:
        length = _OVERHEAD + _piece_bytes(appendix, at)
        piece = _content(appendix[at : min(at + length, end)], _RECORD)
        if not piece:
            raise DataDamaged(f"the end of a backup's object has no such member at byte {at}")
        content += piece
        at += length
    return bytes(content)


def _member(name: bytes, piece: bytes) -> bytes:
    return _HEAD + _SUBFIELD.pack(len(piece) + 4, name, len(piece)) + piece + _TAIL


def _piece_bytes(data: bytes, at: int) -> int:
    try:
        return int(_SUBFIELD.unpack_from(data, at + len(_HEAD))[2])
    except struct.error:
        return 0


def _content(member: bytes, name: bytes) -> bytes | None:
    """Return the content of one whole member, or None if it isn't such a member."""
    piece = member[_OVERHEAD - len(_TAIL) : -len(_TAIL)]
    return piece if member == _member(name, piece) else None
