"""Functions that build xbstreams chunk by chunk, as the engines write them."""

import struct
import zlib
from collections.abc import Sequence


def head(kind: bytes, path: bytes, flags: int = 0) -> bytes:
    return b"XBSTCK01" + bytes([flags]) + kind + struct.pack("<I", len(path)) + path


def payload(path: bytes, content: bytes, offset: int = 0, flags: int = 0) -> bytes:
    numbers = struct.pack("<QQI", len(content), offset, zlib.crc32(content))
    return head(b"P", path, flags) + numbers + content


def end(path: bytes) -> bytes:
    return head(b"E", path)


def whole(path: bytes, content: bytes, flags: int = 0) -> bytes:
    return payload(path, content, 0, flags) + end(path)


def rename(path: bytes, target: bytes) -> bytes:
    return head(b"R", path) + struct.pack("<I", len(target)) + target


def remove(path: bytes) -> bytes:
    return head(b"D", path)


def seek(path: bytes, offset: int) -> bytes:
    return head(b"S", path) + struct.pack("<Q", offset)


def sparse(
    path: bytes, entries: Sequence[tuple[int, int]], content: bytes, offset: int = 0
) -> bytes:
    table = b"".join(struct.pack("<II", *entry) for entry in entries)
    crc = zlib.crc32(content, zlib.crc32(table))
    numbers = struct.pack("<IQQI", len(entries), len(content), offset, crc)
    return head(b"S", path) + numbers + table + content
