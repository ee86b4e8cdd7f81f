"""Tests of the data path without encryption, which stores the gzip stream itself."""

import gzip

import pytest

from agent.codec.aead import SLAB
from agent.codec.plain import PlainOpening, PlainSealing
from agent.errors import DataDamaged, Internal
from agent.pipeline.buffers import BLOCK
from tests.pipeline.path import (
    PLAN,
    MemorySource,
    SegmentSink,
    data_with_members_of,
    download,
    noise,
    upload,
)

pytestmark = pytest.mark.timeout(60)


def _stored(data: bytes) -> list[bytes]:
    sink = SegmentSink()
    assert upload(MemorySource(data), sink.send, sealing=PlainSealing()) == len(sink.segments)
    return sink.joined()


def _opened(segments: list[bytes]) -> bytes:
    sink = bytearray()
    download(segments, sink.extend, opening=PlainOpening())
    return bytes(sink)


@pytest.mark.parametrize("size", [1, BLOCK, 7 * BLOCK + 12345])
def test_round_trip(size: int) -> None:
    segments = _stored(noise(size))
    assert gzip.decompress(b"".join(segments)) == noise(size)
    assert {len(segment) for segment in segments[:-1]} <= {PLAN.segment_bytes}
    assert _opened(segments) == noise(size)


@pytest.mark.parametrize("slabs", [1, 2, 3])
@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_the_stream_ends_around_a_slab_boundary(slabs: int, beyond: int) -> None:
    data = data_with_members_of(slabs * SLAB + beyond)
    segments = _stored(data)
    assert sum(len(segment) for segment in segments) == slabs * SLAB + beyond
    assert _opened(segments) == data


def test_what_the_members_themselves_tell() -> None:
    segments = _stored(noise(5 * BLOCK))
    flipped = bytearray(segments[1])
    flipped[SLAB // 2] ^= 1
    short = segments[0][:-1]
    for bad in (
        [segments[0], bytes(flipped), *segments[2:]],
        [short, *segments[1:]],
        segments[:-1],
    ):
        with pytest.raises(DataDamaged):
            _opened(bad)


def test_an_empty_stream_is_never_taken_for_a_good_one() -> None:
    with pytest.raises(DataDamaged, match="no gzip member"):
        _opened(_stored(b""))


def test_only_the_last_slab_may_be_short() -> None:
    slab = memoryview(bytearray(SLAB))
    assert PlainSealing().seal(slab, 3, SLAB, False) == SLAB
    assert PlainSealing().seal(slab, 3, 5, True) == 5
    for length, last in ((SLAB - 1, False), (-1, True), (SLAB + 1, True)):
        with pytest.raises(Internal):
            PlainSealing().seal(slab, 3, length, last)
    assert PlainOpening().open(slab[:5], 3, True) == bytes(5)
    with pytest.raises(DataDamaged, match="MiB 3"):
        PlainOpening().open(slab[:5], 3, False)
