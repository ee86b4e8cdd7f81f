"""Swift over TLS: accepted certificates, and a storage URL that would leave TLS."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import LoginRejected, StoreUntrusted
from agent.store.protocol import Container
from agent.store.swift.store import SwiftStore
from tests.stack.certificate import self_signed
from tests.stack.swift import SwiftServer
from tests.store.conftest import MIB, MakeStore
from tests.store.contract import md5, views

TOKEN = "token-of-a-secret-login"


@pytest.fixture(scope="module")
def certificate(scratch: Path) -> Path:
    return self_signed(scratch / "swift.pem")


@pytest.fixture(scope="module")
def server(scratch: Path, certificate: Path) -> Iterator[SwiftServer]:
    server = SwiftServer(scratch / "tls-swift", certificate=certificate)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def tls(server: SwiftServer, make_store: MakeStore, certificate: Path) -> Iterator[SwiftStore]:
    yield make_store(server, ca_file=str(certificate))
    server.clear_faults()


def test_certificates_are_checked(
    server: SwiftServer,
    make_store: MakeStore,
    tls: SwiftStore,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # the library `requests` would prefer this variable to the program's own setting
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with pytest.raises(StoreUntrusted) as caught:
        make_store(server, attempts=1).open()
    assert "ca_file" in caught.value.hint
    tls.open()
    content = os.urandom(3 * MIB)
    assert tls.put(Container.SEGMENTS, "tls", views(content)) == md5(content)
    assert tls.get(Container.SEGMENTS, "tls", 3 * MIB) == content


@pytest.mark.parametrize("scheme", ["http://", "HTTP://", "//", ""])
def test_a_login_over_tls_leads_to_no_clear_text(
    server: SwiftServer, swift: SwiftServer, tls: SwiftStore, scheme: str
) -> None:
    """No request goes to the URL in the answer, although a Swift there would accept it."""
    url = f"{scheme}127.0.0.1:{swift.port}/v1/AUTH_test"
    headers = {"X-Storage-Url": url, "X-Auth-Token": TOKEN}
    server.inject([{"match": "^/auth", "status": 200, "headers": headers, "times": 99}])
    before = len(swift.requests())
    with pytest.raises(LoginRejected, match="over TLS") as caught:
        tls.open()
    assert url in str(caught.value)
    assert "storage_url_scheme" in caught.value.hint
    assert TOKEN not in str(caught.value)
    with pytest.raises(LoginRejected, match="over TLS"):
        list(tls.list(Container.OBJECTS))
    assert len(swift.requests()) == before


def test_another_host_over_tls_is_followed(server: SwiftServer, tls: SwiftStore) -> None:
    """One login may serve accounts on many hosts. The certificate is checked there, too."""
    url = f"HTTPS://localhost:{server.port}/v1/AUTH_test"
    headers = {"X-Storage-Url": url, "X-Auth-Token": TOKEN}
    server.inject([{"match": "^/auth", "status": 200, "headers": headers}])
    assert tls.location.startswith(url)
