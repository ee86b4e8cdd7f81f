"""The end of a copied redo log: whether a prepare can apply it up to the LSN that it must reach.

The log of MariaDB 10.8 and later (MDEV-14425, storage/innobase/log/log0recv.cc of 10.11): 12,288
bytes of head, then mini-transactions. Each is its records, a byte that says whether it is valid, 8
bytes of nonce if the log is encrypted, and the CRC-32C of records and nonce, big-endian. In a copy
that byte is 1. The head has the LSN of the first mini-transaction. A prepare stops at the first
one that is cut short or whose end is another.

mariadb-backup reads the log while the server writes it. On 10.11.19, on a machine under load, one
backup said `completed OK!` and could not be prepared: "The log was only applied up to LSN
381276466, instead of 381276482". MDEV-39468 tells of a race of that kind. The prepare said so only
because there was nothing else in that log: of others whose end is cut off it drops what is
incomplete, and says `completed OK!`.
"""

from typing import Final

_HEAD_BYTES: Final = 12288
_READ_BYTES: Final = 16  # of the head: format, and the LSN from byte 8 on
_PLAIN: Final = b"Phys"
_ENCRYPTED: Final = "\N{OLD KEY}".encode()
_NONCE_BYTES: Final = 8
_CRC_BYTES: Final = 4
_VALID: Final = 1
# Of the end of a log: as much as is checked, some 30 ms of Python, and more than the longest
# mini-transaction has, which writes a few pages of at most 64 KiB.
_CHECKED_BYTES: Final = 64 << 10
_TAIL_BYTES: Final = 1 << 20
_START: Final = 0xFFFFFFFF  # of a CRC-32C, before its first byte (RFC 3720, B.4)


def _table() -> tuple[int, ...]:
    """Return the CRC-32C of each byte: the polynomial 0x1EDC6F41, reflected."""
    rows = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        rows.append(value)
    return tuple(rows)


_STEPS: Final = _table()
# The step that leads to a state, by the state's upper byte.
_BEFORE: Final = {step >> 24: value for value, step in enumerate(_STEPS)}


class RedoTail:
    """Takes the bytes of a copied log in order, and keeps the last MiB at least."""

    def __init__(self) -> None:
        self._size = 0
        self._head = b""
        self._tail = bytearray()

    def add(self, piece: memoryview) -> None:
        """Take the next bytes."""
        self._size += len(piece)
        if len(self._head) < _READ_BYTES:
            self._head += bytes(piece[: _READ_BYTES - len(self._head)])
        self._tail += piece[-_TAIL_BYTES:]
        if len(self._tail) > 2 * _TAIL_BYTES:
            del self._tail[:-_TAIL_BYTES]

    def fault(self, lsn: int) -> str | None:
        """Return why a prepare can't apply the log up to `lsn`, None if nothing is known.

        Nothing is known of a log of another form, and of what is before the last 64 KiB.
        """
        form = self._head[:4]
        if form not in (_PLAIN, _ENCRYPTED):
            return None
        size = self._size - _HEAD_BYTES
        end = int.from_bytes(self._head[8:_READ_BYTES]) + size
        if end < lsn:
            return f"it ends at LSN {end}"
        tail = self._tail[-min(size, _TAIL_BYTES) :] if size else bytearray()
        last = _Walk(tail, _NONCE_BYTES if form == _ENCRYPTED else 0).back()
        return None if last is None else f"what ends at LSN {end - len(tail) + last} is damaged"


class _Walk:
    """Goes back over the mini-transactions at the end of a log, from each to the one before."""

    def __init__(self, log: bytearray, nonce: int) -> None:
        self._log = log
        self._behind = _CRC_BYTES + nonce + 1  # from the mark to the end

    def back(self) -> int | None:
        """Return the end of the last one that is damaged, None if there is none."""
        at = len(self._log)
        checked = max(0, at - _CHECKED_BYTES)
        while at > checked:
            start = self._start_of(at) if self._is_end(at) else None
            if start is None:
                return at
            at = start
        return None

    def _is_end(self, at: int) -> bool:
        return at >= self._behind and self._log[at - self._behind] == _VALID

    def _start_of(self, end: int) -> int | None:
        """Return where the one begins that ends at `end`; None if its CRC fits no beginning.

        The CRC is undone byte by byte, until it is what it was before the first. It may be that by
        chance, so what is before that has to be an end, too, if there is such a place.
        """
        log, found = self._log, None
        state = int.from_bytes(log[end - _CRC_BYTES : end]) ^ _START
        mark = end - self._behind
        for at in range(end - _CRC_BYTES - 1, -1, -1):
            if at == mark:
                continue
            state = _undone(state, log[at])
            if state == _START and at < mark:
                if at < self._behind or self._is_end(at):
                    return at
                found = at if found is None else found
        return found


def _undone(state: int, byte: int) -> int:
    """Return the state of a CRC-32C before it took a byte."""
    value = _BEFORE[state >> 24]
    return ((state ^ _STEPS[value]) & 0xFFFFFF) << 8 | value ^ byte
