"""Checks of the group `data path`: a test stream through all stages to the real store and back."""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from functools import cached_property

from agent import wiring
from agent.codec.aead import SLAB, OpeningStream, SealingStream
from agent.codec.gzip_members import deflate_member, inflate_member
from agent.errors import DataDamaged
from agent.pipeline.buffers import BLOCK, MIB, Plan
from agent.pipeline.download import Download
from agent.pipeline.meter import Meter
from agent.pipeline.rate_limit import RateLimit
from agent.pipeline.upload import Upload
from agent.selftest.check import Check, CheckOutcome, amount, failed, passed, skipped, span, warned
from agent.selftest.context import Context
from agent.stop import Stop
from agent.store.protocol import Container

_BASE = ("keys: active", "host: memory", "store: put", "store: get", "store: delete")
_SIZE = 48 * MIB
_SMALL_SIZE = 16 * MIB
_FAST = 20 * MIB  # bytes a second; a store this fast takes the larger stream in a few seconds
_SEGMENT = 4 * MIB
# Bytes. Longer than deflate's window of 32 KiB, so that the repetition doesn't compress better.
_PATTERN = 4 * MIB
_SLOW = 20 * MIB  # bytes a second
_DAY = 86_400.0  # seconds


class _Pattern:
    """A stream of random hexadecimal digits, which deflate compresses to half the length."""

    def __init__(self, size: int) -> None:
        self._view = memoryview(os.urandom(_PATTERN // 2).hex().encode())
        self._size = size
        self._at = 0

    def read_into(self, buffer: memoryview) -> int:
        """Copy the next bytes of the stream into `buffer` and return their number.

        It may be less than the length of `buffer`. It is 0 at the end of the stream.
        """
        count = min(len(buffer), self._size - self._at, _PATTERN - self._at % _PATTERN)
        buffer[:count] = self._view[self._at % _PATTERN :][:count]
        self._at += count
        return count

    def rewind(self) -> None:
        self._at = 0

    def expect(self, block: bytes) -> None:
        """Compare the next downloaded block with the stream. Raise DataDamaged if it differs."""
        at = self._at % _PATTERN
        if bytes(self._view[at : at + len(block)]) != block:
            raise DataDamaged(f"the stream came back changed after byte {self._at}")
        self._at += len(block)

    @property
    def ended(self) -> bool:
        return self._at == self._size


class _Group:
    """The checks of the data path, on the segments of one artificial backup."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._key = os.urandom(32)
        self._sizes: dict[int, int] = {}
        self._bottleneck = "none"
        self._rates: dict[str, float] = {}

    def round_trip(self) -> CheckOutcome:
        size = _SIZE if (self._context.store_rate or _FAST) >= _FAST else _SMALL_SIZE
        # the group may run alone, and before the first backup
        self._context.store.open()
        pattern = _Pattern(size)
        up, meter = self._upload(pattern)
        pattern.rewind()
        started = time.monotonic()
        self._download(self._key, pattern.expect)
        down = size / (time.monotonic() - started)
        if not pattern.ended:
            return failed(
                "the stream came back truncated", "this is a defect of backup-agent: report it"
            )
        self._context.backup_rate = up
        self._rates = {"backup": up, "restore": down}
        self._bottleneck = meter.measured().bottleneck
        ratio = size / max(meter.compressed_bytes, 1)
        stored = f"{amount(size)} in {len(self._sizes)} segments, compressed {ratio:.1f} to 1"
        return passed(f"{stored}, came back unchanged")

    def speed(self) -> CheckOutcome:
        """Report the speed of all stages together, and of each stage alone on one core."""
        whole = ", ".join(f"{name} {rate / MIB:.0f}" for name, rate in self._rates.items())
        alone = ", ".join(f"{name} {rate / MIB:.0f}" for name, rate in self._stages().items())
        found = (
            f"MiB/s: {whole}; each stage on one core: {alone}; longest wait for: {self._bottleneck}"
        )
        if min(self._rates.values()) < _SLOW:
            return warned(
                found,
                "raise [pipeline] connections if the longest wait is for the store, or cores if it "
                "is for compression",
            )
        return passed(found)

    def estimate(self) -> CheckOutcome:
        size = self._context.copied_bytes
        if size is None or self._context.backup_rate is None:
            return skipped("the size of the datadir is not known: see the group database")
        rate = self._context.backup_rate
        limit = self._context.config.pipeline.bytes_per_second
        seconds = size / (min(rate, limit) if limit else rate)
        found = f"a full backup of {amount(size)} takes about {span(seconds)}"
        if seconds > _DAY:
            return warned(
                f"{found}: longer than a day",
                "raise [pipeline] bytes_per_second, cores or connections, or make incremental "
                "backups",
            )
        return passed(found)

    def wrong_key(self) -> CheckOutcome:
        return self._refused(os.urandom(32), "another key")

    def damage(self) -> CheckOutcome:
        """Check that a download is refused after one bit of a stored segment was changed."""
        store, number = self._context.store, min(self._sizes)
        name = self._context.remains.segment(number)
        segment = memoryview(bytearray(self._sizes[number]))
        store.get_into(Container.SEGMENTS, name, segment)
        segment[len(segment) // 2] ^= 1
        self._context.remains.put(Container.SEGMENTS, name, [segment])
        return self._refused(self._key, "one changed bit")

    def removal(self) -> CheckOutcome:
        remains = self._context.remains
        remains.remove()
        left = [row.name for row in self._context.store.list(Container.SEGMENTS, remains.prefix)]
        if left:
            return warned(
                f"{len(left)} objects are still listed after they were deleted",
                "the store updates its listings late: see the logs of its container servers",
            )
        return passed("all objects of the stream are deleted from the store")

    def _refused(self, key: bytes, what: str) -> CheckOutcome:
        """Check that a download with `key` is refused. `what` names the fault in the message."""
        try:
            self._download(key, lambda _block: None)
        except DataDamaged as error:
            return passed(f"refused: {error}")
        return failed(
            f"a stored stream was read with {what}", "this is a defect of backup-agent: report it"
        )

    @cached_property
    def _plan(self) -> Plan:
        return wiring.path_settings(self._context.config).plan(segment_bytes=_SEGMENT)

    def _upload(self, pattern: _Pattern) -> tuple[float, Meter]:
        """Store the stream. Return the raw bytes a second and the meter."""
        meter, stop = Meter(), Stop()

        def send(number: int, parts: list[memoryview]) -> None:
            name = self._context.remains.segment(number)
            self._context.remains.put(Container.SEGMENTS, name, parts)
            self._sizes[number] = sum(len(part) for part in parts)

        Upload(
            pattern,
            SealingStream(self._key, self._context.remains.backup_id.encode()),
            send,
            plan=self._plan,
            level=self._context.config.pipeline.level,
            rate_limit=RateLimit(self._context.config.pipeline.bytes_per_second, stop),
            meter=meter,
            stop=stop,
        ).run()
        return meter.raw_bytes / max(meter.seconds, 1e-6), meter

    def _download(self, key: bytes, write: Callable[[bytes], None]) -> None:
        remains, store = self._context.remains, self._context.store
        Download(
            [self._sizes[number] for number in sorted(self._sizes)],
            lambda number, buffer: store.get_into(
                Container.SEGMENTS, remains.segment(number), buffer
            ),
            OpeningStream(key, remains.backup_id.encode()),
            write,
            plan=self._plan,
            meter=Meter(),
            stop=Stop(),
        ).run()

    def _stages(self) -> dict[str, float]:
        """Measure each stage alone and return its bytes a second.

        These are raw bytes for `compress` and `inflate`, and sealed bytes for the other stages.
        """
        block = memoryview(bytearray(BLOCK))
        _Pattern(BLOCK).read_into(block)
        member = deflate_member(block)
        slab = memoryview(bytearray(SLAB))
        sealing = SealingStream(self._key, b"")
        level = self._context.config.pipeline.level
        return {
            "compress": _rate(BLOCK, lambda: deflate_member(block, level)),
            "inflate": _rate(BLOCK, lambda: inflate_member(member)),
            "encrypt": _rate(SLAB, lambda: sealing.seal(slab, 0, 1000 << 10, True)),
            "md5": _rate(SLAB, lambda: hashlib.md5(slab, usedforsecurity=False).digest()),
        }


def _rate(size: int, work: Callable[[], object]) -> float:
    """Call `work` for about 30 ms, and return its bytes a second.

    Each call processes `size` bytes.
    """
    started, rounds = time.monotonic(), 0
    while (taken := time.monotonic() - started) < 0.03:
        work()
        rounds += 1
    return rounds * size / taken


def checks(context: Context) -> Sequence[Check]:
    group = _Group(context)
    there = ("round trip",)
    return [
        Check("round trip", group.round_trip, _BASE),
        Check("speed", group.speed, there),
        Check("estimate", group.estimate, there),
        Check("wrong key", group.wrong_key, there),
        Check("damage", group.damage, there),
        Check("removal", group.removal, there),
    ]
