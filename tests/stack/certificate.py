"""Certificates for servers and clients on loopback, and the authorities that issue them."""

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HOUR = datetime.timedelta(hours=1)
_PEM = serialization.Encoding.PEM
LOOPBACK = ("127.0.0.1", "localhost")


class Authority:
    """A certificate authority with its files in `folder`.

    An authority with a `parent` is an intermediate one. `file` has the certificate of this
    authority alone.
    """

    def __init__(self, folder: Path, name: str = "test authority", parent: Self | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._parent = parent
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        issuer = parent or self
        self.certificate = (
            _draft(self._name, issuer._name, self._key, (-HOUR, HOUR))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(issuer._key, hashes.SHA256())
        )
        self.file = folder / f"{name.replace(' ', '-')}.pem"
        self.file.write_bytes(self.certificate.public_bytes(_PEM))

    def issue(
        self,
        name: str,
        *,
        names: Sequence[str] = LOOPBACK,
        valid: tuple[datetime.timedelta, datetime.timedelta] = (-HOUR, HOUR),
        client: bool = False,
        whole: bool = True,
    ) -> Path:
        """Issue a certificate, and return a private PEM file with its key and the certificate.

        `name` is the common name and the file's name. `names` are the alternative names. `valid`
        is the time of its validity from now. The file has the intermediate certificates, too, if
        `whole` is true.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        use = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        draft = _draft(_name(name), self._name, key, valid).add_extension(
            x509.ExtendedKeyUsage([use]), critical=False
        )
        if names and not client:
            draft = draft.add_extension(
                x509.SubjectAlternativeName([_general(one) for one in names]), critical=False
            )
        chain = [draft.sign(self._key, hashes.SHA256())]
        if whole and self._parent:
            chain.append(self.certificate)
        return _write(self.folder / f"{name}.pem", key, chain)


def self_signed(path: Path) -> Path:
    """Write key and certificate, valid for an hour, into one PEM file at `path`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("127.0.0.1")
    certificate = (
        _draft(name, name, key, (-HOUR, HOUR))
        .add_extension(x509.SubjectAlternativeName([_general("127.0.0.1")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _write(path, key, [certificate])


def _draft(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    valid: tuple[datetime.timedelta, datetime.timedelta],
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + valid[0])
        .not_valid_after(now + valid[1])
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write(path: Path, key: ec.EllipticCurvePrivateKey, chain: list[x509.Certificate]) -> Path:
    private = key.private_bytes(
        _PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.touch(mode=0o600)
    path.write_bytes(private + b"".join(one.public_bytes(_PEM) for one in chain))
    path.chmod(0o600)
    return path
