"""The end of a copied redo log: what is judged whole, and that a real prepare agrees."""

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from agent.codec.mariadb_stream import MendingParser
from agent.codec.redo_log import RedoTail
from agent.engine.checkpoints import read_checkpoints
from tests.codec.streams import whole
from tests.conftest import need
from tests.stack.mariadb import MariaDB

HEAD = 12288
FIRST = 44_000  # the LSN of the first byte behind the head
PLAIN, ENCRYPTED = b"Phys", "\N{OLD KEY}".encode()
# What mariadb-backup 10.11.19 copied from idle servers: one FILE_CHECKPOINT, after LSN 47139, and
# one of a log that is encrypted, after LSN 44808.
REAL = {
    PLAIN: (47139, "fa0000000000000000b823014ad65eeb"),
    ENCRYPTED: (44808, "fa5fd4cc076d181e5c5c8301000000000000af089bc282d4"),
}


def crc32c(data: bytes) -> bytes:
    """By the definition, bit by bit."""
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    return (state ^ 0xFFFFFFFF).to_bytes(4)


def change(records: bytes, nonce: bytes = b"", mark: int = 1) -> bytes:
    return records + bytes([mark]) + nonce + crc32c(records + nonce)


def log(body: bytes, form: bytes = PLAIN, first: int = FIRST) -> bytes:
    return (form + bytes(4) + first.to_bytes(8)).ljust(HEAD, b"\0") + body


def fault(content: bytes, lsn: int, piece: int = 1 << 20) -> str | None:
    tail = RedoTail()
    for at in range(0, len(content), piece):
        tail.add(memoryview(content)[at : at + piece])
    return tail.fault(lsn)


def test_the_check_value_of_the_checksum() -> None:
    assert crc32c(b"123456789").hex() == "e3069283"  # as everywhere, and in RFC 3720


@pytest.mark.parametrize("form", REAL, ids=["plain", "encrypted"])
def test_real_logs(form: bytes) -> None:
    first, digits = REAL[form]
    body = bytes.fromhex(digits)
    end = first + len(body)
    assert fault(log(body, form, first), end) is None
    assert fault(log(body, form, first), end + 1) == f"it ends at LSN {end}"
    assert fault(log(body[:-1], form, first), end - 1) == f"what ends at LSN {end - 1} is damaged"
    assert fault(log(b"", form, first), first) is None
    assert fault(log(body, b"\0\0\0\1", first), end + 1) is None, "of another form"


CHANGES = st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(CHANGES, st.sampled_from([b"", b"nonce 12"]), st.integers(1, 4000), st.data())
def test_every_damage_of_a_log_is_found(
    changes: list[bytes], nonce: bytes, piece: int, data: st.DataObject
) -> None:
    form = ENCRYPTED if nonce else PLAIN
    parts = [change(records, nonce) for records in changes]
    content, end = log(b"".join(parts), form), FIRST + sum(map(len, parts))
    assert fault(content, end, piece) is None
    spoilt = bytearray(content)
    spoilt[data.draw(st.integers(HEAD, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    assert fault(bytes(spoilt), end, piece) is not None
    ended = data.draw(st.integers(0, len(changes) - 1))
    parts[ended] = change(changes[ended], nonce, 0)
    at = FIRST + sum(map(len, parts[: ended + 1]))
    assert fault(log(b"".join(parts), form), end) == f"what ends at LSN {at} is damaged"


def test_a_long_log_is_judged_by_its_end_and_in_time() -> None:
    parts = [change(bytes([n % 255]) * (n % 900 + 1)) for n in range(3000)]
    end = FIRST + sum(map(len, parts))
    began = time.monotonic()
    assert fault(log(b"".join(parts)), end) is None
    assert time.monotonic() - began < 5
    parts[2990] = change(b"x", mark=0)
    assert "is damaged" in str(fault(log(b"".join(parts)), end - 900))
    # as long as none is
    assert fault(log(change(b"x") + change(bytes(600_000))), FIRST) is None


def test_the_log_is_known_in_a_stream() -> None:
    first, digits = REAL[PLAIN]
    content = log(bytes.fromhex(digits), first=first)
    parser = MendingParser()
    parser.mend(memoryview(whole(b"d/t.ibd", bytes(100)) + whole(b"ib_logfile0", content)))
    assert parser.redo.fault(first + 16) is None
    assert parser.redo.fault(first + 17) == f"it ends at LSN {first + 16}"


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda log: log[:-16],
    "zeros at its end": lambda log: log[:-16] + bytes(16),
    "its end not marked": lambda log: log[:-5] + b"\0" + log[-4:],
    "another byte": lambda log: log[:-7] + bytes([log[-7] ^ 1]) + log[-6:],
}


@pytest.mark.parametrize("what", ["nothing", *DAMAGES])
def test_a_real_prepare_gets_no_further(mariadb: MariaDB, tmp_path: Path, what: str) -> None:
    """And says `completed OK!` all the same."""
    need("mariadb-backup")
    target = tmp_path / "backup"

    def engine(*arguments: str) -> tuple[int, str]:
        argv = ["mariadb-backup", "--no-defaults", *arguments, f"--target-dir={target}"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    login = (f"--socket={mariadb.socket}", f"--user={mariadb.admin}")
    assert engine("--backup", *login, f"--datadir={mariadb.datadir}")[0] == 0
    path = target / "ib_logfile0"
    path.write_bytes(DAMAGES.get(what, bytes)(path.read_bytes()))
    last_lsn = read_checkpoints(target).last_lsn
    found = fault(path.read_bytes(), last_lsn)
    status, words = engine("--prepare")
    reached = status == 0 and f"End of log at LSN={last_lsn}\n" in words
    assert (found is None) == reached == (what == "nothing")
    shutil.rmtree(target)
