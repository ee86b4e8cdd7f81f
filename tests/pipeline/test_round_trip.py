"""Tests that a download returns the uploaded data, for any size and any order of threads."""

import gzip

import pytest

from agent.codec.aead import HEADER, SLAB, TAG, OpeningStream, room
from agent.errors import DataDamaged
from agent.pipeline.buffers import BLOCK, Plan
from agent.pipeline.meter import Meter
from tests.pipeline.path import (
    BACKUP_ID,
    KEY,
    PLAN,
    LockStep,
    MemorySource,
    SegmentSink,
    data_with_members_of,
    download,
    fetch_from,
    noise,
    opened,
    stored,
    upload,
)

pytestmark = pytest.mark.timeout(60)

SEGMENT = PLAN.segment_bytes


def _unsealed(segments: list[bytes]) -> bytes:
    """Return the gzip stream, opened slab by slab without the data path."""
    whole = bytearray(b"".join(segments))
    slabs = [memoryview(whole)[at : at + SLAB] for at in range(0, len(whole), SLAB)]
    opening = OpeningStream(KEY, BACKUP_ID)
    return b"".join(
        opening.open(slab, index, index == len(slabs) - 1) for index, slab in enumerate(slabs)
    )


@pytest.mark.parametrize("size", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 7 * BLOCK + 12345])
@pytest.mark.parametrize("compressible", [False, True])
def test_round_trip(size: int, compressible: bool) -> None:
    data = bytes(size) if compressible else noise(size)
    segments = stored(data)
    assert opened(segments) == data
    assert gzip.decompress(_unsealed(segments)) == data


def test_an_empty_stream_is_never_taken_for_a_good_one() -> None:
    segments = stored(b"")
    assert [len(segment) for segment in segments] == [HEADER + TAG]
    with pytest.raises(DataDamaged, match="no gzip member"):
        opened(segments)


@pytest.mark.parametrize("slabs", [1, 2, 4])
@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_the_gzip_stream_ends_around_a_slab_boundary(slabs: int, beyond: int) -> None:
    data = data_with_members_of(sum(room(index) for index in range(slabs)) + beyond)
    segments = stored(data)
    extra = {-1: -1, 0: 0, 1: TAG + 1}[beyond]
    assert sum(len(segment) for segment in segments) == slabs * SLAB + extra
    assert all(len(segment) == SEGMENT for segment in segments[:-1])
    assert 0 < len(segments[-1]) <= SEGMENT
    assert opened(segments) == data


@pytest.mark.parametrize(
    "plan",
    [
        Plan(cores=1, connections=1, slots=1, slabs_per_segment=1, segments_in_memory=1),
        Plan(cores=1, connections=1, slots=4, slabs_per_segment=3, segments_in_memory=2),
        Plan(cores=3, connections=5, slots=8, slabs_per_segment=1, segments_in_memory=11),
    ],
)
def test_any_plan_stores_the_same_plain_stream(plan: Plan) -> None:
    data = noise(9 * BLOCK + 77) + bytes(5 * BLOCK)
    segments = stored(data, plan=plan)
    assert all(len(segment) == plan.segment_bytes for segment in segments[:-1])
    assert opened(segments, plan=plan) == data


@pytest.mark.parametrize("seed", range(3))
def test_segments_may_be_sent_and_fetched_in_any_order(seed: int) -> None:
    data = noise(18 * BLOCK)
    total = len(stored(data))
    sending, fetching = (LockStep(PLAN.connections, total, seed) for _ in range(2))
    sent, sink = SegmentSink(), bytearray()

    def send(number: int, parts: list[memoryview]) -> None:
        sending.passing(number)
        sent.send(number, parts)

    upload(MemorySource(data), send)
    copy = fetch_from(sent.segments)

    def fetch(number: int, buffer: memoryview) -> None:
        fetching.passing(number)
        copy(number, buffer)

    download(sent.joined(), sink.extend, fetch=fetch)
    assert sink == data
    for order in (sending.passed, fetching.passed):
        assert sorted(order) == list(range(total))
        assert order != sorted(order)


def test_short_reads_of_the_source_are_kept_in_order() -> None:
    data = noise(3 * BLOCK)

    class Dripping(MemorySource):
        def read_into(self, buffer: memoryview) -> int:
            return super().read_into(buffer[: 1 + self.reads % 3 * 40_000])

    sink = SegmentSink()
    upload(Dripping(data), sink.send)
    assert opened(sink.joined()) == data


def test_the_meter_counts_both_directions_the_same() -> None:
    data = noise(5 * BLOCK) + bytes(5 * BLOCK)
    up, down, sink = Meter(), Meter(), SegmentSink()
    upload(MemorySource(data), sink.send, meter=up)
    download(sink.joined(), lambda _block: None, meter=down)
    assert up.raw_bytes == down.raw_bytes == len(data)
    assert up.compressed_bytes == down.compressed_bytes == len(_unsealed(sink.joined()))
    assert up.stored_bytes == down.stored_bytes == sum(map(len, sink.joined()))
    assert up.measured().bottleneck in ("engine", "store", "deflate")
