"""Check the end of a copied redo log: a prepare must be able to apply it up to a certain LSN.

Source of the form: MDEV-14425 and storage/innobase/log/log0recv.cc of MariaDB 10.11. The log of
MariaDB 10.8 and later has a head of 12,288 bytes, then mini-transactions. A mini-transaction has
its records, a mark of one byte, 8 bytes of nonce if the log is encrypted, and the CRC-32C of
records and nonce, big-endian. In a copy the mark is 1. The head has the LSN of the first
mini-transaction. A prepare stops at the first one that is incomplete or has another mark.

mariadb-backup reads the log while the server writes it. On 10.11.19, on a machine under load, one
backup said `completed OK!` and could not be prepared: "The log was only applied up to LSN
381276466, instead of 381276482". MDEV-39468 describes a race of that kind. The prepare reported
this only because the log had no other records. In other cases it drops the incomplete end of a log
and says `completed OK!`.
"""

from typing import Final

_HEAD_BYTES: Final = 12288
_READ_BYTES: Final = 16  # of the head: the format, and the LSN from byte 8 on
_PLAIN: Final = b"Phys"
_ENCRYPTED: Final = "\N{OLD KEY}".encode()
_NONCE_BYTES: Final = 8
_CRC_BYTES: Final = 4
_VALID: Final = 1
# Bytes at the end of a log that are checked, which takes up to 30 ms, and bytes that are kept. The
# longest mini-transaction is shorter than that: it writes a few pages of at most 64 KiB.
_CHECKED_BYTES: Final = 64 << 10
_TAIL_BYTES: Final = 1 << 20
_START: Final = 0xFFFFFFFF  # of a CRC-32C, before its first byte (RFC 3720, B.4)


def _table() -> tuple[int, ...]:
    """Return the 256 steps of a CRC-32C by byte, for the reflected polynomial 0x1EDC6F41."""
    rows = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        rows.append(value)
    return tuple(rows)


_STEPS: Final = _table()
# The index in _STEPS of the step that led to a state, by the state's upper byte.
_BEFORE: Final = {step >> 24: value for value, step in enumerate(_STEPS)}


class RedoTail:
    """The end of a copied log, which takes the bytes in order and keeps at least the last MiB."""

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
        """Return the reason if a prepare can't apply the log up to `lsn`, or None if it can.

        Only the last 64 KiB are checked. A log of another form is not checked.
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
    """A walk back over the mini-transactions at the end of a log."""

    def __init__(self, log: bytearray, nonce: int) -> None:
        self._log = log
        self._behind = _CRC_BYTES + nonce + 1  # from the mark to the end

    def back(self) -> int | None:
        """Return the end of the last damaged mini-transaction, or None if there is none."""
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
        """Return the start of the mini-transaction that ends at `end`, or None if its CRC is wrong.

        The CRC is undone byte by byte, until it has its initial value. It may have that by chance.
        So there must also be a mark before that place, unless the kept bytes begin there.
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
