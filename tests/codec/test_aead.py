"""Tests of the sealed stream.

Tink reads our stream, we read that of Tink, and no damage passes.
"""

import os

import pytest
import tink
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from agent.codec.aead import HEADER, SLAB, TAG, OpeningStream, SealingStream, room, start
from agent.errors import AgentError, DataDamaged, Internal
from tests.codec.tink_reader import tink_open, tink_seal

KEY = bytes(range(32))
ID = b"5a16ae63-4b4b-4cf4-9d1e-2b2f6e1d6a11"
FIRST = SLAB - HEADER - TAG
NEXT = SLAB - TAG
BOUNDARIES = [0, 1, FIRST - 1, FIRST, FIRST + 1, FIRST + NEXT - 1, FIRST + NEXT, FIRST + NEXT + 1]
NOISE = os.urandom(FIRST + NEXT + 1)


def seal(plain: bytes, key: bytes = KEY, associated: bytes = ID) -> bytes:
    stream = SealingStream(key, associated)
    sealed = b""
    index = position = 0
    while True:
        slab = memoryview(bytearray(SLAB))
        begin = start(index)
        piece = plain[position : position + room(index)]
        position += len(piece)
        slab[begin : begin + len(piece)] = piece
        last = position == len(plain)
        sealed += slab[: stream.seal(slab, index, len(piece), last)]
        if last:
            return sealed
        index += 1


def unseal(sealed: bytes, key: bytes = KEY, associated: bytes = ID) -> bytes:
    stream = OpeningStream(key, associated)
    plain = b""
    for index, begin in enumerate(range(0, max(len(sealed), 1), SLAB)):
        slab = memoryview(bytearray(sealed[begin : begin + SLAB]))
        plain += stream.open(slab, index, begin + SLAB >= len(sealed))
    return plain


@pytest.mark.parametrize("length", BOUNDARIES)
def test_tink_and_we_read_each_other(length: int) -> None:
    plain = NOISE[:length]
    ours = seal(plain)
    theirs = tink_seal(KEY, ID, plain)
    assert len(ours) == len(theirs)
    assert tink_open(KEY, ID, ours) == plain
    assert unseal(theirs) == plain
    assert unseal(ours) == plain


def test_tink_refuses_ours_under_other_associated_data() -> None:
    with pytest.raises(tink.TinkError):
        tink_open(KEY, b"another backup", seal(b"rows"))


def test_streams_of_one_key_share_nothing() -> None:
    first, second = seal(b"same"), seal(b"same")
    assert first[1:33] != second[1:33]
    assert first[33:HEADER] != second[33:HEADER]


@pytest.mark.parametrize("position", [0, 1, 33, 39, 40, 41, 43, 44, 59])
def test_every_flipped_byte_of_a_small_stream_is_refused(position: int) -> None:
    bad = bytearray(seal(b"rows"))
    bad[position] ^= 1
    with pytest.raises(DataDamaged, match="MiB 0 "):
        unseal(bytes(bad))


def test_wrong_key_and_wrong_backup_are_refused_and_named() -> None:
    sealed = seal(b"rows")
    with pytest.raises(DataDamaged, match="key is wrong"):
        unseal(sealed, key=bytes(32))
    with pytest.raises(DataDamaged, match="key is wrong"):
        unseal(sealed, associated=b"another backup")


def test_truncation_is_refused_wherever_it_cuts() -> None:
    sealed = seal(NOISE)
    ends = [0, 1, HEADER, HEADER + TAG - 1, HEADER + TAG, SLAB - 1, SLAB, SLAB + TAG]
    for length in [*ends, 2 * SLAB - 1, 2 * SLAB, len(sealed) - 1]:
        with pytest.raises(DataDamaged):
            unseal(sealed[:length])


def test_reordered_repeated_and_dropped_slabs_are_refused() -> None:
    sealed = seal(os.urandom(FIRST + 2 * NEXT + 5))
    slabs = [sealed[begin : begin + SLAB] for begin in range(0, len(sealed), SLAB)]
    for order in ([0, 2, 1, 3], [0, 1, 1, 2, 3], [0, 2, 3], [0, 1, 2]):
        with pytest.raises(DataDamaged, match="MiB"):
            unseal(b"".join(slabs[number] for number in order))


def test_bytes_after_the_last_slab_are_refused() -> None:
    with pytest.raises(DataDamaged):
        unseal(seal(NOISE) + b"\0")
    with pytest.raises(DataDamaged):
        unseal(seal(NOISE[:FIRST]) + bytes(TAG))


def test_damage_names_its_mebibyte() -> None:
    bad = bytearray(seal(NOISE))
    bad[SLAB + 5] ^= 1
    with pytest.raises(DataDamaged, match="MiB 1 ") as caught:
        unseal(bytes(bad))
    assert "key is wrong" not in str(caught.value)


def test_a_slab_that_is_not_last_must_be_full() -> None:
    stream = OpeningStream(KEY, ID)
    with pytest.raises(DataDamaged, match="it has 60 bytes"):
        stream.open(memoryview(bytearray(seal(b"rows"))), 0, False)


def test_an_empty_last_slab_is_refused_although_its_tag_holds() -> None:
    full = memoryview(bytearray(SLAB))
    SealingStream(KEY, ID, salt=bytes(32), prefix=bytes(7)).seal(full, 0, room(0), False)
    aes = AESGCM(HKDF(SHA256(), 32, bytes(32), ID).derive(KEY))
    empty = aes.encrypt(bytes(7) + (1).to_bytes(4, "big") + b"\1", b"", None)
    with pytest.raises(DataDamaged, match=r"MiB 1 .* truncated"):
        unseal(bytes(full) + empty)


@pytest.mark.parametrize(
    ("index", "length", "last"),
    [
        (0, 5, False),
        (0, FIRST + 1, True),
        (0, -1, True),
        (1, 0, True),
        (1, NEXT - 1, False),
        (1, NEXT + 1, True),
        (2**32, 1, True),
        (-1, 1, True),
    ],
)
def test_misuse_of_seal_is_a_defect(index: int, length: int, last: bool) -> None:
    with pytest.raises(Internal):
        SealingStream(KEY, ID).seal(memoryview(bytearray(SLAB)), index, length, last)


@pytest.mark.parametrize("index", [1, 2**32, -1])
def test_opening_needs_slab_0_first(index: int) -> None:
    with pytest.raises(AgentError):
        OpeningStream(KEY, ID).open(memoryview(bytearray(100)), index, True)


def test_the_last_index_is_usable() -> None:
    key_stream = SealingStream(KEY, ID)
    first = memoryview(bytearray(SLAB))
    key_stream.seal(first, 0, room(0), False)
    slab = memoryview(bytearray(SLAB))
    slab[:4] = b"rows"
    used = key_stream.seal(slab, 2**32 - 1, 4, True)
    opening = OpeningStream(KEY, ID)
    opening.open(first, 0, False)
    assert bytes(opening.open(slab[:used], 2**32 - 1, True)) == b"rows"


def test_wrong_lengths_of_key_salt_and_prefix_are_defects() -> None:
    for bad in ({"key": b"short"}, {"salt": b"short"}, {"prefix": b"short"}):
        parts: dict[str, bytes] = {"key": KEY, "salt": bytes(32), "prefix": bytes(7), **bad}
        with pytest.raises(Internal):
            SealingStream(parts["key"], ID, salt=parts["salt"], prefix=parts["prefix"])
