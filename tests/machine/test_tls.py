"""Whom the agent trusts, and what it says about each fault of TLS, on both edges.

Each fault is a real handshake with a listener that has the faulty certificate.
"""

import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.broker.amqp import BrokerSettings
from agent.broker.client import ControlClient
from agent.errors import (
    AgentError,
    BrokerUnreachable,
    BrokerUntrusted,
    ConfigInvalid,
    LoginRejected,
    StoreRedirected,
    StoreUnreachable,
    StoreUntrusted,
    TokenRefused,
)
from agent.machine.tls import ClientCertificate, client_context, system_bundle
from agent.store.swift import connection
from agent.store.swift.login import AuthV1
from agent.store.swift.store import SwiftSettings, SwiftStore
from agent.tasks.outcome import may_answer_later
from tests.stack.certificate import HOUR, Authority, self_signed
from tests.stack.process import free_port
from tests.stack.tls_relay import relayed

OPENSSL_CONF = """
openssl_conf = whole
[whole]
ssl_conf = tls
[tls]
system_default = weak
[weak]
CipherString = DEFAULT:@SECLEVEL=0
MinProtocol = TLSv1
"""
# Prints how a context of the agent checks a server.
CHECKS = """
from agent.machine.tls import client_context
made = client_context("store", None)
print(made.security_level, made.minimum_version, made.verify_mode, made.check_hostname)
"""


class Authorities(NamedTuple):
    """The authority that the agent trusts, one below it, and one that the agent doesn't know."""

    trusted: Authority
    middle: Authority
    unknown: Authority


@pytest.fixture(scope="module")
def authorities(scratch: Path) -> Authorities:
    trusted = Authority(scratch / "tls" / "trusted")
    return Authorities(
        trusted,
        Authority(scratch / "tls" / "trusted", "middle", trusted),
        Authority(scratch / "tls" / "unknown"),
    )


def to_broker(port: int, ca_file: Path | None, host: str = "127.0.0.1") -> None:
    settings = BrokerSettings(
        f"amqps://user@{host}:{port}/vhost", "word", ca_file=ca_file, connect_seconds=5
    )
    with ControlClient(settings):
        pass


def to_store(port: int, ca_file: Path | None, host: str = "127.0.0.1", attempts: int = 5) -> None:
    store = SwiftStore(
        SwiftSettings(
            AuthV1(f"https://{host}:{port}/auth/v1.0", "user", "word"),
            container="any",
            timeout_seconds=5,
            attempts=attempts,
            backoff_seconds=0.01,
            ca_file=str(ca_file) if ca_file else None,
        )
    )
    try:
        store.open()
    finally:
        store.close()


Edge = Callable[[int, Path | None], None]
BOTH = pytest.mark.parametrize("edge", [to_broker, to_store])


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """Yield the port of a listener without TLS that answers each client and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client, suppress(OSError):
                    client.recv(1 << 16)
                    client.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def failure(edge: Edge, port: int, ca_file: Path | None) -> AgentError:
    with pytest.raises(AgentError) as caught:
        edge(port, ca_file)
    return caught.value


Issue = Callable[[Authorities, Path], Path]
FAULTS: dict[str, tuple[Issue, str, str]] = {
    "wrong name": (
        lambda known, _: known.trusted.issue("name", names=["db.example.com", "10.0.0.1"]),
        "certificate is not for 127.0.0.1",
        "with 127.0.0.1 among its alternative names",
    ),
    "expired": (
        lambda known, _: known.trusted.issue("old", valid=(-2 * HOUR, -HOUR)),
        "has expired",
        "date -u",
    ),
    "not valid yet": (
        lambda known, _: known.trusted.issue("early", valid=(HOUR, 2 * HOUR)),
        "is not valid yet",
        "check the clock",
    ),
    "unknown authority": (
        lambda known, _: known.unknown.issue("foreign"),
        "comes from an unknown authority",
        "] ca_file",
    ),
    "self-signed": (
        lambda _, folder: self_signed(folder / "own.pem"),
        "is self-signed",
        "] ca_file",
    ),
    "no intermediate": (
        lambda known, _: known.middle.issue("leaf", whole=False),
        "comes from an unknown authority",
        "may not send the intermediate certificates",
    ),
    "for clients": (
        lambda known, _: known.trusted.issue("client", client=True),
        "has a wrong purpose",
        "serverAuth",
    ),
}


@BOTH
@pytest.mark.parametrize("fault", FAULTS)
def test_a_certificate_that_is_refused(
    edge: Edge, fault: str, authorities: Authorities, tmp_path: Path
) -> None:
    """There is one attempt and one clear error, which names the setting of that edge."""
    issue, says, cure = FAULTS[fault]
    with relayed(free_port(), issue(authorities, tmp_path)) as listener:
        error = failure(edge, listener.port, authorities.trusted.file)
        assert type(error) is (BrokerUntrusted if edge is to_broker else StoreUntrusted)
        assert f"127.0.0.1:{listener.port}: the server's certificate" in str(error)
        assert says in str(error)
        assert cure in error.hint
        section = "[broker]" if edge is to_broker else "[store]"
        assert ("[" not in error.hint) or section in error.hint
        assert not error.retryable
        assert listener.greetings == 1


@pytest.mark.parametrize("edge", [to_broker, to_store])
def test_a_common_name_is_no_name_of_a_server(
    edge: Callable[[int, Path | None, str], None], authorities: Authorities
) -> None:
    certificate = authorities.trusted.issue("localhost", names=())
    with (
        relayed(free_port(), certificate) as listener,
        pytest.raises((BrokerUntrusted, StoreUntrusted), match="is not for localhost"),
    ):
        edge(listener.port, authorities.trusted.file, "localhost")


@BOTH
def test_an_intermediate_authority_that_the_server_sends(
    edge: Edge, authorities: Authorities
) -> None:
    """Behind the relay nothing answers, so the failure comes after the handshake."""
    with relayed(free_port(), authorities.middle.issue("whole")) as listener:
        error = failure(edge, listener.port, authorities.trusted.file)
        assert type(error) in (BrokerUnreachable, StoreUnreachable)
        refused = failure(edge, listener.port, authorities.middle.file)
        assert "doesn't end in a trusted root" in str(refused)
        assert "append the certificate of the root" in refused.hint


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
@BOTH
def test_other_faults_of_tls(edge: Edge, authorities: Authorities) -> None:
    ca_file = authorities.trusted.file
    good = authorities.trusted.issue("good")
    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        error = failure(edge, port, ca_file)
        assert "the server's answer is not TLS" in str(error)
        assert f"the port {port} may be one without TLS" in error.hint
        assert error.retryable
    with answering(b"") as port:
        error = failure(edge, port, ca_file)
        assert "ended the TLS connection without a reason" in str(error)
        assert error.retryable
    with relayed(free_port(), good, ssl.TLSVersion.TLSv1_1) as listener:
        error = failure(edge, listener.port, ca_file)
        assert "speaks no version of TLS that is allowed" in str(error)
        assert "switch TLS 1.2 or 1.3 on" in error.hint
    with relayed(free_port(), good, ssl.TLSVersion.TLSv1_2, ca_file) as listener:
        error = failure(edge, listener.port, ca_file)
        assert "demands a certificate of the agent" in str(error)
        cure = "certificate_file and key_file" if edge is to_broker else "needs no certificate"
        assert cure in error.hint


@BOTH
def test_the_environment_adds_no_authority_and_no_detour(
    edge: Edge,
    authorities: Authorities,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each variable would make some library trust the server, or send the connection elsewhere."""
    folder = tmp_path / "hashed"
    folder.mkdir()
    ca_file, keys = authorities.unknown.file, tmp_path / "keys.log"
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(ca_file))
    monkeypatch.setenv("SSL_CERT_DIR", str(folder))
    monkeypatch.setenv("PYTHONHTTPSVERIFY", "0")
    monkeypatch.setenv("SSLKEYLOGFILE", str(keys))
    with (
        relayed(free_port(), authorities.unknown.issue("env")) as listener,
        socket.create_server(("127.0.0.1", 0)) as proxy,
    ):
        proxy.setblocking(False)
        for name in ("https_proxy", "http_proxy", "all_proxy"):
            for spelling in (name, name.upper()):
                monkeypatch.setenv(spelling, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.setenv("NO_PROXY", "")
        for ca in (None, authorities.trusted.file):
            assert "unknown authority" in str(failure(edge, listener.port, ca))
        # with the right authority, the handshake succeeds, and its keys are written nowhere
        assert "certificate" not in str(failure(edge, listener.port, ca_file))
        assert listener.greetings >= 3
        # and no library adds its own authorities to the context
        assert connection._tls(ca_file).cert_store_stats()["x509_ca"] == 1
        with pytest.raises(BlockingIOError):
            proxy.accept()
    assert not keys.exists()


def test_the_authorities_of_the_system_are_trusted_and_those_of_a_file_alone(
    authorities: Authorities,
) -> None:
    """The number of authorities tells which ones are loaded."""
    bundle = system_bundle()
    assert bundle is not None, "install ca-certificates"
    system = client_context("broker", None).cert_store_stats()["x509_ca"]
    # a certificate with two names of files is counted once
    assert 50 < system <= bundle.read_text().count("BEGIN CERTIFICATE")
    assert client_context("store", authorities.trusted.file).cert_store_stats()["x509_ca"] == 1


@pytest.mark.parametrize("section", ["broker", "store"])
def test_a_ca_file_that_can_not_be_used(
    section: str, tmp_path: Path, authorities: Authorities
) -> None:
    missing, no_pem = tmp_path / "missing.pem", tmp_path / "no.pem"
    no_pem.write_text("no certificate")
    for path, says in ((missing, "No such file"), (no_pem, "holds no certificate in PEM")):
        with pytest.raises(ConfigInvalid, match=rf"^\[{section}\] ca_file {path}.*{says}"):
            client_context("broker" if section == "broker" else "store", path)
    with pytest.raises(StoreUntrusted, match=f"ca_file.*{missing}"):
        to_store(free_port(), missing)


def test_a_renewed_ca_file_is_read_without_a_restart(
    authorities: Authorities, tmp_path: Path
) -> None:
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(authorities.trusted.file.read_bytes())
    store = SwiftStore(
        SwiftSettings(
            AuthV1("https://127.0.0.1:1/auth", "u", "k"), container="c", ca_file=str(ca_file)
        )
    )
    with relayed(free_port(), authorities.unknown.issue("renewed")) as listener:
        for edge in (to_broker, to_store):
            assert "unknown authority" in str(failure(edge, listener.port, ca_file))
        draft = tmp_path / "draft"
        draft.write_bytes(authorities.unknown.file.read_bytes())
        draft.replace(ca_file)
        for edge in (to_broker, to_store):
            assert "certificate" not in str(failure(edge, listener.port, ca_file))
    store.close()


def own(certificate: Path, key: Path) -> ClientCertificate:
    return ClientCertificate(certificate, key, lambda: None)


def test_a_certificate_of_the_agent_that_can_not_be_used(
    authorities: Authorities, tmp_path: Path
) -> None:
    one = authorities.trusted.issue("one", client=True)
    two = authorities.trusted.issue("two", client=True)
    words, missing = tmp_path / "words", tmp_path / "missing"
    words.write_text("words")
    encrypted = tmp_path / "encrypted.key"
    encrypt = f"openssl ec -aes256 -passout pass:word -in {one} -out {encrypted}".split()
    subprocess.run(encrypt, check=True, capture_output=True)
    assert "ENCRYPTED" in encrypted.read_text()
    for certificate, key, says in (
        (one, two, f"key_file: {two} is not the key of the certificate in {one}"),
        (words, one, f"certificate_file: {words} holds no certificate in PEM"),
        (missing, one, f"certificate_file: {missing} can't be read: No such file"),
        (one, words, f"key_file: {words} holds no private key in PEM"),
        (one, missing, f"key_file: {missing} can't be read: No such file"),
        (one, encrypted, f"key_file: {encrypted} is encrypted with a passphrase"),
    ):
        with pytest.raises(ConfigInvalid) as caught:
            client_context("broker", authorities.trusted.file, own(certificate, key))
        assert str(caught.value).startswith(f"[broker] {says}")
        assert caught.value.hint
    assert own(one, one).expires() > datetime.now(UTC)
    client_context("broker", authorities.trusted.file, own(one, one))


def test_the_configuration_of_openssl_weakens_no_check(tmp_path: Path) -> None:
    """OpenSSL reads the variable at the start of the process."""
    (tmp_path / "openssl.cnf").write_text(OPENSSL_CONF)
    weak = {**os.environ, "OPENSSL_CONF": str(tmp_path / "openssl.cnf")}
    argv = [sys.executable, "-c", CHECKS]
    found = [subprocess.check_output(argv, env=one, text=True) for one in (os.environ, weak)]
    assert found[0] == found[1]
    assert found[0].startswith("2 ")


def test_a_refused_certificate_is_no_answer_to_a_request(authorities: Authorities) -> None:
    """A commit that waits for an answer must go on waiting."""
    with relayed(free_port(), authorities.unknown.issue("unanswered")) as listener:
        error = failure(to_store, listener.port, authorities.trusted.file)
    assert isinstance(error, StoreUntrusted)
    assert not error.without_effect
    for one in (error, LoginRejected("a page"), StoreRedirected("a page"), TokenRefused("401")):
        assert may_answer_later(one)


def test_a_broken_ca_file_leaves_the_earlier_one_in_use(
    authorities: Authorities, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(authorities.trusted.file.read_bytes())
    with relayed(free_port(), authorities.trusted.issue("kept")) as listener:
        assert not isinstance(failure(to_store, listener.port, ca_file), StoreUntrusted)
        ca_file.write_text("half of a certif")
        for _ in range(2):
            assert not isinstance(failure(to_store, listener.port, ca_file), StoreUntrusted)
    assert caplog.text.count("the earlier authorities stay in use") == 1


def test_threads_share_a_context_that_nobody_changes() -> None:
    """urllib3 sets the protocols of each connection, which OpenSSL may be reading."""
    context = client_context("store", None)
    assert type(context).set_alpn_protocols is not ssl.SSLContext.set_alpn_protocols
    context.set_alpn_protocols(["http/1.1"])
