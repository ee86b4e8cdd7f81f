"""TLS to the broker and to the store: whom the agent trusts, and why a connection failed.

The environment changes nothing here. OpenSSL's usual defaults would follow SSL_CERT_FILE and
SSL_CERT_DIR, and Python's would write the session keys into SSLKEYLOGFILE.
"""

import datetime
import re
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, NoReturn

from agent.errors import ConfigInvalid

if TYPE_CHECKING:
    from cryptography import x509

Section = Literal["broker", "store"]

# The files with all authorities of a system: of Debian, and of Red Hat. The file that was built
# into OpenSSL comes first.
_BUNDLES: Final = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
_SECURITY_LEVEL: Final = 2  # of OpenSSL: no keys of less than 112 bits
_LONGEST_FILE: Final = 1 << 20  # bytes of a certificate's file


class _Finding(NamedTuple):
    """What results of a verification mean, and the cure.

    `codes` are X509_V_ERR_* (openssl-verification-options(1)). The texts are templates.
    """

    codes: tuple[int, ...]
    reason: str
    cure: str


_UNKNOWN_CURE: Final = (
    "name the file with the certificate of its authority in [{section}] ca_file. If it is there, "
    "the server may not send the intermediate certificates: append them to its own certificate; "
    "{look}"
)
_FINDINGS: Final = (
    _Finding(
        (62, 64),  # a host name, an IP address
        "the server's certificate is not for {host}",
        "use a name of the certificate in [{section}] url{or_login}, or give the server a "
        "certificate with {host} among its alternative names; {look}",
    ),
    _Finding(
        (10,),
        "the server's certificate, or the one of its authority, has expired",
        "give the server a valid certificate. If this machine's clock is ahead (date -u), correct "
        "it; {look}",
    ),
    _Finding(
        (9,),
        "the server's certificate, or the one of its authority, is not valid yet",
        "check the clock of this machine (date -u), and that of the machine that made the "
        "certificate; {look}",
    ),
    _Finding((18,), "the server's certificate is self-signed", _UNKNOWN_CURE),
    # the signature doesn't fit, the root isn't trusted, or the issuer isn't known
    _Finding(
        (7, 19, 20, 21), "the server's certificate comes from an unknown authority", _UNKNOWN_CURE
    ),
    _Finding(
        (2,),  # an intermediate authority is trusted, but its issuer is not known
        "the chain of the server's certificate doesn't end in a trusted root",
        "append the certificate of the root to [{section}] ca_file, which has an intermediate one "
        "only",
    ),
    _Finding(
        (24, 26, 79),  # not an authority, not for a server, no CA
        "the server's certificate has a wrong purpose: {message}",
        "make a certificate for a server (extendedKeyUsage serverAuth), signed by an authority "
        "(basicConstraints CA:TRUE)",
    ),
)
_OTHER_FINDING: Final = _Finding(
    (),
    "the server's certificate is refused: {message}",
    "give the server another certificate; {look}",
)

# Reasons that OpenSSL gives for an answer that isn't TLS.
_NOT_TLS: Final = (
    *("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"),
    *("HTTP_REQUEST", "UNKNOWN_PROTOCOL"),
)
_OLD_TLS: Final = ("UNSUPPORTED_PROTOCOL", "PROTOCOL_VERSION", "NO_PROTOCOLS_AVAILABLE")
# Alerts about the agent's own certificate, and what they say. The alert `handshake_failure` of TLS
# 1.2 may also mean that there is no common cipher.
_ALERTS: Final = {
    "ALERT_CERTIFICATE_REQUIRED": "demands a certificate of the agent",
    "ALERT_HANDSHAKE_FAILURE": "demands a certificate of the agent, or accepts none of its ciphers",
    "ALERT_UNKNOWN_CA": "doesn't know the authority of the agent's certificate",
    "ALERT_CERTIFICATE_EXPIRED": "says that the agent's certificate has expired",
    "ALERT_CERTIFICATE_REVOKED": "says that the agent's certificate was revoked",
    "ALERT_BAD_CERTIFICATE": "refuses the agent's certificate",
    "ALERT_UNSUPPORTED_CERTIFICATE": "refuses this kind of certificate of the agent",
    "ALERT_CERTIFICATE_UNKNOWN": "refuses the agent's certificate",
    "ALERT_ACCESS_DENIED": "refuses the agent's certificate",
}
# An error of pika holds that of TLS as text only.
_EOF: Final = "EOF occurred in violation of protocol"
_REASON: Final = re.compile(r"\[SSL: ([A-Z0-9_]+)\]")


@dataclass(frozen=True)
class ClientCertificate:
    """The certificate by which the agent shows itself to a server, and the certificate's key.

    `key` prefixes the names of both settings, `certificate_file` and `key_file`. `check_key` raises
    ConfigInvalid if other users can access the key's file.
    """

    file: Path
    key_file: Path
    check_key: Callable[[], object] = field(repr=False)
    key: str = "[broker] "

    def expires(self) -> datetime.datetime:
        """Return the time at which the certificate expires.

        Raises:
            ConfigInvalid: the file can't be read, or has no certificate.
        """
        return self._certificate().not_valid_after_utc

    def present(self, context: ssl.SSLContext) -> None:
        """Make `context` show the certificate to the server. Both files are read.

        Raises:
            ConfigInvalid: a file can't be read or used, the private key is encrypted, or the two
                don't belong together.
        """
        what = f"{self.key}key_file: {self.key_file}"
        self._certificate()
        self.check_key()
        try:
            context.load_cert_chain(self.file, self.key_file, password=_refuse_passphrase)
        except _PassphraseNeededError:
            raise ConfigInvalid(
                f"{what} is encrypted with a passphrase, which the agent can't enter",
                hint=f"write the key without one: umask 077; openssl pkey -in {self.key_file} "
                "-out NEW-FILE; and protect it as other secrets",
            ) from None
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ConfigInvalid(
                    f"{what} is not the key of the certificate in {self.file}",
                    hint="name the key that the certificate was made for. The first certificate in "
                    "certificate_file must be the agent's own",
                ) from error
            raise ConfigInvalid(
                f"{what} holds no private key in PEM",
                hint="the file must begin with -----BEGIN PRIVATE KEY-----",
            ) from error
        except OSError as error:
            raise ConfigInvalid(f"{what} can't be read: {error.strerror}") from error

    def _certificate(self) -> "x509.Certificate":
        from cryptography import x509  # 20 ms, and most agents have no certificate

        what = f"{self.key}certificate_file: {self.file}"
        try:
            with self.file.open("rb") as file:
                return x509.load_pem_x509_certificate(file.read(_LONGEST_FILE))
        except OSError as error:
            raise ConfigInvalid(
                f"{what} can't be read: {error.strerror}",
                hint="make it readable for the agent's OS user, or name another file",
            ) from error
        except ValueError as error:
            raise ConfigInvalid(
                f"{what} holds no certificate in PEM",
                hint="the file must hold the agent's certificate, which begins with "
                "-----BEGIN CERTIFICATE-----, and after it the intermediate ones",
            ) from error


class _PassphraseNeededError(Exception):
    """OpenSSL asked for the passphrase of a key."""


def _refuse_passphrase() -> NoReturn:
    # without this function OpenSSL would ask on the terminal
    raise _PassphraseNeededError


class _SharedContext(ssl.SSLContext):
    """A context that is ready for connections of several threads.

    urllib3 sets the protocols of each connection on the context. That frees memory that OpenSSL
    reads for the handshake of another thread. Without these protocols, servers speak HTTP/1.1.
    """

    def set_alpn_protocols(self, alpn_protocols: Iterable[str]) -> None:
        """Do nothing."""


def client_context(
    section: Section, ca_file: Path | None, certificate: ClientCertificate | None = None
) -> ssl.SSLContext:
    """Return a context that demands a trusted certificate with the server's name.

    The agent trusts the authorities in `ca_file` alone, or those of the system without `ca_file`.
    The name must be among the certificate's alternative names. The oldest version is TLS 1.2.

    Raises:
        ConfigInvalid: a file of the configuration can't be used.
    """
    # this protocol demands a trusted certificate with the right name
    context = _SharedContext(ssl.PROTOCOL_TLS_CLIENT)
    # OPENSSL_CONF may lower both, which the defaults of Debian set. A stricter one stays.
    if context.minimum_version < ssl.TLSVersion.TLSv1_2:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    if context.security_level < _SECURITY_LEVEL:
        context.set_ciphers(f"DEFAULT:@SECLEVEL={_SECURITY_LEVEL}")
    context.hostname_checks_common_name = False
    if ca_file is None:
        _trust_system(context)
    else:
        _trust(context, ca_file, f"[{section}] ca_file {ca_file}")
    if certificate is not None:
        certificate.present(context)
    return context


def _trust(context: ssl.SSLContext, ca_file: Path, what: str) -> None:
    try:
        context.load_verify_locations(cafile=ca_file)
    except ssl.SSLError as error:
        raise ConfigInvalid(
            f"{what} holds no certificate in PEM",
            hint="the file must hold the certificate of the authority, which begins with "
            "-----BEGIN CERTIFICATE-----",
        ) from error
    except OSError as error:
        raise ConfigInvalid(
            f"{what} can't be read: {error.strerror}",
            hint="name a file that the agent's OS user may read. Without this key, the agent "
            "trusts the authorities of the system",
        ) from error


def _trust_system(context: ssl.SSLContext) -> None:
    # not load_default_certs(), which follows SSL_CERT_FILE and SSL_CERT_DIR
    if bundle := system_bundle():
        with suppress(ssl.SSLError, OSError):  # an empty bundle, or none: no server is trusted
            context.load_verify_locations(cafile=bundle)
    folder = ssl.get_default_verify_paths().openssl_capath
    if Path(folder).is_dir():
        context.load_verify_locations(capath=folder)


def system_bundle() -> Path | None:
    """Return the file with the system's authorities, None if there is none."""
    built_in = ssl.get_default_verify_paths().openssl_cafile
    return next((path for path in map(Path, (built_in, *_BUNDLES)) if path.is_file()), None)


class TlsFault(NamedTuple):
    """Why a TLS connection failed, and how to fix it.

    `untrusted` is True if one side refuses the certificate of the other. Then the fault lasts until
    a certificate or a setting changes.
    """

    reason: str
    hint: str
    untrusted: bool = False


def explain(error: BaseException, section: Section, address: str) -> TlsFault | None:
    """Return the reason of a failed TLS connection to `address` (host:port).

    None if `error` has nothing to do with TLS. The error of a library may hold OpenSSL's error as
    text.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return TlsFault(*_explain_verification(error, section, address), True)
    reason = (error.reason if isinstance(error, ssl.SSLError) else None) or _reason_in(error)
    for alert, meaning in _ALERTS.items():
        if reason.endswith(alert):
            return TlsFault(f"the server {meaning}", _own_hint(section), untrusted=True)
    if reason in _NOT_TLS:
        return TlsFault(
            "the server's answer is not TLS",
            f"the port {address.rpartition(':')[2]} may be one without TLS: correct the port in "
            f"[{section}] url, or switch TLS on in the server",
        )
    if reason.endswith(_OLD_TLS):
        return TlsFault(
            "the server speaks no version of TLS that is allowed",
            "switch TLS 1.2 or 1.3 on in the server; the agent speaks no older version",
        )
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) or _EOF in repr(error)[:4096]:
        return TlsFault(
            "the server ended the TLS connection without a reason",
            "look for the reason in the server's log: it may be restarting, or have no usable "
            "certificate of its own",
        )
    if isinstance(error, ssl.SSLError):
        text = f"TLS failed: {reason or error.strerror or error}"
        return TlsFault(text, f"look for the reason in the server's log; {_look(address)}")
    return None


def _reason_in(error: BaseException) -> str:
    found = _REASON.search(repr(error)[:4096])
    return found[1] if found else ""


def _explain_verification(
    error: ssl.SSLCertVerificationError, section: Section, address: str
) -> tuple[str, str]:
    found = next((one for one in _FINDINGS if error.verify_code in one.codes), _OTHER_FINDING)
    words = {
        "host": address.rpartition(":")[0],
        "section": section,
        "or_login": " (or in the storage URL that the login returns)" if section == "store" else "",
        "message": error.verify_message,
        "look": _look(address),
    }
    return found.reason.format_map(words), found.cure.format_map(words)


def _own_hint(section: Section) -> str:
    if section == "store":
        return "use a store that needs no certificate of its clients: the agent has none for it"
    return (
        "give the agent a valid certificate for clients, of an authority that RabbitMQ knows "
        "(ssl_options.cacertfile), with [broker] certificate_file and key_file; the commands that "
        "send tasks use control_certificate_file and control_key_file: see TLS in "
        "docs/operations.md"
    )


def _look(address: str) -> str:
    return (
        f"to see it, run: openssl s_client -connect {address} -showcerts </dev/null | "
        "openssl x509 -noout -text"
    )
