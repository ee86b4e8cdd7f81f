"""Master keys: wrapping the data keys of backups, and vouching for their records.

A master key never touches data. HKDF-SHA256 (RFC 5869, no salt) derives two keys of 32
bytes from it, under the info strings below: one wraps data keys (AES key wrap, RFC 3394),
the other is the HMAC-SHA256 key of records. Byte by byte: docs/format.md.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from agent.errors import DataDamaged, Internal, KeyNotHere, KeyUnusable
from agent.model import WrappedKey

KEY_BYTES: Final = 32
_INFO_WRAP: Final = b"backup-agent v1 wrap"
_INFO_MAC: Final = b"backup-agent v1 mac"
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SEAL: Final = re.compile(rb'\{"key_id": "([A-Za-z0-9._-]{1,64})", "mac": "([0-9a-f]{64})"\}\n')


class RecordState(StrEnum):
    """Whether a record is as it was written: `key-not-here` means that nobody can tell."""

    OK = "ok"
    BAD = "bad"
    KEY_NOT_HERE = "key-not-here"


@dataclass(frozen=True)
class MasterKey:
    """One master key: a name and 32 secret bytes. KeyUnusable where either can't be one."""

    id: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise KeyUnusable(
                f"{self.id[:80]!r} can't be the id of a master key",
                hint="use 1 to 64 letters, digits, dots, dashes and underscores",
            )
        if len(self.secret) != KEY_BYTES:
            raise KeyUnusable(
                f"the master key {self.id} has {len(self.secret)} bytes instead of {KEY_BYTES}"
            )

    def _derive(self, info: bytes) -> bytes:
        return HKDF(SHA256(), KEY_BYTES, None, info).derive(self.secret)

    def wrap(self, data_key: bytes) -> WrappedKey:
        """`data_key` (32 bytes) as a record may carry it."""
        if len(data_key) != KEY_BYTES:
            raise Internal(f"a data key has {len(data_key)} bytes instead of {KEY_BYTES}")
        wrapped = aes_key_wrap(self._derive(_INFO_WRAP), data_key)
        return WrappedKey(id=self.id, wrapped=base64.b64encode(wrapped).decode())

    def unwrap(self, wrapped: WrappedKey) -> bytes:
        """The data key inside; DataDamaged where it was changed or another key wrapped it."""
        try:
            sealed = base64.b64decode(wrapped.wrapped, validate=True)
            data_key = aes_key_unwrap(self._derive(_INFO_WRAP), sealed)
        except (ValueError, InvalidUnwrap) as error:
            raise self._unusable() from error
        if len(data_key) != KEY_BYTES:
            raise self._unusable()
        return data_key

    def _unusable(self) -> DataDamaged:
        return DataDamaged(
            f"the backup's data key can't be unwrapped with the master key {self.id}: "
            "the record was changed, or the key file holds another key"
        )

    def mac(self, line: bytes) -> str:
        """HMAC-SHA256 of `line` in lower-case hex."""
        return hmac.new(self._derive(_INFO_MAC), line, hashlib.sha256).hexdigest()


def parse_key_text(key_id: str, text: str) -> MasterKey:
    """The master key in the text of a key file: base64 of 32 bytes. KeyUnusable otherwise."""
    try:
        secret = base64.b64decode(text.strip(), validate=True)
    except (ValueError, binascii.Error):
        # the cause could quote a part of the secret
        raise KeyUnusable(f"the file of master key {key_id[:80]!r} is not base64") from None
    return MasterKey(key_id, secret)


def key_text(secret: bytes) -> str:
    """What a key file holds: base64 of the secret, without a newline."""
    return base64.b64encode(secret).decode()


class Keyring:
    """The master keys at hand; `active` is the one that new backups use."""

    def __init__(self, keys: Mapping[str, MasterKey], active: str) -> None:
        """KeyUnusable where no key has the id `active`."""
        if active not in keys:
            raise KeyUnusable(
                f"the active master key {active!r} is not among the key files",
                hint="put its file into [keys] folder, or correct [keys] active",
            )
        self._keys = dict(keys)
        self.active = self._keys[active]

    def unwrap(self, wrapped: Sequence[WrappedKey]) -> bytes:
        """The data key, by the first of `wrapped` whose master key is here.

        KeyNotHere, with the ids that would do, where none is; DataDamaged as in MasterKey.
        """
        for candidate in wrapped:
            if candidate.id in self._keys:
                return self._keys[candidate.id].unwrap(candidate)
        missing = ", ".join(repr(candidate.id[:64]) for candidate in wrapped[:10]) or "none named"
        raise KeyNotHere(f"no master key here opens this backup; it needs one of: {missing}")

    def sign(self, line: bytes) -> bytes:
        """The two lines of a record object: `line`, and the MAC over its exact bytes."""
        if b"\n" in line:
            raise Internal("a record's JSON must be one line")
        return b'%s\n{"key_id": "%s", "mac": "%s"}\n' % (
            line,
            self.active.id.encode(),
            self.active.mac(line).encode(),
        )

    def check(self, raw: bytes) -> tuple[RecordState, bytes]:
        """Whether a record object is as it was signed, and its first line in any case."""
        line, _, seal = raw.partition(b"\n")
        match = _SEAL.fullmatch(seal)
        if not match:
            return RecordState.BAD, line
        key = self._keys.get(match[1].decode())
        if key is None:
            return RecordState.KEY_NOT_HERE, line
        same = hmac.compare_digest(key.mac(line).encode(), match[2])
        return (RecordState.OK if same else RecordState.BAD), line
