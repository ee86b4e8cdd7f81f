"""Tests that a failure of any stage ends a download, and that no damage reaches the sink."""

import itertools
import threading
import time
from collections.abc import Callable
from functools import lru_cache

import pytest

from agent.codec.aead import SLAB
from agent.codec.gzip_members import inflate_member
from agent.errors import AgentError, Cancelled, DataDamaged, ExtractFailed, StoreUnreachable
from agent.pipeline import download as download_module
from agent.pipeline.buffers import BLOCK
from agent.pipeline.meter import Meter
from agent.stop import Stop
from tests.pipeline.path import (
    DEADLINE,
    PLAN,
    download,
    fetch_from,
    noise,
    stored,
)

pytestmark = pytest.mark.timeout(60)

DATA = noise(13 * BLOCK)
SEGMENT = PLAN.segment_bytes


@lru_cache(maxsize=1)
def _good() -> tuple[bytes, ...]:
    segments = tuple(stored(DATA))
    assert len(segments) == 7
    return segments


def _flipped(segments: list[bytes], number: int, at: int) -> list[bytes]:
    broken = bytearray(segments[number])
    broken[at] ^= 1
    return [*segments[:number], bytes(broken), *segments[number + 1 :]]


def _swapped(segments: list[bytes]) -> list[bytes]:
    return [segments[0], segments[2], segments[1], *segments[3:]]


# Each entry changes the segments, and gives the bytes of ciphertext before the damage.
DAMAGE: dict[str, tuple[Callable[[list[bytes]], list[bytes]], int]] = {
    "a bit of the header": (lambda good: _flipped(good, 0, 20), 0),
    "a bit of the first slab": (lambda good: _flipped(good, 0, 1000), 0),
    "the last bit of a segment": (lambda good: _flipped(good, 1, -1), SEGMENT + SLAB),
    "a bit of the last segment": (lambda good: _flipped(good, 6, 0), 6 * SEGMENT),
    "two segments swapped": (_swapped, SEGMENT),
    "one segment twice": (lambda good: [*good[:3], good[2], *good[4:]], 3 * SEGMENT),
    "the last segment cut": (lambda good: [*good[:-1], good[-1][:-1]], 6 * SEGMENT),
    "the last segment cut by a slab": (lambda good: [*good[:-1], good[-1][:SLAB]], 6 * SEGMENT),
    "the last segment missing": (lambda good: good[:-1], 6 * SEGMENT - SLAB),
    "an inner segment missing": (lambda good: [*good[:2], *good[3:]], 2 * SEGMENT),
    "an inner segment cut": (lambda good: [good[0], good[1][:SLAB], *good[2:]], 2 * SEGMENT),
    "an empty segment": (lambda good: [good[0], b"", *good[2:]], SEGMENT),
    "only the first slab": (lambda good: [good[0][:SLAB]], 0),
    "no segment at all": (lambda _good: [], 0),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_nothing_damaged_reaches_the_sink(what: str) -> None:
    change, good_bytes = DAMAGE[what]
    sink = bytearray()
    with pytest.raises(DataDamaged):
        download(change(list(_good())), sink.extend)
    assert DATA.startswith(sink)
    # Noise grows a little when it is deflated, so its ciphertext is longer than the noise.
    assert len(sink) <= good_bytes


def test_a_member_whose_content_is_wrong_stops_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = bytearray()
    numbers = itertools.count()

    def failing(member: bytes) -> bytes:
        if next(numbers) == 4:
            raise DataDamaged("a gzip member's content fails its CRC-32")
        return inflate_member(member)

    monkeypatch.setattr(download_module, "inflate_member", failing)
    with pytest.raises(DataDamaged, match="CRC-32"):
        download(_good(), sink.extend)
    assert DATA.startswith(sink)
    assert len(sink) <= 5 * BLOCK


@pytest.mark.parametrize("at", [0, 2, 6])
def test_a_fetch_fails(at: int) -> None:
    error = StoreUnreachable("connection reset")
    sink = bytearray()
    copy = fetch_from(_good())

    def fetch(number: int, buffer: memoryview) -> None:
        if number == at:
            raise error
        copy(number, buffer)

    with pytest.raises(StoreUnreachable) as raised:
        download(_good(), sink.extend, fetch=fetch)
    assert raised.value is error
    assert DATA.startswith(sink)
    assert len(sink) <= at * SEGMENT


@pytest.mark.parametrize("at", [0, 1, 12])
def test_the_sink_fails(at: int) -> None:
    error = ExtractFailed("no space left on device")
    written: list[bytes] = []

    def write(block: bytes) -> None:
        if len(written) == at:
            raise error
        written.append(block)

    with pytest.raises(ExtractFailed) as raised:
        download(_good(), write)
    assert raised.value is error
    assert b"".join(written) == DATA[: at * BLOCK]


def test_a_sink_that_fails_while_all_slots_are_taken_ends_the_run() -> None:
    taken = threading.Event()

    class Noticing(Meter):
        members = 0

        def add(self, *, raw: int = 0, compressed: int = 0, stored: int = 0) -> None:
            self.members += bool(compressed)
            if self.members == PLAN.slots:
                taken.set()

    def write(_block: bytes) -> None:
        assert taken.wait(DEADLINE)
        raise ExtractFailed("no space left on device")

    with pytest.raises(ExtractFailed):
        download(_good(), write, meter=Noticing())


def test_nothing_is_written_once_a_stop_was_requested() -> None:
    stop, written = Stop(), list[bytes]()

    def write(block: bytes) -> None:
        written.append(block)
        if len(written) == 3:
            stop.request(Cancelled("by the operator"))

    with pytest.raises(Cancelled):
        download(_good(), write, stop=stop)
    assert len(written) == 3


def test_a_stuck_sink_is_released_by_the_failure_of_a_fetch() -> None:
    """The failure of the fetch is reported. That of the sink is a consequence of the stop."""
    stop, stuck, killed = Stop(), threading.Event(), threading.Event()
    copy = fetch_from(_good())

    def fetch(number: int, buffer: memoryview) -> None:
        if number == 2:
            assert stuck.wait(DEADLINE)
            raise StoreUnreachable("connection reset")
        copy(number, buffer)

    def write(_block: bytes) -> None:
        stuck.set()
        assert killed.wait(DEADLINE)
        raise ExtractFailed("mbstream ended with signal 2")

    with stop.on_stop(killed.set), pytest.raises(StoreUnreachable):
        download(_good(), write, fetch=fetch, stop=stop)


def _request(stop: Stop, error: AgentError, reached: threading.Event, at: list[float]) -> None:
    reached.wait(DEADLINE)
    at.append(time.monotonic())
    stop.request(error)


def test_a_stop_from_outside_ends_a_download_with_a_stuck_sink() -> None:
    stop, stuck, killed = Stop(), threading.Event(), threading.Event()
    error, at = Cancelled("by the operator"), list[float]()

    def write(_block: bytes) -> None:
        stuck.set()
        assert killed.wait(DEADLINE)

    requester = threading.Thread(target=_request, args=(stop, error, stuck, at))
    requester.start()
    try:
        with stop.on_stop(killed.set), pytest.raises(Cancelled) as raised:
            download(_good() * 3, write, stop=stop)
    finally:
        requester.join()
    assert raised.value is error
    assert time.monotonic() - at[0] < 2


def test_a_stop_before_the_start_fetches_and_writes_nothing() -> None:
    stop = Stop()
    stop.request(Cancelled("before it began"))
    calls: list[int] = []
    with pytest.raises(Cancelled):
        download(_good(), lambda _: calls.append(0), fetch=lambda *_: calls.append(1), stop=stop)
    assert not calls
