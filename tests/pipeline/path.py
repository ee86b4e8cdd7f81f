"""Sources, a small plan and calls in both directions for the tests of the data path."""

import random
import threading
from collections.abc import Callable, Mapping, Sequence

from agent.codec.aead import OpeningStream, SealingStream
from agent.codec.gzip_members import deflate_member
from agent.pipeline.buffers import BLOCK, Plan
from agent.pipeline.download import Download, Opening
from agent.pipeline.fetch_ahead import Fetch
from agent.pipeline.meter import Meter
from agent.pipeline.rate_limit import RateLimit
from agent.pipeline.upload import Sealing, Send, Source, Upload
from agent.stop import Stop

KEY = bytes(range(32))
BACKUP_ID = b"0b8a6b5e-3f0b-4a55-9f6c-1f6f3f6f0d11"
PLAN = Plan(cores=2, connections=2, slots=6, slabs_per_segment=2, segments_in_memory=4)
DEADLINE = 20.0
_NOISE = random.Random(1).randbytes(5 * BLOCK)


def noise(size: int) -> bytes:
    """Return incompressible bytes, the same ones each time."""
    return (_NOISE * (size // len(_NOISE) + 1))[:size]


class MemorySource:
    """A source of `data`. It calls `before_read` with the number of each read."""

    def __init__(self, data: bytes, before_read: Callable[[int], None] | None = None) -> None:
        self._data = memoryview(data)
        self._before_read = before_read
        self.reads = 0

    def read_into(self, buffer: memoryview) -> int:
        if self._before_read:
            self._before_read(self.reads)
        self.reads += 1
        piece = self._data[: len(buffer)]
        buffer[: len(piece)] = piece
        self._data = self._data[len(piece) :]
        return len(piece)


class SegmentSink:
    """A store of segments. It copies them, because the slabs are reused."""

    def __init__(self) -> None:
        self.segments: dict[int, bytes] = {}

    def send(self, number: int, parts: Sequence[memoryview]) -> None:
        self.segments[number] = b"".join(parts)

    def joined(self) -> list[bytes]:
        return [self.segments[number] for number in sorted(self.segments)]


def upload(
    source: Source,
    send: Send,
    *,
    plan: Plan = PLAN,
    stop: Stop | None = None,
    meter: Meter | None = None,
    bytes_per_second: int | None = None,
    sealing: Sealing | None = None,
) -> int:
    stop = stop or Stop()
    return Upload(
        source,
        sealing or SealingStream(KEY, BACKUP_ID),
        send,
        plan=plan,
        level=1,
        rate_limit=RateLimit(bytes_per_second, stop),
        meter=meter or Meter(),
        stop=stop,
    ).run()


def stored(data: bytes, *, plan: Plan = PLAN) -> list[bytes]:
    """Upload `data` and return its segments."""
    sink = SegmentSink()
    assert upload(MemorySource(data), sink.send, plan=plan) == len(sink.segments)
    return sink.joined()


def fetch_from(segments: Sequence[bytes] | Mapping[int, bytes]) -> Fetch:
    def fetch(number: int, buffer: memoryview) -> None:
        buffer[:] = segments[number]

    return fetch


def download(
    segments: Sequence[bytes],
    write: Callable[[bytes], None],
    *,
    fetch: Fetch | None = None,
    plan: Plan = PLAN,
    stop: Stop | None = None,
    meter: Meter | None = None,
    opening: Opening | None = None,
) -> None:
    Download(
        [len(segment) for segment in segments],
        fetch or fetch_from(segments),
        opening or OpeningStream(KEY, BACKUP_ID),
        write,
        plan=plan,
        meter=meter or Meter(),
        stop=stop or Stop(),
    ).run()


def opened(segments: Sequence[bytes], *, plan: Plan = PLAN) -> bytes:
    """Download `segments` and return their data."""
    sink = bytearray()
    download(segments, sink.extend, plan=plan)
    return bytes(sink)


def data_with_members_of(total: int) -> bytes:
    """Return noise that compresses to gzip members of `total` bytes together."""
    blocks, left = 0, total
    whole = len(deflate_member(noise(BLOCK), 1))
    while left > whole:
        left -= whole
        blocks += 1
    last = left
    while (size := len(deflate_member(noise(last), 1))) != left:
        assert size > left, f"no noise makes a member of {left} bytes"
        last -= 1 + (size - left) // 2
    return noise(BLOCK) * blocks + noise(last)


class LockStep:
    """A gate that waits for `lanes` threads, then releases them one by one in a random order."""

    def __init__(self, lanes: int, total: int, seed: int) -> None:
        self._lanes = lanes
        self._total = total
        self._random = random.Random(seed)
        self._changed = threading.Condition()
        self._waiting: set[int] = set()
        self._batch: list[int] = []
        self.passed: list[int] = []

    def passing(self, number: int) -> None:
        with self._changed:
            self._waiting.add(number)
            self._form_batch()
            due = self._changed.wait_for(lambda: self._batch[:1] == [number], DEADLINE)
            assert due, f"{number} was never due"
            self._batch.pop(0)
            self._waiting.remove(number)
            self.passed.append(number)
            self._form_batch()
            self._changed.notify_all()

    def _form_batch(self) -> None:
        left = self._total - len(self.passed)
        if not self._batch and left and len(self._waiting) >= min(self._lanes, left):
            self._batch = sorted(self._waiting)
            self._random.shuffle(self._batch)
            self._changed.notify_all()
