"""The work of the stages is counted: their bytes exactly, and their seconds."""

import threading

import pytest

from agent.model import STAGES, StageTotal
from agent.pipeline.buffers import BLOCK
from agent.pipeline.meter import Meter
from agent.pipeline.stages import StageWork, Tally
from tests.pipeline.path import MemorySource, SegmentSink, download, noise, upload


def test_the_bytes_that_leave_each_stage() -> None:
    data = noise(40 * BLOCK) + bytes(3 * BLOCK)
    up, down, sink = Meter(), Meter(), SegmentSink()
    upload(MemorySource(data), sink.send, meter=up)
    download(sink.joined(), lambda _block: None, meter=down)
    found = up.stages() | down.stages()
    assert {stage: total.bytes for stage, total in found.items()} == {
        "read": len(data),
        "deflate": up.compressed_bytes,
        "seal": up.stored_bytes,
        "send": up.stored_bytes,
        "fetch": up.stored_bytes,
        "open": up.compressed_bytes,
        "inflate": len(data),
        "write": len(data),
    }
    assert set(found) == set(STAGES)
    assert all(total.seconds > 0 for total in found.values())


def test_the_seconds_are_those_of_the_slow_stage() -> None:
    sink, meter = SegmentSink(), Meter()

    def send(number: int, parts: list[memoryview]) -> None:
        threading.Event().wait(0.05)
        sink.send(number, parts)

    segments = upload(MemorySource(noise(8 * BLOCK)), send, meter=meter)
    assert meter.stages()["send"].seconds >= 0.05 * segments
    assert meter.stages()["seal"].seconds < 0.05 * segments


def test_a_run_that_fails_counts_what_it_did() -> None:
    meter = Meter()

    def send(_number: int, _parts: list[memoryview]) -> None:
        raise OSError("the store is gone")

    with pytest.raises(OSError, match="gone"):
        upload(MemorySource(noise(30 * BLOCK)), send, meter=meter)
    stages = meter.stages()
    assert stages["read"].bytes >= BLOCK
    assert stages["deflate"].bytes > 0
    assert "send" not in stages


def test_a_tally_passes_on_its_sum_now_and_then() -> None:
    meter = Meter()
    with Tally(meter, "read") as tally:
        for _ in range(20):
            tally.add(0.5, 10)
        assert meter.stages() == {"read": StageTotal(8.0, 160)}
    assert meter.stages() == {"read": StageTotal(10.0, 200)}


def test_the_rest_of_a_run_is_kept_once() -> None:
    meter = Meter()
    work = StageWork(meter)
    meter.add_stage("read", 1.0, 10)
    with work.rest() as rest:
        assert rest == {"read": StageTotal(1.0, 10)}
        meter.add_stage("read", 0.5, 5)
    meter.add_stage("send", 0.25, 1)
    both = {"read": StageTotal(0.5, 5), "send": StageTotal(0.25, 1)}
    with pytest.raises(OSError, match="full"), work.rest():
        raise OSError("the disk is full")
    # what could not be kept comes again
    with work.rest() as rest:
        assert rest == both
    with work.rest() as rest:
        assert rest == {}
