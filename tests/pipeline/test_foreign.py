"""Tests of the download of gzip streams that another program stored."""

import gc
import gzip
import hashlib
import itertools
import json
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from agent.codec.gzip_members import deflate_member
from agent.codec.openssl_enc import OpensslDecryption
from agent.errors import (
    AgentError,
    Cancelled,
    DataDamaged,
    ExtractFailed,
    KeyNotHere,
    StoreMismatch,
    StoreUnreachable,
)
from agent.pipeline.buffers import BLOCK, MIB, Plan
from agent.pipeline.foreign import Decryption, FetchAt, ForeignDownload, Piece
from agent.pipeline.meter import Meter
from agent.stop import Stop
from tests.codec.test_gunzip import FEXTRA, member
from tests.codec.test_openssl_enc import FORMS, PASSWORD, encrypted, encrypted_by_openssl
from tests.pipeline.path import DEADLINE, PLAN, LockStep, noise

pytestmark = pytest.mark.timeout(60)

PART = PLAN.segment_bytes
DATA = noise(13 * BLOCK) + b"INSERT INTO t VALUES (1);\n" * 50_000


@lru_cache(maxsize=1)
def good() -> bytes:
    stream = gzip.compress(DATA, 1)
    assert 6 * PART < len(stream) < 7 * PART
    return stream


def pieces_of(stored: bytes, sizes: Sequence[int] = ()) -> list[Piece]:
    """Return the pieces of an object that have `sizes`. The last one has the rest."""
    ends = [*itertools.accumulate(sizes, initial=0), len(stored)]
    parts = [stored[start:end] for start, end in itertools.pairwise(ends)]
    return [Piece(len(part), hashlib.md5(part).hexdigest()) for part in parts]


def fetch_from(stored: bytes) -> FetchAt:
    def fetch(offset: int, buffer: memoryview) -> None:
        buffer[:] = stored[offset : offset + len(buffer)]

    return fetch


def download(
    stored: bytes,
    write: Callable[[bytes], None],
    *,
    pieces: Sequence[Piece] | None = None,
    fetch: FetchAt | None = None,
    decryption: Decryption | None = None,
    stop: Stop | None = None,
    meter: Meter | None = None,
    plan: Plan = PLAN,
) -> None:
    ForeignDownload(
        len(stored),
        fetch or fetch_from(stored),
        pieces_of(stored) if pieces is None else pieces,
        write,
        decryption=decryption,
        plan=plan,
        meter=meter or Meter(),
        stop=stop or Stop(),
    ).run()


def restored(
    stored: bytes, sizes: Sequence[int] = (), decryption: Decryption | None = None
) -> bytes:
    sink = bytearray()
    download(stored, sink.extend, pieces=pieces_of(stored, sizes), decryption=decryption)
    return bytes(sink)


@pytest.mark.parametrize("size", [0, 1, BLOCK, 2 * BLOCK, 7 * BLOCK + 12345])
@pytest.mark.parametrize("compressible", [False, True])
def test_a_plain_object(size: int, compressible: bool) -> None:
    data = bytes(size) if compressible else noise(size)
    assert restored(gzip.compress(data, 6)) == data


@pytest.mark.parametrize(
    "sizes",
    [
        (PART, PART, PART),
        (PART - 1, 1, PART + 1),
        (3 * PART + 17,),
        (1, 2, 3, 5 * PART),
        (0, PART, 0, 0, 5),
        (1000,) * 5000,
    ],
    ids=["of a part", "around a part", "large", "small ones first", "empty ones", "many"],
)
def test_pieces_of_any_size(sizes: Sequence[int]) -> None:
    assert restored(good(), sizes) == DATA


@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_the_object_ends_around_a_part_and_has_an_empty_piece_behind_it(beyond: int) -> None:
    stored = gzip.compress(DATA[: 3 * PART], 1)
    stored += bytes(4 * PART - len(stored) + beyond)
    assert restored(stored, (PART, len(stored) - PART)) == DATA[: 3 * PART]


def test_a_stream_of_several_members() -> None:
    halves = [DATA[: 5 * MIB + 3], DATA[5 * MIB + 3 :]]
    stored = b"".join(gzip.compress(half, 1) for half in halves) + gzip.compress(b"")
    assert restored(stored, (PART, PART)) == DATA


def test_our_own_members() -> None:
    blocks = [DATA[at : at + BLOCK] for at in range(0, len(DATA), BLOCK)]
    assert restored(b"".join(map(deflate_member, blocks)), (PART, PART)) == DATA


@pytest.mark.parametrize("form", FORMS, ids=["md5", "sha256", "pbkdf2"])
def test_a_stream_that_openssl_encrypted(form: Sequence[str]) -> None:
    stored = encrypted_by_openssl(good(), form)
    assert restored(stored, (PART + 7, PART), OpensslDecryption(PASSWORD)) == DATA


def test_a_short_encrypted_stream() -> None:
    vectors: dict[str, Any] = json.loads(
        (Path(__file__).parents[1] / "codec" / "openssl_vectors.json").read_text()
    )
    for form in vectors["forms"]:
        stored = bytes.fromhex(form["encrypted"])
        found = restored(stored, (40,), OpensslDecryption(PASSWORD))
        assert found.decode() == vectors["content"]


def test_blocks_are_bytes_of_at_most_a_mib() -> None:
    blocks: list[bytes] = []
    download(gzip.compress(bytes(20 * MIB)), blocks.append)
    assert {type(block) for block in blocks} == {bytes}
    assert 0 < min(map(len, blocks)) <= max(map(len, blocks)) <= MIB


@pytest.mark.parametrize("seed", range(3))
def test_parts_may_be_fetched_in_any_order_by_all_connections(seed: int) -> None:
    fetching = LockStep(PLAN.connections, 7, seed)
    copy, sink = fetch_from(good()), bytearray()

    def fetch(offset: int, buffer: memoryview) -> None:
        number, rest = divmod(offset, PART)
        assert not rest
        fetching.passing(number)
        copy(offset, buffer)

    download(good(), sink.extend, fetch=fetch)
    assert sink == DATA
    assert sorted(fetching.passed) == list(range(7)) != fetching.passed


@pytest.mark.parametrize("encryption", [False, True])
def test_the_meter_counts_each_stage(encryption: bool) -> None:
    stored = encrypted(good()) if encryption else good()
    meter = Meter()
    decryption = OpensslDecryption(PASSWORD) if encryption else None
    download(stored, lambda _block: None, meter=meter, decryption=decryption)
    assert meter.raw_bytes == len(DATA)
    assert meter.compressed_bytes == len(good())
    assert meter.stored_bytes == len(stored)
    found = meter.stages()
    assert {stage: total.bytes for stage, total in found.items()} == {
        "fetch": len(stored),
        "open": len(stored),
        "inflate": len(DATA),
        "write": len(DATA),
    }
    assert all(total.seconds > 0 for total in found.values())
    assert meter.measured().bottleneck == "store"


class TestDamage:
    SIZES = (PART + 5, 0, 2 * PART, 1000)

    @pytest.mark.parametrize("number", range(5))
    def test_a_wrong_md5_of_any_piece_is_refused_and_named(self, number: int) -> None:
        pieces = pieces_of(good(), self.SIZES)
        found = pieces[number].md5
        wrong = hashlib.md5(b"other bytes").hexdigest()
        pieces[number] = pieces[number]._replace(md5=wrong)
        sink = bytearray()
        with pytest.raises(DataDamaged, match=rf"piece {number} of the 5 .*{found}, not {wrong}"):
            download(good(), sink.extend, pieces=pieces)
        assert DATA.startswith(sink)

    def test_a_wrong_md5_of_an_empty_last_piece_is_refused(self) -> None:
        pieces = [*pieces_of(good()), Piece(0, hashlib.md5(b"x").hexdigest())]
        with pytest.raises(DataDamaged, match="piece 1 of the 2 of the object is not as it was"):
            download(good(), lambda _block: None, pieces=pieces)

    def test_a_changed_byte_is_blamed_on_its_piece(self) -> None:
        """It breaks the gzip stream, too. But the piece says more."""
        bad = bytearray(good())
        bad[PART + 100_000] ^= 1
        pieces = pieces_of(good(), (PART, 500_000))
        with pytest.raises(DataDamaged, match="piece 1 of the 3"):
            download(bytes(bad), lambda _block: None, pieces=pieces)

    def test_a_byte_that_the_content_does_not_depend_on_is_compared(self) -> None:
        bad = bytearray(good())
        bad[4] ^= 1  # the time in the header
        assert gzip.decompress(bad) == DATA
        with pytest.raises(DataDamaged, match="piece 0 of the 1"):
            download(bytes(bad), lambda _block: None, pieces=pieces_of(good()))

    @pytest.mark.parametrize("at", [0, 3, 6])
    def test_a_fetch_that_leaves_a_part_of_its_buffer_is_noticed(self, at: int) -> None:
        copy = fetch_from(good())

        def fetch(offset: int, buffer: memoryview) -> None:
            left = 1000 if offset == at * PART else 0
            copy(offset + left, buffer[left:])

        with pytest.raises(DataDamaged):
            download(good(), lambda _block: None, fetch=fetch)

    @pytest.mark.parametrize("more", [-1, 1, PART])
    def test_pieces_that_are_not_the_object_are_refused_before_a_fetch(self, more: int) -> None:
        piece = Piece(len(good()) + more, hashlib.md5(good()).hexdigest())
        fetched: list[int] = []
        with pytest.raises(DataDamaged, match=rf"has {len(good())} bytes, but its pieces have"):
            download(
                good(),
                lambda _block: None,
                pieces=[piece],
                fetch=lambda *_: fetched.append(0),
            )
        assert not fetched

    @pytest.mark.parametrize("length", [0, 1, 9, 10, PART, 3 * PART + 5, -9, -8, -1])
    def test_a_truncated_stream_is_refused_even_with_its_own_md5(self, length: int) -> None:
        sink = bytearray()
        with pytest.raises(DataDamaged, match=r"in the middle of gzip member 0|is empty"):
            download(good()[:length], sink.extend)
        assert DATA.startswith(sink)

    def test_bytes_behind_the_stream_are_refused(self) -> None:
        with pytest.raises(DataDamaged, match="behind gzip member 0 are no gzip member"):
            download(good() + b"garbage", lambda _block: None)

    def test_no_piece_and_no_byte_is_no_stream(self) -> None:
        with pytest.raises(DataDamaged, match="is empty"):
            download(b"", lambda _block: None, pieces=[])

    def test_an_absurd_size_takes_no_memory(self) -> None:
        size = 1 << 60

        def fetch(offset: int, _buffer: memoryview) -> None:
            raise StoreMismatch(f"nothing at {offset}")

        with pytest.raises(StoreMismatch):
            ForeignDownload(
                size,
                fetch,
                [Piece(size, "")],
                lambda _block: None,
                plan=PLAN,
                meter=Meter(),
                stop=Stop(),
            ).run()

    def test_a_wrong_password_is_noticed_before_a_byte_is_written(self) -> None:
        sink = bytearray()
        stored = encrypted(good(), password=b"another")
        with pytest.raises(KeyNotHere):
            download(stored, sink.extend, decryption=OpensslDecryption(PASSWORD))
        assert not sink

    def test_a_truncated_encrypted_stream_is_refused(self) -> None:
        stored = encrypted(good())
        for cut in (1, 16, PART):
            with pytest.raises(DataDamaged, match=r"truncated|middle"):
                download(stored[:-cut], lambda _block: None, decryption=OpensslDecryption(PASSWORD))


@pytest.mark.parametrize("at", [0, 2, 6])
def test_a_fetch_fails(at: int) -> None:
    error, sink, copy = StoreUnreachable("connection reset"), bytearray(), fetch_from(good())

    def fetch(offset: int, buffer: memoryview) -> None:
        if offset == at * PART:
            raise error
        copy(offset, buffer)

    with pytest.raises(StoreUnreachable) as raised:
        download(good(), sink.extend, fetch=fetch)
    assert raised.value is error
    assert DATA.startswith(sink)
    assert len(sink) <= at * PART


@pytest.mark.parametrize("at", [0, 1, 12])
def test_the_sink_fails(at: int) -> None:
    error, written = ExtractFailed("no space left on device"), list[bytes]()

    def write(block: bytes) -> None:
        if len(written) == at:
            raise error
        written.append(block)

    with pytest.raises(ExtractFailed) as raised:
        download(good(), write)
    assert raised.value is error
    assert DATA.startswith(b"".join(written))


def test_a_sink_that_fails_while_all_slots_are_taken_ends_the_run() -> None:
    """While it writes the first block, the inflater has time to fill the slots."""
    pause, started = threading.Event(), time.monotonic()

    def write(_block: bytes) -> None:
        pause.wait(0.2)
        raise ExtractFailed("no space left on device")

    with pytest.raises(ExtractFailed):
        download(good(), write)
    # The exception of a test's timeout would end a run that hangs, and be ignored as a consequence.
    assert time.monotonic() - started < DEADLINE


def test_nothing_is_written_once_a_stop_was_requested() -> None:
    stop, written = Stop(), list[bytes]()

    def write(block: bytes) -> None:
        written.append(block)
        if len(written) == 3:
            stop.request(Cancelled("by the operator"))

    with pytest.raises(Cancelled):
        download(good(), write, stop=stop)
    assert len(written) == 3


def test_a_stop_before_the_start_fetches_and_writes_nothing() -> None:
    stop = Stop()
    stop.request(Cancelled("before it began"))
    calls: list[int] = []
    with pytest.raises(Cancelled):
        download(good(), lambda _: calls.append(0), fetch=lambda *_: calls.append(1), stop=stop)
    assert not calls


def test_a_stuck_sink_is_released_by_the_failure_of_a_fetch() -> None:
    """The failure of the fetch is reported. That of the sink is a consequence of the stop."""
    stop, stuck, killed = Stop(), threading.Event(), threading.Event()
    # Members without content fill the next parts, so the inflater goes on while the sink is stuck.
    stored = gzip.compress(b"content") + member(b"", flags=FEXTRA, extra=bytes(60_000)) * 200
    copy = fetch_from(stored)

    def fetch(offset: int, buffer: memoryview) -> None:
        if offset == 2 * PART:
            assert stuck.wait(DEADLINE)
            raise StoreUnreachable("connection reset")
        copy(offset, buffer)

    def write(_block: bytes) -> None:
        stuck.set()
        assert killed.wait(DEADLINE)
        raise ExtractFailed("mbstream ended with signal 2")

    with stop.on_stop(killed.set), pytest.raises(StoreUnreachable):
        download(stored, write, fetch=fetch, stop=stop)


def _request(stop: Stop, error: AgentError, reached: threading.Event, at: list[float]) -> None:
    reached.wait(DEADLINE)
    at.append(time.monotonic())
    stop.request(error)


def _stopped_after(
    stored: bytes,
    write: Callable[[bytes], None],
    fetch: FetchAt,
    reached: threading.Event,
    plan: Plan = PLAN,
) -> float:
    """Request a stop when `reached` is set, and return the seconds until the run has ended."""
    stop, at, error = Stop(), list[float](), Cancelled("by the operator")
    requester = threading.Thread(target=_request, args=(stop, error, reached, at))
    requester.start()
    try:
        with pytest.raises(Cancelled) as raised:
            download(stored, write, fetch=fetch, stop=stop, plan=plan)
    finally:
        requester.join()
    assert raised.value is error
    return time.monotonic() - at[0]


def test_a_stop_ends_a_run_whose_slots_are_all_taken() -> None:
    """The writer is slow. So the inflater waits for a slot when the second write is under way."""
    reached, pause, written = threading.Event(), threading.Event(), list[int]()

    def write(block: bytes) -> None:
        written.append(len(block))
        pause.wait(0.1)
        if len(written) == 2:
            reached.set()
            pause.wait(0.1)

    assert _stopped_after(good(), write, fetch_from(good()), reached) < 2


def test_a_stop_ends_a_run_that_inflates_much_to_nothing() -> None:
    """Empty members of one part take seconds, and write nothing."""
    plan = PLAN._replace(slabs_per_segment=16)
    stored = gzip.compress(b"") * (plan.segment_bytes // 20)
    reached = threading.Event()
    copy = fetch_from(stored)

    def fetch(offset: int, buffer: memoryview) -> None:
        copy(offset, buffer)
        reached.set()

    assert _stopped_after(stored, lambda _block: None, fetch, reached, plan) < 1.5


def _peak(run: Callable[[], None]) -> int:
    """Return the bytes that `run` allocates at most at a time."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    try:
        run()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_a_long_stream_stays_within_the_plan() -> None:
    block = gzip.compress(noise(2 * MIB), 1)
    stored = block * 40
    pieces, total = pieces_of(stored, (30 * MIB,)), [0]
    view = memoryview(stored)

    def fetch(offset: int, buffer: memoryview) -> None:
        buffer[:] = view[offset : offset + len(buffer)]

    def write(block: bytes) -> None:
        total[0] += len(block)

    peak = _peak(lambda: download(stored, write, pieces=pieces, fetch=fetch))
    assert total[0] == 80 * MIB
    assert PLAN.segment_bytes * PLAN.segments_in_memory < peak < PLAN.memory_bytes


def test_a_short_object_takes_no_more_than_its_bytes() -> None:
    stored = gzip.compress(b"x" * 1000)
    plan = PLAN._replace(slabs_per_segment=16)
    assert _peak(lambda: download(stored, lambda _block: None, plan=plan)) < 3 * MIB


def test_a_bomb_stays_within_the_plan_if_the_sink_is_slow() -> None:
    inside = zlib.compressobj(9, zlib.DEFLATED, 31)
    stored = b"".join(inside.compress(bytes(MIB)) for _ in range(150)) + inside.flush()
    total, pause = [0], threading.Event()

    def write(block: bytes) -> None:
        total[0] += len(block)
        pause.wait(0.002)

    assert _peak(lambda: download(stored, write)) < PLAN.memory_bytes
    assert total[0] == 150 * MIB
