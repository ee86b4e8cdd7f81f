"""Master keys, which wrap the data keys of backups and sign their records.

A master key never encrypts data itself. HKDF-SHA256 (RFC 5869, no salt) derives two keys of 32
bytes from it, with the info strings below. One key wraps data keys (AES key wrap, RFC 3394). The
other is the HMAC-SHA256 key of records. docs/format.md describes every byte.
"""

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from agent.errors import DataDamaged, Internal, KeyUnusable
from agent.keys.ids import check_key_id
from agent.model import WrappedKey

KEY_BYTES: Final = 32
MASTER: Final = "A256KW"
_INFO_WRAP: Final = b"backup-agent v1 wrap"
_INFO_MAC: Final = b"backup-agent v1 mac"
_SHOWN_DIGITS: Final = 16


def checked(data_key: bytes) -> bytes:
    if len(data_key) != KEY_BYTES:
        raise Internal(f"a data key has {len(data_key)} bytes instead of {KEY_BYTES}")
    return data_key


@dataclass(frozen=True)
class MasterKey:
    """A master key, which has an id and 32 secret bytes.

    Raises:
        KeyUnusable: the id is not a valid id of a key, or the secret has another length.
    """

    id: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        check_key_id(self.id)
        if len(self.secret) != KEY_BYTES:
            raise KeyUnusable(
                f"the master key {self.id} has {len(self.secret)} bytes instead of {KEY_BYTES}"
            )

    @cached_property
    def _wrapping_key(self) -> bytes:
        return HKDF(SHA256(), KEY_BYTES, None, _INFO_WRAP).derive(self.secret)

    @cached_property
    def _mac_key(self) -> bytes:
        return HKDF(SHA256(), KEY_BYTES, None, _INFO_MAC).derive(self.secret)

    @property
    def fingerprint(self) -> str:
        """Return the first 16 hex digits of the SHA-256 that is on the key's page in escrow.

        They reveal nothing useful about a random key.
        """
        return fingerprint(key_text(self.secret).encode())[:_SHOWN_DIGITS]

    def wrap(self, data_key: bytes) -> WrappedKey:
        """Return `data_key` (32 bytes) in encrypted form, as a record carries it."""
        wrapped = aes_key_wrap(self._wrapping_key, checked(data_key))
        return WrappedKey(id=self.id, wrapped=base64.b64encode(wrapped).decode())

    def unwrap(self, wrapped: WrappedKey) -> bytes:
        """Return the data key (32 bytes) in `wrapped`.

        Raises:
            DataDamaged: `wrapped` was changed, or another key wrapped it.
        """
        try:
            sealed = base64.b64decode(wrapped.wrapped, validate=True)
            data_key = aes_key_unwrap(self._wrapping_key, sealed)
        except (ValueError, InvalidUnwrap) as error:
            raise self._unusable() from error
        if len(data_key) != KEY_BYTES:
            raise self._unusable()
        return data_key

    def _unusable(self) -> DataDamaged:
        return DataDamaged(
            f"the backup's data key can't be unwrapped with the master key {self.id} "
            f"(SHA-256 {self.fingerprint}...): the record was changed, or the key file holds "
            "another key"
        )

    def mac(self, line: bytes) -> str:
        """Return the HMAC-SHA256 of `line` in lower-case hex."""
        return hmac.new(self._mac_key, line, hashlib.sha256).hexdigest()


def parse_key_text(key_id: str, text: str) -> MasterKey:
    """Return the master key in the text of a key file, which is base64 of 32 bytes.

    Raises:
        KeyUnusable: `text` is not base64 of 32 bytes, or `key_id` is not valid.
    """
    try:
        secret = base64.b64decode(text.strip(), validate=True)
    except (ValueError, binascii.Error):
        # The cause is dropped, because its text may quote a part of the secret.
        raise KeyUnusable(f"the file of master key {key_id[:80]!r} is not base64") from None
    return MasterKey(key_id, secret)


def key_text(secret: bytes) -> str:
    """Return the text of a key file, which is base64 of the secret without a newline."""
    return base64.b64encode(secret).decode()


def fingerprint(text: bytes) -> str:
    """Return the SHA-256, in hex, of a key's text.

    People compare a copy of the key with it. It reveals nothing useful about a random key.
    """
    return hashlib.sha256(text).hexdigest()
