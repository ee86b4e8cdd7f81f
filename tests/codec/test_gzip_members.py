"""Tests of gzip members.

Every gzip reader accepts them, our splitter separates them, and no damage passes.
"""

import gzip
import os
import struct
import subprocess
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings, strategies as st

from agent.codec.gzip_members import (
    MAX_BLOCK,
    MemberSplitter,
    deflate_member,
    inflate_member,
)
from agent.errors import DataDamaged, Internal
from tests.conftest import need

HEADER = 20


def forged(body: bytes, content: bytes, *, size: int | None = None) -> bytes:
    """Return a member of our format around any `body`.

    Its CRC is that of `content`. Its ISIZE is `size`, or the length of `content` if None.
    """
    good = deflate_member(b"")
    length = struct.pack("<I", HEADER + len(body) + 8)
    claimed = len(content) if size is None else size
    trailer = struct.pack("<II", zlib.crc32(content), claimed & 0xFFFFFFFF)
    return good[:16] + length + body + trailer


def raw_deflate(content: bytes) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflater.compress(content) + deflater.flush()


@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "block",
    [b"", b"x", b"row " * 50_000, os.urandom(1 << 20), os.urandom(65_536), bytes(MAX_BLOCK)],
    ids=["empty", "one", "rows", "noise-1m", "noise-64k", "zeros-4m"],
)
def test_round_trip_here_and_in_gzip(block: bytes, level: int) -> None:
    member = deflate_member(memoryview(block), level)
    assert inflate_member(member) == block
    assert gzip.decompress(member) == block
    assert member[:16] == b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff\x08\0BA\x04\0"
    assert struct.unpack_from("<I", member, 16) == (len(member),)


def test_largest_noise_block_stays_within_the_member_limit() -> None:
    member = deflate_member(os.urandom(MAX_BLOCK), 0)
    splitter = MemberSplitter()
    assert list(splitter.feed(memoryview(member))) == [member]


def test_block_above_the_limit_is_refused() -> None:
    with pytest.raises(Internal):
        deflate_member(bytes(MAX_BLOCK + 1))


def test_gunzip_reads_members_as_one_stream() -> None:
    need("gunzip")
    blocks = [b"first " * 1000, b"", os.urandom(3000), b"last"]
    stream = b"".join(map(deflate_member, blocks))
    done = subprocess.run(["gunzip", "-c"], input=stream, capture_output=True, check=True)
    assert done.stdout == b"".join(blocks)


@settings(max_examples=60, deadline=None)
@given(
    blocks=st.lists(st.binary(max_size=2000), min_size=1, max_size=6),
    cuts=st.lists(st.integers(1, 700), min_size=1, max_size=20),
)
def test_any_split_gives_the_same_members(blocks: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(deflate_member, blocks))
    splitter = MemberSplitter()
    members = []
    position = turn = 0
    while position < len(stream):
        piece = bytearray(stream[position : position + cuts[turn % len(cuts)]])
        members += list(splitter.feed(memoryview(piece)))
        position += len(piece)
        turn += 1
        piece[:] = b"\xee" * len(piece)  # A caller may reuse its buffer.
    splitter.finish()
    assert [inflate_member(member) for member in members] == blocks


def test_every_flipped_bit_that_means_something_is_refused() -> None:
    block = b"a row of a table, " * 9
    member = deflate_member(block)
    unused_bits = len(member) - 9  # Deflate ends inside the last byte before the trailer.
    for position in range(len(member)):
        for bit in range(8):
            bad = bytearray(member)
            bad[position] ^= 1 << bit
            try:
                got = inflate_member(bytes(bad))
            except DataDamaged:
                continue
            assert (position, got) == (unused_bits, block)


def test_every_truncation_and_any_addition_is_refused() -> None:
    member = deflate_member(b"a row of a table, " * 9)
    for length in range(len(member)):
        with pytest.raises(DataDamaged):
            inflate_member(member[:length])
    with pytest.raises(DataDamaged):
        inflate_member(member + b"\0")


def test_bytes_after_the_deflate_stream_are_refused() -> None:
    content = b"content"
    assert inflate_member(forged(raw_deflate(content), content)) == content
    with pytest.raises(DataDamaged, match="trailer"):
        inflate_member(forged(raw_deflate(content) + b"hidden", content))


def test_lying_size_does_not_blow_memory() -> None:
    bomb = raw_deflate(bytes(40 << 20))
    tracemalloc.start()
    for size in (0, 100):
        with pytest.raises(DataDamaged, match="trailer"):
            inflate_member(forged(bomb, b"", size=size))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    with pytest.raises(DataDamaged, match="limit"):
        inflate_member(forged(bomb, b"", size=40 << 20))


def test_limit_is_exact() -> None:
    member = deflate_member(b"12345")
    assert inflate_member(member, limit=5) == b"12345"
    with pytest.raises(DataDamaged, match="limit of 4"):
        inflate_member(member, limit=4)


def test_broken_deflate_bytes_are_refused() -> None:
    with pytest.raises(DataDamaged, match="inflated"):
        inflate_member(forged(b"\xff" * 30, b"x"))


class TestSplitterRefuses:
    def test_nothing(self) -> None:
        with pytest.raises(DataDamaged, match="no gzip member"):
            MemberSplitter().finish()

    def test_an_end_inside_a_member(self) -> None:
        stream = deflate_member(b"one") + deflate_member(b"two")
        first = len(deflate_member(b"one"))
        for length in range(1, len(stream)):
            splitter = MemberSplitter()
            list(splitter.feed(memoryview(stream[:length])))
            if length == first:
                splitter.finish()
                continue
            with pytest.raises(DataDamaged, match="middle"):
                splitter.finish()

    def test_another_gzip(self) -> None:
        with pytest.raises(DataDamaged, match="begins"):
            list(MemberSplitter().feed(memoryview(gzip.compress(b"x" * 99))))

    @pytest.mark.parametrize("length", [0, HEADER + 8, MAX_BLOCK * 2 + 1, 0xFFFFFFFF])
    def test_an_impossible_length(self, length: int) -> None:
        head = deflate_member(b"x")[:16] + struct.pack("<I", length)
        with pytest.raises(DataDamaged, match="impossible"):
            list(MemberSplitter().feed(memoryview(head)))
