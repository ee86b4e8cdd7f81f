"""Tests that the data path stays within the memory of its plan with any data."""

import gc
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from agent.codec.aead import SLAB
from agent.errors import ConfigInvalid
from agent.pipeline.buffers import BLOCK, MIB, Plan, Pool, plan
from agent.stop import Stop
from tests.pipeline.path import SegmentSink, download, fetch_from, noise, stored, upload

pytestmark = pytest.mark.timeout(60)

SMALL = Plan(cores=2, connections=2, slots=6, slabs_per_segment=2, segments_in_memory=5)
# Deflating joins a member from its parts, so for a moment each core holds the member twice.
SLACK = SMALL.cores * BLOCK + 2 * MIB


# It is made before the memory is measured.
_NOISE = noise(BLOCK)


class Repeated:
    """A source of `count` times one block of noise."""

    def __init__(self, count: int) -> None:
        self._left = count

    def read_into(self, buffer: memoryview) -> int:
        if not self._left:
            return 0
        self._left -= 1
        buffer[:] = _NOISE
        return len(buffer)


@pytest.fixture
def peak() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the peak of allocated bytes since the test began."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    yield lambda: tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()


def test_an_upload_of_300_mb_stays_within_its_plan(peak: Callable[[], int]) -> None:
    counted = [0]

    def send(_number: int, parts: list[memoryview]) -> None:
        counted[0] += sum(len(part) for part in parts)

    upload(Repeated(286), send, plan=SMALL)
    assert counted[0] > 286 * BLOCK
    assert SMALL.segment_bytes < peak() < SMALL.memory_bytes + SLACK


def test_a_download_of_100_mb_stays_within_its_plan(peak: Callable[[], int]) -> None:
    sink = SegmentSink()
    upload(Repeated(95), sink.send, plan=SMALL)
    segments = sink.joined()
    held = sum(map(len, segments))
    sink.segments.clear()
    gc.collect()
    tracemalloc.reset_peak()
    written = [0]

    def write(block: bytes) -> None:
        written[0] += len(block)

    download(segments, write, fetch=fetch_from(segments), plan=SMALL)
    assert written[0] == 95 * BLOCK
    assert peak() - held < SMALL.memory_bytes + SLACK


def test_a_short_download_takes_no_more_than_its_segments(peak: Callable[[], int]) -> None:
    segments = stored(b"x" * 1000)
    gc.collect()
    tracemalloc.reset_peak()
    download(segments, lambda _block: None, plan=SMALL._replace(segments_in_memory=1000))
    assert peak() < MIB


def test_a_pool_makes_each_buffer_when_first_needed_and_then_reuses_it() -> None:
    pool = Pool(2, 100, Stop())
    first = pool.take()
    pool.give(first)
    assert pool.take() is first
    second = pool.take()
    assert second is not first
    assert len(second) == 100


def test_a_plan_divides_the_default_budget() -> None:
    found = plan(128 * MIB, 16 * MIB, connections=4, cores=2)
    assert found == Plan(
        cores=2, connections=4, slots=6, slabs_per_segment=16, segments_in_memory=7
    )
    assert found.segment_bytes == 16 * MIB


@pytest.mark.parametrize("memory_mib", [16, 24, 64, 128, 512, 4096])
@pytest.mark.parametrize("cores", [1, 2, 16, 128, 1024])
@pytest.mark.parametrize("connections", [1, 4, 64])
def test_a_plan_keeps_its_budget_on_any_machine(
    memory_mib: int, cores: int, connections: int
) -> None:
    found = plan(memory_mib * MIB, 2 * MIB, connections, cores)
    assert found.memory_bytes <= memory_mib * MIB
    assert 1 <= found.cores <= cores
    assert 1 <= found.connections <= connections
    assert found.connections < found.segments_in_memory
    assert found.slots >= found.cores


def test_many_cores_leave_room_for_two_segments() -> None:
    found = plan(128 * MIB, 57 * MIB, connections=64, cores=64)
    assert found.segments_in_memory == 2
    assert found.cores >= 1
    assert found.memory_bytes <= 128 * MIB


def test_a_plan_rounds_segments_down_to_whole_slabs() -> None:
    assert plan(64 * MIB, 3 * SLAB + 5, 2, 1).slabs_per_segment == 3
    assert plan(64 * MIB, 5, 2, 1).slabs_per_segment == 1


@pytest.mark.parametrize(("memory_mib", "segment_mib"), [(16, 16), (128, 128), (1, 1)])
def test_a_budget_that_does_not_hold_two_segments_is_refused(
    memory_mib: int, segment_mib: int
) -> None:
    with pytest.raises(ConfigInvalid, match=rf"memory_bytes = {memory_mib * MIB} .*{segment_mib}"):
        plan(memory_mib * MIB, segment_mib * MIB, connections=4, cores=2)
