"""Master and recovery keys: wrapping the data keys of backups, vouching for their records.

A master key never touches data. HKDF-SHA256 (RFC 5869, no salt) derives two keys of 32
bytes from it, under the info strings below: one wraps data keys (AES key wrap, RFC 3394),
the other is the HMAC-SHA256 key of records. Byte by byte: docs/format.md.

A recovery key is the public half of an RSA pair (RSAES-OAEP, RFC 8017, with SHA-256). The
private half stays off the database's machine and opens data keys there; it signs nothing.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.rsa import (
    RSAPrivateKey,
    RSAPublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

from agent.errors import DataDamaged, Internal, KeyNotHere, KeyUnusable
from agent.keys.ids import check_key_id
from agent.model import WrappedKey

KEY_BYTES: Final = 32
RSA_BITS: Final = 3072
# The largest that is taken: each doubling makes the private operation some seven times slower.
_RSA_MOST_BITS: Final = 8192
_MASTER: Final = "A256KW"
_RECOVERY: Final = "RSA-OAEP-256"
_MAKE_RECOVERY: Final = "make one with: backup-agent keygen --recovery ID --private FILE"
_INFO_WRAP: Final = b"backup-agent v1 wrap"
_INFO_MAC: Final = b"backup-agent v1 mac"
_SHOWN_DIGITS: Final = 16
# Entries of one key in a record that nobody vouches for; a real one has one.
_TRIED: Final = 3
_SEAL: Final = re.compile(rb'\{"key_id": "([A-Za-z0-9._-]{1,64})", "mac": "([0-9a-f]{64})"\}\n')


class RecordState(StrEnum):
    """Whether a record is as it was written.

    `key-not-here` and `other-key` mean that it can't be told here: the key of that id is missing,
    or is another one of the same id.
    """

    OK = "ok"
    BAD = "bad"
    KEY_NOT_HERE = "key-not-here"
    OTHER_KEY = "other-key"


def _data_key(data_key: bytes) -> bytes:
    if len(data_key) != KEY_BYTES:
        raise Internal(f"a data key has {len(data_key)} bytes instead of {KEY_BYTES}")
    return data_key


@dataclass(frozen=True)
class MasterKey:
    """One master key: a name and 32 secret bytes. KeyUnusable where either can't be one."""

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
        """How the SHA-256 on the key's page in escrow begins; it gives no random key away."""
        return fingerprint(key_text(self.secret).encode())[:_SHOWN_DIGITS]

    def wrap(self, data_key: bytes) -> WrappedKey:
        """`data_key` (32 bytes) as a record may carry it."""
        wrapped = aes_key_wrap(self._wrapping_key, _data_key(data_key))
        return WrappedKey(id=self.id, wrapped=base64.b64encode(wrapped).decode())

    def unwrap(self, wrapped: WrappedKey) -> bytes:
        """The data key inside; DataDamaged where it was changed or another key wrapped it."""
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
        """HMAC-SHA256 of `line` in lower-case hex."""
        return hmac.new(self._mac_key, line, hashlib.sha256).hexdigest()


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


def fingerprint(text: bytes) -> str:
    """SHA-256 in hex of a key's text, to compare a copy with; it gives no random key away."""
    return hashlib.sha256(text).hexdigest()


def _oaep() -> OAEP:
    return OAEP(mgf=MGF1(SHA256()), algorithm=SHA256(), label=None)


@dataclass(frozen=True)
class RecoveryKey:
    """The public half of a recovery key: it closes data keys and can't open them."""

    id: str
    public: RSAPublicKey = field(repr=False)

    def __post_init__(self) -> None:
        check_key_id(self.id)
        if not RSA_BITS <= self.public.key_size <= _RSA_MOST_BITS:
            raise KeyUnusable(
                f"the recovery key {self.id} has {self.public.key_size} bits; "
                f"{RSA_BITS} to {_RSA_MOST_BITS} are taken",
                hint=_MAKE_RECOVERY,
            )

    def wrap(self, data_key: bytes) -> WrappedKey:
        """`data_key` (32 bytes) as a record may carry it; other bytes each time."""
        wrapped = self.public.encrypt(_data_key(data_key), _oaep())
        text = base64.b64encode(wrapped).decode()
        return WrappedKey(id=self.id, alg=_RECOVERY, wrapped=text)

    def pem(self) -> bytes:
        """The file `<id>.pub`: a SubjectPublicKeyInfo in PEM."""
        return self.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True)
class RecoverySecret:
    """The private half of a recovery key, for a machine that holds no database."""

    id: str
    private: RSAPrivateKey = field(repr=False)

    @classmethod
    def make(cls, key_id: str) -> "RecoverySecret":
        """A fresh pair; takes some tenths of a second."""
        check_key_id(key_id)
        return cls(key_id, generate_private_key(65537, RSA_BITS))

    @property
    def public(self) -> RecoveryKey:
        return RecoveryKey(self.id, self.private.public_key())

    def unwrap(self, wrapped: WrappedKey) -> bytes:
        """The data key inside; DataDamaged where it was changed or is another key's."""
        try:
            sealed = base64.b64decode(wrapped.wrapped, validate=True)
            return _data_key(self.private.decrypt(sealed, _oaep()))
        except (ValueError, Internal) as error:
            raise DataDamaged(
                f"the backup's data key can't be unwrapped with the recovery key {self.id}: "
                "the record was changed, or this is the private half of another key"
            ) from error

    def pem(self, passphrase: bytes = b"") -> bytes:
        """PKCS #8 in PEM, encrypted where there is a passphrase."""
        sealing: KeySerializationEncryption = NoEncryption()
        if passphrase:
            sealing = BestAvailableEncryption(passphrase)
        return self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, sealing)


def parse_recovery_key(key_id: str, text: bytes) -> RecoveryKey:
    """The recovery key in a file `<id>.pub`; KeyUnusable where it is none."""
    if b"PRIVATE KEY" in text:
        raise KeyUnusable(
            f"the file of recovery key {key_id[:80]!r} holds the private half",
            hint="move it off this machine, and put the public half here: openssl pkey -pubout",
        )
    try:
        public = load_pem_public_key(text)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyUnusable(
            f"the file of recovery key {key_id[:80]!r} is no public key in PEM",
            hint=_MAKE_RECOVERY,
        ) from error
    if not isinstance(public, RSAPublicKey):
        raise KeyUnusable(f"the recovery key {key_id[:80]!r} is not of RSA", hint=_MAKE_RECOVERY)
    return RecoveryKey(key_id, public)


class Keyring:
    """The keys at hand; `active` is the master key that new backups use.

    `recovery` are the recovery keys that each data key is wrapped by besides.
    """

    def __init__(
        self,
        keys: Mapping[str, MasterKey],
        active: str,
        recovery: Sequence[RecoveryKey] = (),
    ) -> None:
        """KeyUnusable where no key has the id `active`."""
        self._keys = dict(keys)
        self.recovery = tuple(recovery)
        if active not in keys:
            raise KeyUnusable(
                f"the active master key {active!r} is not among the key files",
                hint="put its file into [keys] folder, or correct [keys] active",
            )
        self.active = self._keys[active]

    def key(self, key_id: str) -> MasterKey:
        """The master key `key_id`; KeyNotHere where it is not at hand."""
        if key_id not in self._keys:
            raise KeyNotHere(f"the master key {key_id[:64]!r} is not here")
        return self._keys[key_id]

    def _key(self, key_id: str | None) -> MasterKey:
        return self.active if key_id is None else self.key(key_id)

    def wrap_all(self, data_key: bytes, key_id: str | None = None) -> tuple[WrappedKey, ...]:
        """All entries of a record's `keys`: by a master key (the active one) and each recovery key.

        KeyNotHere where the master key `key_id` is not here.
        """
        master = self._key(key_id).wrap(data_key)
        return (master, *(recovery.wrap(data_key) for recovery in self.recovery))

    def unwrap(self, wrapped: Sequence[WrappedKey]) -> bytes:
        """The data key, by the first of `wrapped` whose master key is here.

        KeyNotHere, with the ids that would do, where none is; DataDamaged as in MasterKey.
        """
        masters = [entry for entry in wrapped if entry.alg == _MASTER]
        for candidate in masters:
            if candidate.id in self._keys:
                return self._keys[candidate.id].unwrap(candidate)
        missing = ", ".join(repr(candidate.id[:64]) for candidate in masters[:10]) or "none named"
        raise KeyNotHere(f"no master key here opens this backup; it needs one of: {missing}")

    def sign(self, line: bytes, key_id: str | None = None) -> bytes:
        """The two lines of a record object: `line`, and the MAC over its exact bytes.

        Signed by the master key `key_id`, the active one by default; KeyNotHere without it.
        """
        if b"\n" in line:
            raise Internal("a record's JSON must be one line")
        key = self._key(key_id)
        return b'%s\n{"key_id": "%s", "mac": "%s"}\n' % (
            line,
            key.id.encode(),
            key.mac(line).encode(),
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

    def other_key(self, raw: bytes, wrapped: Sequence[WrappedKey]) -> MasterKey | None:
        """Return the key here that has the id of a record's signer, and is another key.

        For a record object that fails its MAC, with the wrapped data keys that it names: they
        don't open either then. Somebody who changed both looks the same.
        """
        key = self._keys.get(signer(raw) or "")
        entries = [entry for entry in wrapped if key and (entry.id, entry.alg) == (key.id, _MASTER)]
        if key is None or not entries:
            return None
        return None if any(_opens(key, entry) for entry in entries[:_TRIED]) else key


def _opens(key: MasterKey, wrapped: WrappedKey) -> bool:
    try:
        key.unwrap(wrapped)
    except DataDamaged:
        return False
    return True


def signer(raw: bytes) -> str | None:
    """The id of the master key that a record object says it was signed by; None without one."""
    match = _SEAL.fullmatch(raw.partition(b"\n")[2])
    return match[1].decode() if match else None
