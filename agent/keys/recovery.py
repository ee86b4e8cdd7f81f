"""Recovery keys, a second way to decrypt a backup's data key, away from the database's machine.

The agent has the public half of an RSA key pair (RSAES-OAEP, RFC 8017, with SHA-256). The private
half stays on another machine and decrypts data keys there. A recovery key signs nothing.
"""

import base64
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.rsa import (
    RSAPrivateKey,
    RSAPublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

from agent.errors import DataDamaged, Internal, KeyUnusable
from agent.keys.ids import check_key_id
from agent.keys.master import checked
from agent.model import WrappedKey

RSA_BITS: Final = 3072
# The largest size that is accepted, because each doubling of the size makes the private operation
# about seven times slower.
_RSA_MOST_BITS: Final = 8192
_RECOVERY: Final = "RSA-OAEP-256"
_MAKE_RECOVERY: Final = "make one with: backup-agent keygen --recovery ID --private FILE"


def _oaep() -> OAEP:
    return OAEP(mgf=MGF1(SHA256()), algorithm=SHA256(), label=None)


@dataclass(frozen=True)
class RecoveryKey:
    """The public half of a recovery key, which encrypts data keys and can't decrypt them."""

    id: str
    public: RSAPublicKey = field(repr=False)

    def __post_init__(self) -> None:
        check_key_id(self.id)
        if not RSA_BITS <= self.public.key_size <= _RSA_MOST_BITS:
            raise KeyUnusable(
                f"the recovery key {self.id} has {self.public.key_size} bits: "
                f"it must have {RSA_BITS} to {_RSA_MOST_BITS}",
                hint=_MAKE_RECOVERY,
            )

    def wrap(self, data_key: bytes) -> WrappedKey:
        """Return `data_key` (32 bytes) in encrypted form, as a record carries it.

        The encryption is randomised, so each call returns other bytes.
        """
        wrapped = self.public.encrypt(checked(data_key), _oaep())
        text = base64.b64encode(wrapped).decode()
        return WrappedKey(id=self.id, alg=_RECOVERY, wrapped=text)

    def pem(self) -> bytes:
        """Return the content of the file `<id>.pub`, a SubjectPublicKeyInfo in PEM."""
        return self.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True)
class RecoverySecret:
    """The private half of a recovery key, for a machine without the database."""

    id: str
    private: RSAPrivateKey = field(repr=False)

    @classmethod
    def make(cls, key_id: str) -> "RecoverySecret":
        """Make a new key pair, which takes some tenths of a second."""
        check_key_id(key_id)
        return cls(key_id, generate_private_key(65537, RSA_BITS))

    @property
    def public(self) -> RecoveryKey:
        return RecoveryKey(self.id, self.private.public_key())

    def unwrap(self, wrapped: WrappedKey) -> bytes:
        """Return the data key (32 bytes) in `wrapped`.

        Raises:
            DataDamaged: `wrapped` was changed, or it was made for another key.
        """
        try:
            sealed = base64.b64decode(wrapped.wrapped, validate=True)
            return checked(self.private.decrypt(sealed, _oaep()))
        except (ValueError, Internal) as error:
            raise DataDamaged(
                f"the backup's data key can't be unwrapped with the recovery key {self.id}: "
                "the record was changed, or this is the private half of another key"
            ) from error

    def pem(self, passphrase: bytes = b"") -> bytes:
        """Return the private half as PKCS #8 in PEM, encrypted if `passphrase` is not empty."""
        sealing: KeySerializationEncryption = NoEncryption()
        if passphrase:
            sealing = BestAvailableEncryption(passphrase)
        return self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, sealing)


def parse_recovery_key(key_id: str, text: bytes) -> RecoveryKey:
    """Return the recovery key in the content of a file `<id>.pub`.

    Raises:
        KeyUnusable: `text` is not an RSA public key in PEM, its size is not accepted, or `key_id`
            is not valid.
    """
    if b"PRIVATE KEY" in text:
        raise KeyUnusable(
            f"the file of recovery key {key_id[:80]!r} holds the private half",
            hint="move it off this machine, and put the public half here: openssl pkey -pubout",
        )
    try:
        public = load_pem_public_key(text)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyUnusable(
            f"the file of recovery key {key_id[:80]!r} is not a public key in PEM",
            hint=_MAKE_RECOVERY,
        ) from error
    if not isinstance(public, RSAPublicKey):
        raise KeyUnusable(f"the recovery key {key_id[:80]!r} is not RSA", hint=_MAKE_RECOVERY)
    return RecoveryKey(key_id, public)
