"""The download of a stored gzip stream that another program made, such as a backup of Trove.

    fetch x connections ─▶ digest (1 thread)        ─▶ writer ─▶ sink
                         ─▶ decrypt, inflate (caller)   (1 thread)

The stream is one long row of bytes, so one thread inflates it. What the store says of the bytes is
an MD5 of each of their pieces, which may have 2 GiB. So wrong bytes may reach the sink before the
end of a piece shows it. The caller must discard all that was written if a download fails.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from agent.codec.gunzip import Gunzip
from agent.errors import DataDamaged
from agent.pipeline.buffers import Plan
from agent.pipeline.fetch_ahead import FetchAhead
from agent.pipeline.meter import Meter
from agent.pipeline.stages import Tally
from agent.pipeline.write_behind import Write, WriteBehind
from agent.stop import Stop
from agent.threads import Workers

FetchAt = Callable[[int, memoryview], None]
# Bytes that are decrypted and inflated between two looks at the stop.
_STEP: Final = 256 << 10


class Piece(NamedTuple):
    """A piece of a stored object: its size in bytes, and its MD5 in hexadecimal digits."""

    size: int
    md5: str


class Decryption(Protocol):
    """A codec that decrypts the stored bytes. The implementation is in codec/openssl_enc.py."""

    def feed(self, piece: memoryview | bytes) -> bytes:
        """Return the plaintext that the next bytes complete."""

    def finish(self) -> bytes:
        """Return the rest of the plaintext."""


class ForeignDownload:
    """One run of the download of an object of `size` bytes.

    `fetch(offset, buffer)` fills the buffer with the bytes of the object from `offset` on, and may
    raise. `pieces` are the pieces of the object in order: one for a plain object, one for each
    segment of a joined one. A piece may have 0 bytes. None means that the store doesn't tell the
    pieces. Then only the checksums in the gzip stream are compared.
    """

    def __init__(
        self,
        size: int,
        fetch: FetchAt,
        pieces: Sequence[Piece] | None,
        write: Write,
        *,
        decryption: Decryption | None = None,
        plan: Plan,
        meter: Meter,
        stop: Stop,
    ) -> None:
        self._size = size
        self._digests = None if pieces is None else _Digests(pieces)
        self._decryption = decryption
        self._plan = plan
        self._meter = meter
        self._stop = stop
        self._gunzip = Gunzip()
        part = plan.segment_bytes
        self._ahead = FetchAhead(
            -(-size // part),
            lambda number: min(part, size - number * part),
            lambda number, buffer: fetch(number * part, buffer),
            largest=min(part, size),
            plan=plan,
            meter=meter,
            stop=stop,
        )
        self._digested = Tally(meter, "open")
        self._decrypted = Tally(meter, "open")
        self._inflated = Tally(meter, "inflate")
        self._writer = WriteBehind(bytes, write, slots=plan.slots, meter=meter, stop=stop)

    def run(self) -> None:
        """Download the whole stream, or raise the first failure of any stage.

        No thread of this run is left after the return or the exception.
        """
        with (
            Workers(self._plan.connections, "fetch") as fetchers,
            self._digested,
            Workers(1, "digest") as digester,
            self._decrypted,
            self._inflated,
            self._writer.running(),
            self._stop.guard(),
        ):
            self._inflate_all(fetchers, digester)
        self._stop.check()

    def _inflate_all(self, fetchers: Workers, digester: Workers) -> None:
        """Inflate the parts of the object in order, while the next ones are fetched.

        Raises:
            DataDamaged: the bytes are not those that were stored, or no whole gzip stream.
        """
        if self._digests is not None:
            self._digests.check_size(self._size)
        for part in self._ahead.segments(fetchers):
            digest = digester.submit(self._digest, part)
            try:
                self._open(part)
            finally:
                # If both fail, a wrong MD5 is the reason of the other failure.
                digest.result()
        if self._decryption is not None:
            self._inflate(self._decryption.finish())
        self._gunzip.finish()

    def _digest(self, part: memoryview) -> None:
        if self._digests is None:
            return
        started = time.monotonic()
        self._digests.update(part)
        self._digested.add(time.monotonic() - started, len(part))

    def _open(self, part: memoryview) -> None:
        for at in range(0, len(part), _STEP):
            self._stop.check()
            self._inflate(self._decrypt(part[at : at + _STEP]))

    def _decrypt(self, stored: memoryview) -> memoryview | bytes:
        if self._decryption is None:
            return stored
        started = time.monotonic()
        plain = self._decryption.feed(stored)
        self._decrypted.add(time.monotonic() - started, 0)
        return plain

    def _inflate(self, compressed: memoryview | bytes) -> None:
        self._meter.add(compressed=len(compressed))
        started = time.monotonic()
        for block in self._gunzip.feed(compressed):
            self._inflated.add(time.monotonic() - started, len(block))
            self._writer.reserve()
            self._writer.put(block)
            started = time.monotonic()


class _Digests:
    """The comparison of an object, which arrives in order, with the MD5 of each of its pieces."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = pieces
        self._number = 0
        self._done = 0
        self._digest = _md5()

    def check_size(self, size: int) -> None:
        """Raise DataDamaged if the pieces together don't have `size` bytes."""
        found = sum(piece.size for piece in self._pieces)
        if found != size:
            raise DataDamaged(f"the object has {size} bytes, but its pieces have {found}")

    def update(self, view: memoryview) -> None:
        """Digest the next bytes.

        Raises:
            DataDamaged: a piece that ends with them is not as it was stored.
        """
        while self._number < len(self._pieces):
            piece = self._pieces[self._number]
            taken = view[: piece.size - self._done]
            self._digest.update(taken)
            self._done += len(taken)
            view = view[len(taken) :]
            if self._done < piece.size:
                return
            self._end(piece)

    def _end(self, piece: Piece) -> None:
        found = self._digest.hexdigest()
        if found != piece.md5:
            raise DataDamaged(
                f"piece {self._number} of the {len(self._pieces)} of the object is not as it was "
                f"stored: its {piece.size} bytes have the MD5 {found}, not {piece.md5}"
            )
        self._number += 1
        self._done = 0
        self._digest = _md5()


def _md5() -> "hashlib._Hash":
    return hashlib.md5(usedforsecurity=False)
