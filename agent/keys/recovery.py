"""Recovery keys: a second way to a backup's data key, which is not on the database's machine.

The agent holds the public half of an RSA pair (RSAES-OAEP, RFC 8017, with SHA-256). The private
half stays elsewhere and opens data keys there. It signs nothing.
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
# The largest that is taken: each doubling makes the private operation some seven times slower.
_RSA_MOST_BITS: Final = 8192
_RECOVERY: Final = "RSA-OAEP-256"
_MAKE_RECOVERY: Final = "make one with: backup-agent keygen --recovery ID --private FILE"


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
        wrapped = self.public.encrypt(checked(data_key), _oaep())
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
            return checked(self.private.decrypt(sealed, _oaep()))
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
