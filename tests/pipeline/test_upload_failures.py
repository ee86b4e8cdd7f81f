"""Tests that a failure of any stage ends an upload and is raised as its cause."""

import os
import threading
import time
from collections.abc import Callable

import pytest

from agent.codec.aead import SealingStream
from agent.errors import (
    AgentError,
    Cancelled,
    DataDamaged,
    EngineFailed,
    Internal,
    StoreFull,
)
from agent.pipeline import upload as upload_module
from agent.pipeline.buffers import BLOCK, Plan
from agent.stop import Stop
from tests.pipeline.path import (
    BACKUP_ID,
    DEADLINE,
    KEY,
    PLAN,
    MemorySource,
    SegmentSink,
    noise,
    opened,
    upload,
)

pytestmark = pytest.mark.timeout(60)

BIG = noise(30 * BLOCK)


class PipeSource:
    """A source that reads a pipe as ProvedStream reads an engine.

    An end of the pipe is an error, because it was not proved.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        self.blocked = threading.Event()
        self.closed = threading.Event()

    def feed(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._writer, data) :]
        self.blocked.set()

    def close_writer(self) -> None:
        if not self.closed.is_set():
            self.closed.set()
            os.close(self._writer)

    def close(self) -> None:
        self.close_writer()
        os.close(self._reader)

    def read_into(self, buffer: memoryview) -> int:
        count = os.readv(self._reader, [buffer])
        if not count:
            raise EngineFailed("the engine ended with signal 2")
        return count


def _raising(error: BaseException, at: int) -> Callable[[int], None]:
    def on(number: int) -> None:
        if number == at:
            raise error

    return on


@pytest.mark.parametrize("at", [0, 1, 17])
def test_the_source_fails(at: int) -> None:
    error = EngineFailed("the server was killed")
    sink = SegmentSink()
    with pytest.raises(EngineFailed) as raised:
        upload(MemorySource(BIG, _raising(error, at)), sink.send)
    assert raised.value is error
    # The stored bytes are not a whole stream, because its last slab was never sealed.
    with pytest.raises(DataDamaged):
        opened(sink.joined() or [b"nothing was stored"])


def test_a_source_that_fails_at_its_very_end_leaves_no_whole_stream() -> None:
    data = noise(5 * BLOCK)
    sink = SegmentSink()
    with pytest.raises(EngineFailed):
        upload(MemorySource(data, _raising(EngineFailed("exit status 1"), 5)), sink.send)
    assert 2 not in sink.segments
    with pytest.raises(DataDamaged):
        opened(sink.joined() or [b"nothing was stored"])


@pytest.mark.parametrize("at", [0, 3, 14])
def test_a_send_fails(at: int) -> None:
    error = StoreFull("quota exceeded")
    sink = SegmentSink()
    source = MemorySource(BIG)

    def send(number: int, parts: list[memoryview]) -> None:
        _raising(error, at)(number)
        sink.send(number, parts)

    with pytest.raises(StoreFull) as raised:
        upload(source, send)
    assert raised.value is error
    assert at not in sink.segments
    # Only the segments that were already in memory were sent after it.
    assert max(sink.segments, default=0) <= at + PLAN.segments_in_memory
    assert source.reads <= (at + 1 + PLAN.segments_in_memory) * 2 + PLAN.slots + 1


def test_the_last_send_fails() -> None:
    error = StoreFull("quota exceeded")
    with pytest.raises(StoreFull) as raised:
        upload(MemorySource(noise(BLOCK)), lambda number, _parts: _raising(error, 0)(number))
    assert raised.value is error


def test_deflate_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    error = MemoryError()
    calls: list[int] = []

    def deflate(block: memoryview, level: int) -> bytes:
        calls.append(level)
        if len(calls) == 4:
            raise error
        return bytes(block)

    monkeypatch.setattr(upload_module, "deflate_member", deflate)
    with pytest.raises(MemoryError) as raised:
        upload(MemorySource(BIG), SegmentSink().send)
    assert raised.value is error


def test_sealing_fails() -> None:
    class Broken(SealingStream):
        def seal(self, slab: memoryview, index: int, length: int, last: bool) -> int:
            if index == 3:
                raise Internal("out of nonces")
            return super().seal(slab, index, length, last)

    with pytest.raises(Internal, match="out of nonces"):
        upload(MemorySource(BIG), SegmentSink().send, sealing=Broken(KEY, BACKUP_ID))


def test_a_failed_send_releases_a_source_that_blocks_and_stays_the_cause() -> None:
    """The stop ends the engine. This end is a consequence and is not reported."""
    source, stop = PipeSource(), Stop()
    error = StoreFull("quota exceeded")

    def send(_number: int, _parts: list[memoryview]) -> None:
        assert source.blocked.wait(DEADLINE)
        raise error

    feeder = threading.Thread(target=source.feed, args=(noise(4 * BLOCK),))
    feeder.start()
    try:
        with stop.on_stop(source.close_writer), pytest.raises(StoreFull) as raised:
            upload(source, send, stop=stop)
        assert raised.value is error
        assert source.closed.is_set()
    finally:
        feeder.join()
        source.close()


class Endless:
    """A source of noise without an end."""

    def __init__(self) -> None:
        self._block = noise(BLOCK)
        self.reads = 0

    def read_into(self, buffer: memoryview) -> int:
        self.reads += 1
        buffer[:] = self._block
        return len(buffer)


def _stop_in_the_middle(
    reached: threading.Event, run: Callable[[Stop], object], error: AgentError
) -> float:
    """Request a stop when `reached` is set. Return the seconds until `run` ends.

    Check that `run` raises `error`.
    """
    stop = Stop()
    requested: list[float] = []

    def request() -> None:
        reached.wait(DEADLINE)
        requested.append(time.monotonic())
        stop.request(error)

    requester = threading.Thread(target=request)
    requester.start()
    try:
        with pytest.raises(type(error)) as raised:
            run(stop)
    finally:
        requester.join()
    assert raised.value is error
    return time.monotonic() - requested[0]


def test_a_stop_from_outside_ends_an_upload() -> None:
    reached = threading.Event()

    def send(number: int, _parts: list[memoryview]) -> None:
        if number == 5:
            reached.set()

    seconds = _stop_in_the_middle(
        reached, lambda stop: upload(Endless(), send, stop=stop), Cancelled("by the operator")
    )
    assert seconds < 2


def test_a_stop_ends_an_upload_that_waits_for_its_pace() -> None:
    reached = threading.Event()

    class Noticed(Endless):
        def read_into(self, buffer: memoryview) -> int:
            reached.set()
            return super().read_into(buffer)

    def run(stop: Stop) -> int:
        return upload(Noticed(), SegmentSink().send, stop=stop, bytes_per_second=1)

    assert _stop_in_the_middle(reached, run, Cancelled("by the operator")) < 2


def test_a_stop_before_the_start_reads_and_sends_nothing() -> None:
    stop, source, sink = Stop(), MemorySource(BIG), SegmentSink()
    stop.request(Cancelled("before it began"))
    with pytest.raises(Cancelled):
        upload(source, sink.send, stop=stop)
    assert source.reads == 0
    assert not sink.segments


def test_with_all_sends_stuck_no_more_is_read_than_the_memory_holds() -> None:
    plan = Plan(cores=2, connections=2, slots=6, slabs_per_segment=2, segments_in_memory=3)
    slabs = plan.slabs_per_segment * plan.segments_in_memory
    full, beyond, gate = threading.Event(), threading.Event(), threading.Event()

    def count(number: int) -> None:
        if number == slabs:
            full.set()
        if number > slabs + plan.slots and not gate.is_set():
            beyond.set()

    def open_the_gate() -> None:
        full.wait(DEADLINE)
        beyond.wait(0.3)
        gate.set()

    def send(_number: int, _parts: list[memoryview]) -> None:
        assert gate.wait(DEADLINE)

    keeper = threading.Thread(target=open_the_gate)
    keeper.start()
    upload(MemorySource(BIG, count), send, plan=plan)
    keeper.join()
    assert full.is_set()
    assert not beyond.is_set()
