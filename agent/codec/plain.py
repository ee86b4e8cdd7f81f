"""The stream of a backup that isn't encrypted, with the interface of the sealed one (aead.py).

It has slabs of 1 MiB without header and tag. The stored bytes are the gzip members themselves. This
module does not detect changed bytes. So the reader of such a backup compares each segment with its
MD5 in the backup's signed lists, and each gzip member with its CRC-32.
"""

from agent.codec.aead import SLAB
from agent.errors import DataDamaged, Internal


class PlainSealing:
    """The replacement of SealingStream if encryption is off."""

    def start(self, _index: int) -> int:
        """Return the offset of the bytes in a slab."""
        return 0

    def room(self, _index: int) -> int:
        """Return the number of bytes in a full slab."""
        return SLAB

    def seal(self, _slab: memoryview, index: int, length: int, last: bool) -> int:
        """Return `length`, and leave the slab as it is.

        Raises:
            Internal: `length` is not that of a full slab, and the slab is not the last.
        """
        if not 0 <= length <= SLAB or (length < SLAB and not last):
            raise Internal(f"slab {index} has {length} bytes, and is not the last")
        return length


class PlainOpening:
    """The replacement of OpeningStream for a backup that isn't encrypted."""

    def open(self, slab: memoryview, index: int, last: bool) -> memoryview:
        """Return the slab itself.

        Raises:
            DataDamaged: the slab is truncated, and is not the last.
        """
        if len(slab) < SLAB and not last:
            raise DataDamaged(f"MiB {index} of the stream is truncated to {len(slab)} bytes")
        return slab
