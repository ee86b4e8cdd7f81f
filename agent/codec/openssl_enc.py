"""The decryption of gzip streams that `openssl enc -aes-256-cbc -salt` encrypted with a password.

The file begins with `Salted__` and a salt of 8 bytes. AES-256 in CBC mode follows, with the padding
of PKCS#7. Key and IV are derived from password and salt, and the file does not say how. So each
form is tried on the first block, until one gives the start of a gzip stream:

- EVP_BytesToKey with SHA-256, the default since OpenSSL 1.1.0
- EVP_BytesToKey with MD5, the default before that
- PBKDF2-HMAC-SHA512 with 10,000 iterations (`-md sha512 -pbkdf2 -iter 10000`)

CBC detects no changed bytes. The reader compares the stored bytes with their MD5, and the content
with the checksums of gzip.
"""

import hashlib
from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from agent.codec.gunzip import RESERVED_FLAGS, START
from agent.errors import DataDamaged, KeyNotHere

BLOCK: Final = 16
_MAGIC: Final = b"Salted__"
_KEY: Final = 32
_SECRET: Final = _KEY + BLOCK  # the key and the IV
_ITERATIONS: Final = 10_000
# The magic, the salt, and the first block of the ciphertext.
_HEAD: Final = 2 * BLOCK


def _derive_with_sha256(password: bytes, salt: bytes) -> bytes:
    first = hashlib.sha256(password + salt).digest()
    return first + hashlib.sha256(first + password + salt).digest()[: _SECRET - len(first)]


def _derive_with_md5(password: bytes, salt: bytes) -> bytes:
    secret = digest = b""
    while len(secret) < _SECRET:
        digest = hashlib.md5(digest + password + salt, usedforsecurity=False).digest()
        secret += digest
    return secret


def _derive_with_pbkdf2(password: bytes, salt: bytes) -> bytes:
    return hashlib.pbkdf2_hmac("sha512", password, salt, _ITERATIONS, _SECRET)


_FORMS: Final[tuple[Callable[[bytes, bytes], bytes], ...]] = (
    _derive_with_sha256,
    _derive_with_md5,
    _derive_with_pbkdf2,
)


class OpensslDecryption:
    """The decryption of one stream, which arrives in pieces of any size."""

    def __init__(self, password: bytes) -> None:
        self._password = password
        self._decryptor: CipherContext | None = None
        # The head as long as it is not whole, and the last block from then on: only the end of the
        # stream shows that a block is the padded one.
        self._held = b""

    def feed(self, piece: memoryview | bytes) -> bytes:
        """Return the plaintext that `piece` completes, but none of the last block.

        Raises:
            DataDamaged: the stream does not begin as `openssl enc` begins one.
            KeyNotHere: the password does not decrypt it.
        """
        view = memoryview(piece)
        if self._decryptor is None:
            missing = _HEAD - len(self._held)
            self._held += view[:missing]
            view = view[missing:]
            self._decryptor = self._start()
            if self._decryptor is None:
                return b""
        if len(view) < BLOCK:
            view = memoryview(self._held + view)
            self._held = b""
        plain = self._decryptor.update(self._held) + self._decryptor.update(view[:-BLOCK])
        self._held = bytes(view[-BLOCK:])
        return plain

    def finish(self) -> bytes:
        """Return the plaintext of the last block without its padding.

        Raises:
            DataDamaged: the stream is truncated, or its end was changed.
        """
        if self._decryptor is None:
            raise DataDamaged(f"the encrypted stream is truncated to {len(self._held)} bytes")
        last = self._decryptor.update(self._held)
        try:
            last += self._decryptor.finalize()
        except ValueError as error:
            raise DataDamaged(
                f"the encrypted stream is truncated: it does not consist of {BLOCK}-byte blocks"
            ) from error
        padding = last[-1]
        if not 1 <= padding <= BLOCK or not last.endswith(bytes([padding]) * padding):
            raise DataDamaged(
                "the encrypted stream has no valid padding: it is truncated, or its end was changed"
            )
        return last[:-padding]

    def _start(self) -> CipherContext | None:
        """Return the decryption behind the header, or None if the head is not whole."""
        if not self._held.startswith(_MAGIC[: len(self._held)]):
            raise DataDamaged(
                "the stream was not encrypted with `openssl enc`: it does not begin with "
                f"{_MAGIC.decode()}"
            )
        if len(self._held) < _HEAD:
            return None
        salt, self._held = self._held[len(_MAGIC) : BLOCK], self._held[BLOCK:]
        return self._matching(salt, self._held)

    def _matching(self, salt: bytes, block: bytes) -> CipherContext:
        """Return the decryption of the form that turns `block` into the start of a gzip stream."""
        for derive in _FORMS:
            secret = derive(self._password, salt)
            cipher = Cipher(AES(secret[:_KEY]), CBC(secret[_KEY:]))
            if _begins_gzip(cipher.decryptor().update(block)):
                return cipher.decryptor()
        raise KeyNotHere(
            "the password does not decrypt the stream: none of the three key derivations of "
            "`openssl enc -aes-256-cbc` gives a gzip stream",
            hint="give the password with which the backup was made (for a backup of Trove, "
            "backup_aes_cbc_key of its guest agent at that time). If it is the right one, the "
            "start of the stored bytes was changed: restore another backup",
        )


def _begins_gzip(plain: bytes) -> bool:
    # Noise passes once in 2^27.
    return plain.startswith(START) and not plain[len(START)] & RESERVED_FLAGS
