"""Tests of the inflater of any gzip stream, against the program gzip and Python's own reader."""

import gzip
import io
import os
import random
import struct
import subprocess
import tracemalloc
import zlib
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings, strategies as st
from isal import igzip_lib, isal_zlib
from isal.igzip_lib import IgzipDecompressor as Inflater

from agent.codec.gunzip import MAX_INFLATED, Gunzip, header_length
from agent.codec.gzip_members import deflate_member
from agent.errors import DataDamaged
from tests.conftest import need

MIB = 1 << 20
FTEXT, FHCRC, FEXTRA, FNAME, FCOMMENT = 1, 2, 4, 8, 16


def blocks_of(stream: bytes, cuts: Sequence[int] = (MIB,)) -> list[bytes]:
    """Inflate pieces whose sizes are `cuts`, over and over."""
    gunzip, blocks, at, turn = Gunzip(), list[bytes](), 0, 0
    while at < len(stream):
        piece = bytearray(stream[at : at + cuts[turn % len(cuts)]])
        blocks += gunzip.feed(memoryview(piece))
        at += len(piece)
        turn += 1
        piece[:] = b"\xee" * len(piece)  # A caller may reuse its buffer.
    gunzip.finish()
    return blocks


def inflated(stream: bytes, cuts: Sequence[int] = (MIB,)) -> bytes:
    return b"".join(blocks_of(stream, cuts))


def raw_deflate(content: bytes, level: int = 6, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    deflater = zlib.compressobj(level, zlib.DEFLATED, -15, 9, strategy)
    return deflater.compress(content) + deflater.flush()


def member(
    content: bytes,
    *,
    flags: int = 0,
    extra: bytes = b"extra",
    name: bytes = b"name",
    comment: bytes = b"a comment",
    body: bytes | None = None,
    size: int | None = None,
) -> bytes:
    """Return a member with the optional fields of `flags`, around any compressed `body`."""
    header = bytes([0x1F, 0x8B, 8, flags, 1, 2, 3, 4, 2, 3])
    if flags & FEXTRA:
        header += struct.pack("<H", len(extra)) + extra
    if flags & FNAME:
        header += name + b"\0"
    if flags & FCOMMENT:
        header += comment + b"\0"
    if flags & FHCRC:
        header += struct.pack("<H", zlib.crc32(header) & 0xFFFF)
    body = raw_deflate(content) if body is None else body
    size = len(content) if size is None else size
    return header + body + struct.pack("<II", zlib.crc32(content), size & 0xFFFFFFFF)


def by_the_program(stream: bytes) -> tuple[int, bytes]:
    """Return the exit status and the output of `gzip -dc`."""
    need("gzip")
    done = subprocess.run(["gzip", "-dc"], input=stream, capture_output=True, check=False)
    return done.returncode, done.stdout


CONTENTS = {
    "empty": b"",
    "one": b"x",
    "rows": b"INSERT INTO t VALUES (1, 'abc');\n" * 70_000,
    "noise": random.Random(1).randbytes(2 * MIB),
    "zeros": bytes(5 * MIB),
    "a MiB less one": random.Random(2).randbytes(MIB - 1),
    "a MiB": random.Random(3).randbytes(MIB),
    "a MiB and one": bytes(MIB + 1),
}


@pytest.mark.parametrize("what", CONTENTS)
@pytest.mark.parametrize("level", ["-1", "-6", "-9"])
def test_what_gzip_compresses_is_inflated(what: str, level: str) -> None:
    need("gzip")
    content = CONTENTS[what]
    stream = subprocess.run(
        ["gzip", "-c", level], input=content, capture_output=True, check=True
    ).stdout
    for cuts in ((MIB,), (65_521,), (len(stream) - 1,), (len(stream) - 8,)):
        blocks = blocks_of(stream, cuts)
        assert b"".join(blocks) == content
        assert all(0 < len(block) <= MAX_INFLATED for block in blocks)


@pytest.mark.parametrize("what", CONTENTS)
@pytest.mark.parametrize("level", [0, 1, 3])
def test_our_own_members_are_inflated(what: str, level: int) -> None:
    content = CONTENTS[what]
    pieces = [content[at : at + MIB] for at in range(0, len(content), MIB)]
    stream = b"".join(deflate_member(piece, level) for piece in [*pieces, b""])
    assert inflated(stream) == content
    assert inflated(stream, (100_003,)) == content


_deflated = st.one_of(
    st.binary(max_size=400),
    st.builds(lambda part, times: part * times, st.binary(max_size=20), st.integers(0, 2000)),
)
_texts = st.binary(max_size=40).map(lambda text: text.replace(b"\0", b"-"))
_members = st.one_of(
    st.builds(lambda content, level: gzip.compress(content, level), _deflated, st.integers(0, 9)),
    st.builds(deflate_member, _deflated, st.integers(0, 3)),
    st.builds(
        lambda content, flags, extra, name, comment: member(
            content, flags=flags, extra=extra, name=name, comment=comment
        ),
        *(_deflated, st.integers(0, 31), st.binary(max_size=40), _texts, _texts),
    ),
    st.builds(
        lambda content, strategy: member(content, body=raw_deflate(content, 6, strategy)),
        *(_deflated, st.sampled_from([zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE])),
    ),
)


@settings(max_examples=150, deadline=None)
@given(
    members=st.lists(_members, min_size=1, max_size=6),
    cuts=st.lists(st.integers(1, 300), min_size=1, max_size=8),
    padding=st.integers(0, 30),
)
@example(members=[gzip.compress(b"")], cuts=[1], padding=1)
def test_any_stream_in_any_split_is_what_python_reads(
    members: list[bytes], cuts: list[int], padding: int
) -> None:
    stream = b"".join(members) + bytes(padding)
    assert inflated(stream, cuts) == gzip.decompress(stream)


@settings(max_examples=150, deadline=None)
@given(
    members=st.lists(_members, min_size=1, max_size=3),
    at=st.integers(0, 10_000),
    flip=st.integers(1, 255),
)
def test_changed_bytes_give_the_same_content_or_an_error(
    members: list[bytes], at: int, flip: int
) -> None:
    """A byte may mean nothing (a time, a name, an unused bit), but never other content."""
    good = b"".join(members)
    bad = bytearray(good)
    bad[at % len(bad)] ^= flip
    try:
        found = inflated(bytes(bad))
    except DataDamaged:
        return
    assert found == inflated(good)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.booleans())
def test_noise_gives_an_error_of_the_tree(noise: bytes, behind_a_header: bool) -> None:
    start = b"\x1f\x8b\x08\0\0\0\0\0\0\xff" if behind_a_header else b""
    with pytest.raises(DataDamaged):
        inflated(start + noise)


@pytest.mark.parametrize("flags", range(32))
def test_each_optional_field_is_read_as_gzip_does(flags: int) -> None:
    stream = member(b"one, ", flags=flags) + member(b"two", flags=31 - flags)
    assert by_the_program(stream) == (0, b"one, two")
    for cut in (1, 7, len(stream)):
        assert inflated(stream, (cut,)) == b"one, two"


def test_the_longest_extra_field_is_skipped() -> None:
    record = os.urandom(0xFFFF)
    stream = deflate_member(b"content") + member(b"", flags=FEXTRA | FHCRC, extra=record)
    assert inflated(stream) == inflated(stream, (4099,)) == b"content"
    assert header_length(member(b"", flags=FEXTRA, extra=record)) == 12 + 0xFFFF


def test_a_header_without_an_end_is_refused() -> None:
    gunzip = Gunzip()
    head = member(b"", flags=FNAME)[:10]
    assert list(gunzip.feed(head + b"n" * 200_000)) == []
    with pytest.raises(DataDamaged, match="more than 262144 bytes"):
        list(gunzip.feed(b"n" * 100_000))


@pytest.mark.parametrize("flag", [0x20, 0x40, 0x80])
def test_reserved_flags_are_refused(flag: int) -> None:
    with pytest.raises(DataDamaged, match="reserves"):
        inflated(member(b"content", flags=flag))


def test_another_method_and_another_magic_are_refused() -> None:
    good = member(b"content")
    for at in range(3):
        bad = bytearray(good)
        bad[at] ^= 1
        with pytest.raises(DataDamaged, match="the stream is not gzip: it begins with"):
            inflated(bytes(bad))


def test_zero_bytes_alone_are_no_stream() -> None:
    with pytest.raises(DataDamaged, match="the stream is not gzip"):
        inflated(bytes(100))


def test_a_wrong_checksum_of_the_header_is_refused() -> None:
    good = member(b"content", flags=FHCRC | FNAME)
    for at in (3, 4, 12, 15, 16):
        bad = bytearray(good)
        bad[at] ^= FTEXT
        with pytest.raises(DataDamaged, match="own checksum"):
            inflated(bytes(bad))


@pytest.mark.parametrize("at", [-8, -5])
def test_a_wrong_crc_is_refused(at: int) -> None:
    bad = bytearray(member(b"one") + member(b"two"))
    bad[at] ^= 1
    with pytest.raises(DataDamaged, match="gzip member 1 fails its CRC-32"):
        inflated(bytes(bad))


@pytest.mark.parametrize("size", [0, 6, 8, 7 + (1 << 31)])
def test_a_wrong_size_is_refused(size: int) -> None:
    with pytest.raises(DataDamaged, match=rf"has 7 bytes, but its trailer says {size}"):
        inflated(member(b"content", size=size))


def test_the_size_is_compared_modulo_4_gib() -> None:
    zeros, end = bytes(16 * MIB), b"the end"
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    # A full flush ends at a byte and forgets what was before. So it can be repeated.
    repeated = deflater.compress(zeros) + deflater.flush(zlib.Z_FULL_FLUSH)
    last = deflater.compress(end) + deflater.flush()
    checksum = 0
    for _ in range(256):
        checksum = isal_zlib.crc32(zeros, checksum)
    trailer = struct.pack("<II", isal_zlib.crc32(end, checksum), len(end))
    gunzip, total = Gunzip(), 0
    for piece in (member(b"")[:10], *[repeated] * 256, last, trailer):
        total += sum(map(len, gunzip.feed(piece)))
    gunzip.finish()
    assert total == (1 << 32) + len(end)


def test_broken_deflate_bytes_are_refused() -> None:
    with pytest.raises(DataDamaged, match="gzip member 0 can't be inflated behind 0 bytes"):
        inflated(member(b"", body=b"\xff" * 30))


def test_a_reference_before_the_begin_is_refused() -> None:
    """A second member must not see the content of the first."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=b"the content of the first")
    body = deflater.compress(b"the content of the first") + deflater.flush()
    stream = member(b"the content of the first") + member(b"the content of the first", body=body)
    with pytest.raises(DataDamaged, match="gzip member 1 can't be inflated"):
        inflated(stream)


def test_every_truncation_is_refused() -> None:
    first = member(b"one", flags=31)
    stream = first + deflate_member(b"two " * 20)
    for length in range(len(stream)):
        if length == len(first):
            assert inflated(stream[:length]) == b"one"
            continue
        why = "in the middle of gzip member [01]" if length else "is empty"
        with pytest.raises(DataDamaged, match=why):
            inflated(stream[:length])


def test_zero_bytes_at_the_end_are_ignored_as_gzip_does() -> None:
    stream = member(b"content")
    for padding in (1, 8, 10_000, 3 * MIB):
        padded = stream + bytes(padding)
        assert inflated(padded) == b"content"
    assert by_the_program(padded) == (0, b"content")


@pytest.mark.parametrize(
    "garbage",
    [b"x", b"XBSTCK01", b"\x1f\x8b\x09", b"\0" + member(b"hidden"), bytes(2 * MIB) + b"x"],
    ids=["one", "xbstream", "method", "a member behind a zero", "a byte behind zeros"],
)
def test_other_bytes_at_the_end_are_refused(garbage: bytes) -> None:
    stream = member(b"content") + garbage
    status, found = by_the_program(stream)
    assert status != 0
    assert found == b"content"
    with pytest.raises(DataDamaged, match="behind gzip member 0"):
        inflated(stream)


def test_a_bomb_takes_no_more_memory_than_a_few_blocks() -> None:
    inside = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = b"".join(inside.compress(bytes(MIB)) for _ in range(200)) + inside.flush()
    bomb = io.BytesIO(member(b"")[:10] + body)
    gunzip, total = Gunzip(), 0
    tracemalloc.start()
    for block in gunzip.feed(bomb.getbuffer()):
        assert len(block) <= MAX_INFLATED
        total += len(block)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 200 * MIB
    assert peak < 6 * MIB


def test_a_short_member_costs_no_copy_of_all_that_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    given = list[int]()

    class Counting:
        def __init__(self, flag: int) -> None:
            self._inflater = Inflater(flag)

        def decompress(self, data: bytes, limit: int) -> bytes:
            given.append(len(data))
            return self._inflater.decompress(data, limit)

        def __getattr__(self, name: str) -> object:
            return getattr(self._inflater, name)

    monkeypatch.setattr(igzip_lib, "IgzipDecompressor", Counting)
    assert inflated(member(b"x") * 2000) == b"x" * 2000
    assert len(given) >= 2000
    assert sum(given) < 2000 * 8 * 1024
