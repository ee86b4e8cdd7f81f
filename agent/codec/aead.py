"""Google Tink's streaming AEAD in the format AES256_GCM_HKDF_1MB.

To seal is to encrypt and authenticate. To open is to check and decrypt. Both work in place.

The ciphertext is split into slabs of 1 MiB. Slab 0 begins with a header of 40 bytes: its own length
(1 byte), a salt (32 bytes) and a nonce prefix (7 bytes). HKDF-SHA256 derives the AES key from the
stream's key, the salt, and the associated data as `info`. Each slab is one AES-256-GCM ciphertext
with its tag of 16 bytes at the end. The nonce is the prefix, the slab's index (4 bytes,
big-endian), and one byte that is 1 in the last slab and 0 in all others. So a truncated, reordered
or spliced stream fails the check of a tag. Source of the format:
https://developers.google.com/tink/streaming-aead/aes_gcm_hkdf_streaming

Every slab but the last is full. Only an empty plaintext has an empty slab, because a plaintext that
exactly fills a slab ends with it. So a caller that seals must know whether more bytes follow. It
must never seal different bytes with the same index of one stream.
"""

import os
import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from agent.errors import DataDamaged, Internal

SLAB: Final = 1 << 20
HEADER: Final = 40
TAG: Final = 16
KEY_BYTES: Final = 32
_SALT: Final = slice(1, 33)
_PREFIX: Final = slice(33, HEADER)
_PREFIX_BYTES: Final = 7
_MAX_SLABS: Final = 1 << 32


def start(index: int) -> int:
    """Return the offset of the plaintext in slab `index`."""
    return HEADER if index == 0 else 0


def room(index: int) -> int:
    """Return the number of plaintext bytes in a full slab `index`."""
    return SLAB - TAG - start(index)


def _cipher(key: bytes, salt: bytes, associated: bytes) -> AESGCM:
    if len(key) != KEY_BYTES:
        raise Internal(f"a data key has {len(key)} bytes instead of {KEY_BYTES}")
    return AESGCM(HKDF(SHA256(), KEY_BYTES, salt, associated).derive(key))


def _nonce(prefix: bytes, index: int, last: bool) -> bytes:
    return prefix + struct.pack(">I?", index, last)


class SealingStream:
    """The encryption of one stream, slab by slab.

    `salt` (32 bytes) and `prefix` (7 bytes) are random, except in tests.
    """

    def __init__(
        self,
        key: bytes,
        associated: bytes,
        *,
        salt: bytes | None = None,
        prefix: bytes | None = None,
    ) -> None:
        salt = os.urandom(KEY_BYTES) if salt is None else salt
        self._prefix = os.urandom(_PREFIX_BYTES) if prefix is None else prefix
        self._header = bytes([HEADER]) + salt + self._prefix
        if len(self._header) != HEADER or len(salt) != KEY_BYTES:
            raise Internal("a stream's salt or nonce prefix has a wrong length")
        self._cipher = _cipher(key, salt, associated)

    def start(self, index: int) -> int:
        """Return the offset of the plaintext in slab `index`."""
        return start(index)

    def room(self, index: int) -> int:
        """Return the number of plaintext bytes in a full slab `index`."""
        return room(index)

    def seal(self, slab: memoryview, index: int, length: int, last: bool) -> int:
        """Seal `length` bytes from offset start(index) on in place, and return the result's length.

        The result is the slab's ciphertext, with header and tag, in bytes. All slabs but the last
        must be full. A last slab must not be empty, except slab 0.

        Raises:
            Internal: the index or the length is not possible.
        """
        begin = start(index)
        whole = room(index)
        if not 0 <= index < _MAX_SLABS or not 0 <= length <= whole:
            raise Internal(f"slab {index} with {length} bytes of plaintext can't be sealed")
        if (length < whole and not last) or (length == 0 and index):
            raise Internal(f"slab {index} must be full, or it must be the last and not empty")
        end = begin + length
        slab[:begin] = self._header[:begin]
        nonce = _nonce(self._prefix, index, last)
        self._cipher.encrypt_into(nonce, slab[begin:end], None, slab[begin : end + TAG])
        return end + TAG


class OpeningStream:
    """The decryption of one stream, slab by slab.

    Slab 0 must be opened first, because it has the salt.
    """

    def __init__(self, key: bytes, associated: bytes) -> None:
        self._key = key
        self._associated = associated
        self._prefix = b""
        self._cipher: AESGCM | None = None

    def open(self, slab: memoryview, index: int, last: bool) -> memoryview:
        """Open one whole slab in place, and return a view of its plaintext.

        Raises:
            DataDamaged: the slab's bytes, its length, its place in the stream, the key or the
                associated data are wrong. The content of `slab` is undefined after that.
            Internal: slab 0 was not opened before.
        """
        if not 0 <= index < _MAX_SLABS or len(slab) > SLAB or (len(slab) < SLAB and not last):
            raise _damaged(index, f"it has {len(slab)} bytes")
        if len(slab) < start(index) + TAG or (index and len(slab) == TAG):
            raise _damaged(index, f"it is truncated to {len(slab)} bytes")
        if index == 0:
            self._read_header(slab)
        if self._cipher is None:
            raise Internal("slab 0 of a stream must be opened before its other slabs")
        sealed = slab[start(index) :]
        plain = sealed[:-TAG]
        try:
            self._cipher.decrypt_into(_nonce(self._prefix, index, last), sealed, None, plain)
        except InvalidTag as error:
            why = "its bytes were changed, or it is in the wrong place"
            raise _damaged(index, why if index else f"{why}, or the key is wrong") from error
        return plain

    def _read_header(self, slab: memoryview) -> None:
        if slab[0] != HEADER:
            raise _damaged(0, "it does not begin with the header of a sealed stream")
        self._prefix = bytes(slab[_PREFIX])
        self._cipher = _cipher(self._key, bytes(slab[_SALT]), self._associated)


def _damaged(index: int, why: str) -> DataDamaged:
    return DataDamaged(f"MiB {index} of the sealed stream can't be opened: {why}")
