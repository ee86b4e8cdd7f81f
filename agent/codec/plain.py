"""The stream of a backup that isn't encrypted, in the shape of the sealed one (aead.py).

Slabs of 1 MiB without header and tag: the stored bytes are the gzip members themselves.
Nothing in here notices a change; who reads such a backup compares each segment with the
MD5 in its signed lists, and each member with its CRC-32.
"""

from agent.codec.aead import SLAB
from agent.errors import DataDamaged, Internal


class PlainSealing:
    """Stands in for SealingStream where encryption is off."""

    def start(self, _index: int) -> int:
        """Where the bytes begin in a slab."""
        return 0

    def room(self, _index: int) -> int:
        """How many bytes a full slab holds."""
        return SLAB

    def seal(self, _slab: memoryview, index: int, length: int, last: bool) -> int:
        """Leave the slab as it is; `length` again. Internal where only the last may be so short."""
        if not 0 <= length <= SLAB or (length < SLAB and not last):
            raise Internal(f"slab {index} has {length} bytes, and is not the last")
        return length


class PlainOpening:
    """Stands in for OpeningStream."""

    def open(self, slab: memoryview, index: int, last: bool) -> memoryview:
        """The slab itself; DataDamaged where it is cut short."""
        if len(slab) < SLAB and not last:
            raise DataDamaged(f"MiB {index} of the stream has {len(slab)} bytes")
        return slab
