"""Tests of the decryption of what `openssl enc` wrote, in each of the three forms."""

import gzip
import hashlib
import json
import os
import subprocess
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from hypothesis import given, settings, strategies as st

from agent.codec.openssl_enc import BLOCK, OpensslDecryption
from agent.errors import DataDamaged, KeyNotHere
from tests.conftest import need

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "openssl_vectors.json").read_text())
PASSWORD = VECTORS["password"].encode()
SALT = b"\0salt\xff\n\n"
FORMS = (
    ("-md", "md5"),
    ("-md", "sha256"),
    ("-md", "sha512", "-pbkdf2", "-iter", "10000"),
)
# A gzip stream of 8 blocks, so that its padding is a whole block.
STREAM = gzip.compress(b"", mtime=0).ljust(8 * BLOCK, b"\0")


def encrypted_by_openssl(plain: bytes, form: Sequence[str]) -> bytes:
    need("openssl")
    command = [
        "openssl",
        "enc",
        "-aes-256-cbc",
        "-salt",
        "-pass",
        f"pass:{PASSWORD.decode()}",
        *form,
    ]
    return subprocess.run(command, input=plain, capture_output=True, check=True).stdout


def encrypted(plain: bytes, *, padded: bool = True, password: bytes = PASSWORD) -> bytes:
    """Encrypt as `openssl enc -md sha256` does, with or without padding."""
    first = hashlib.sha256(password + SALT).digest()
    iv = hashlib.sha256(first + password + SALT).digest()[:16]
    missing = BLOCK - len(plain) % BLOCK
    plain += bytes([missing]) * missing * padded
    return b"Salted__" + SALT + Cipher(AES(first), CBC(iv)).encryptor().update(plain)


def decrypted(stored: bytes, cuts: Sequence[int] = (1 << 20,), password: bytes = PASSWORD) -> bytes:
    """Decrypt pieces whose sizes are `cuts`, over and over."""
    decryption = OpensslDecryption(password)
    plain, at, turn = [], 0, 0
    while at < len(stored):
        piece = bytearray(stored[at : at + cuts[turn % len(cuts)]])
        plain.append(decryption.feed(memoryview(piece)))
        at += len(piece)
        turn += 1
        piece[:] = b"\xee" * len(piece)  # A caller may reuse its buffer.
    return b"".join([*plain, decryption.finish()])


@pytest.mark.parametrize("form", VECTORS["forms"], ids=["md5", "sha256", "pbkdf2"])
def test_golden_vectors(form: dict[str, Any]) -> None:
    plain = decrypted(bytes.fromhex(form["encrypted"]))
    assert plain.hex() == VECTORS["gzip"]
    assert gzip.decompress(plain).decode() == VECTORS["content"]


@pytest.mark.parametrize("form", FORMS, ids=["md5", "sha256", "pbkdf2"])
@pytest.mark.parametrize("size", [0, 1, 13, 100_000, 1 << 20])
def test_what_openssl_encrypts_is_decrypted(form: Sequence[str], size: int) -> None:
    plain = gzip.compress(os.urandom(size))
    stored = encrypted_by_openssl(plain, form)
    assert decrypted(stored, (65_537, 1000)) == plain


def test_openssl_uses_sha256_if_it_is_not_told_otherwise() -> None:
    assert decrypted(encrypted_by_openssl(STREAM, ())) == STREAM


@settings(max_examples=100, deadline=None)
@given(
    content=st.binary(max_size=300),
    cuts=st.lists(st.integers(1, 70), min_size=1, max_size=8),
)
def test_any_split_gives_the_same_bytes(content: bytes, cuts: list[int]) -> None:
    plain = STREAM[:20] + content
    assert decrypted(encrypted(plain), cuts) == plain


def test_an_empty_piece_changes_nothing() -> None:
    decryption = OpensslDecryption(PASSWORD)
    stored = encrypted(STREAM)
    assert decryption.feed(b"") == b""
    plain = decryption.feed(stored) + decryption.feed(b"") + decryption.finish()
    assert plain == STREAM


@pytest.mark.parametrize("form", FORMS, ids=["md5", "sha256", "pbkdf2"])
def test_another_password_is_named_as_the_reason(form: Sequence[str]) -> None:
    stored = encrypted_by_openssl(STREAM, form)
    with pytest.raises(KeyNotHere, match="none of the three") as raised:
        decrypted(stored, password=b"default_aes_cbc_kez")
    assert "backup_aes_cbc_key" in raised.value.hint
    assert "kez" not in raised.value.message + raised.value.hint


@pytest.mark.parametrize(
    "plain", [b"XBSTCK01" * 4, STREAM[:3] + b"\x20" + STREAM[4:], b"\x1f\x8b\x09" + STREAM[3:]]
)
def test_content_that_is_no_gzip_can_not_be_told_from_a_wrong_password(plain: bytes) -> None:
    with pytest.raises(KeyNotHere):
        decrypted(encrypted(plain))


@pytest.mark.parametrize("stored", [gzip.compress(b"x" * 99), b"Salted_", b"Salted_x", b"s"])
def test_bytes_without_the_header_are_refused(stored: bytes) -> None:
    with pytest.raises(DataDamaged, match=r"does not begin with Salted__|truncated to 7 bytes"):
        decrypted(stored)


def test_a_header_is_refused_as_soon_as_it_can_not_become_one() -> None:
    with pytest.raises(DataDamaged, match="does not begin with Salted__"):
        OpensslDecryption(PASSWORD).feed(b"\x1f")


def test_every_truncation_is_refused() -> None:
    """A lost end looks like a valid padding in one of 256 cases. Then gzip notices."""
    stored = encrypted(STREAM)
    for length in range(len(stored)):
        with pytest.raises(DataDamaged, match=r"truncated"):
            decrypted(stored[:length])


@pytest.mark.parametrize("length", [31, 33, 47])
def test_a_length_that_is_no_multiple_of_a_block_is_refused(length: int) -> None:
    stored = (encrypted(STREAM) * 2)[:length]
    with pytest.raises(DataDamaged, match=r"truncated to 31 bytes|16-byte blocks"):
        decrypted(stored)


@pytest.mark.parametrize("end", [b"\0", b"\x11", b"\xff", b"\1\2", b"\2\3\3", b"\x10" * 15])
def test_a_wrong_padding_is_refused(end: bytes) -> None:
    plain = STREAM[: -len(end)] + end
    with pytest.raises(DataDamaged, match="padding"):
        decrypted(encrypted(plain, padded=False))


def test_a_flipped_bit_of_the_padding_is_refused() -> None:
    stored = bytearray(encrypted(STREAM))
    for bit in range(8):
        stored[-BLOCK - 1] ^= 1 << bit  # It flips the same bit of the last plain byte.
        with pytest.raises(DataDamaged, match="padding"):
            decrypted(bytes(stored))
        stored[-BLOCK - 1] ^= 1 << bit


def test_no_more_than_a_piece_is_held() -> None:
    stored = encrypted(STREAM + bytes(8 << 20))
    view = memoryview(stored)
    decryption = OpensslDecryption(PASSWORD)
    tracemalloc.start()
    for at in range(0, len(stored), 1 << 16):
        decryption.feed(view[at : at + (1 << 16)])
    decryption.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 18
