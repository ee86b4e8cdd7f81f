"""The Swift store on a real Swift: the contract, limits, login, secrets and the environment."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from swiftclient import client

from agent.errors import LoginRejected, StoreDenied, StoreNotFound, StoreRejected, StoreUnreachable
from agent.store.protocol import Container, ManifestEntry, Store, StoreLimits
from agent.store.swift.store import SwiftStore
from tests.stack.process import free_port, poll
from tests.stack.swift import SwiftServer
from tests.store.conftest import MIB, MakeStore, settings_for
from tests.store.contract import JoiningContract, fresh, md5, put_segments, views


class TestContract(JoiningContract):
    """The contract on a Swift that pages after 5 rows, and forgets tokens after 2 seconds."""

    @pytest.fixture
    def store(self, small_swift: SwiftServer, make_store: MakeStore) -> Store:
        store = make_store(small_swift)
        store.open()
        return store


def test_who_only_reads_makes_no_container(make_store: MakeStore, swift: SwiftServer) -> None:
    store = make_store(swift, container=f"never-{fresh()}")
    store.open(create=False)
    with pytest.raises(StoreNotFound):
        list(store.list(Container.OBJECTS))


def test_limits_are_those_of_the_store(small_swift: SwiftServer, make_store: MakeStore) -> None:
    limits = make_store(small_swift).limits()
    assert limits == StoreLimits(manifest_entries=4, object_bytes=8 * MIB, nesting=True)


def test_what_exceeds_a_limit_is_rejected_at_once(
    small_swift: SwiftServer, make_store: MakeStore
) -> None:
    store = make_store(small_swift)
    store.open()
    with pytest.raises(StoreRejected, match="413"):
        store.put(Container.SEGMENTS, fresh(), views(bytes(MIB)) * 9)
    entries = put_segments(store, fresh(), [b"x"] * 5)
    with pytest.raises(StoreRejected, match="Number of object-backed segments"):
        store.put_manifest(Container.OBJECTS, fresh(), entries, {})


def test_a_nested_manifest_reads_as_the_joined_bytes(
    small_swift: SwiftServer, make_store: MakeStore, container: str
) -> None:
    store = make_store(small_swift)
    store.open()
    limit = store.limits().manifest_entries
    backup = fresh()
    contents = [os.urandom(100 + number) for number in range(limit * limit)]
    entries = put_segments(store, backup, contents)
    inner = []
    for first in range(0, len(entries), limit):
        group = entries[first : first + limit]
        name = f"{backup}/slo-{first:04d}"
        etag = store.put_manifest(Container.SEGMENTS, name, group, {})
        inner.append(ManifestEntry(name, sum(entry.size for entry in group), etag, nested=True))
    etag = store.put_manifest(Container.OBJECTS, backup, inner, {"X-Object-Meta-Lsn": "42"})

    url, token = client.get_auth(small_swift.auth_url, small_swift.user, small_swift.key)
    headers, body = client.get_object(url, token, container, backup)
    assert body == b"".join(contents)
    assert headers["etag"].strip('"') == etag
    assert headers["x-object-meta-lsn"] == "42"
    assert headers["content-type"] == "application/octet-stream"


def test_locations_are_public_urls(
    swift: SwiftServer, make_store: MakeStore, container: str
) -> None:
    location = make_store(swift).location
    assert location == f"{swift.storage_url}/{container}"


def test_an_expired_token_is_replaced_once(
    small_swift: SwiftServer, make_store: MakeStore, container: str
) -> None:
    store = make_store(small_swift)
    store.open()
    url, token = client.get_auth(small_swift.auth_url, small_swift.user, small_swift.key)

    def expired() -> bool:
        try:
            client.head_container(url, token, container)
        except client.ClientException as error:
            return bool(error.http_status == 401)
        return False

    poll("token refused", expired, 10)
    before = logins(small_swift)
    contents = [bytes([number]) * 4 * MIB for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        # the next token lives for 2 seconds, in which all four segments are stored
        entries = list(pool.map(lambda one: put_segments(store, fresh(), [one])[0], contents))
    assert logins(small_swift) == before + 1
    assert [entry.etag for entry in entries] == [md5(content) for content in contents]


def logins(server: SwiftServer) -> int:
    return sum("/auth/v1.0" in line for line in server.requests())


def test_a_wrong_key_is_denied_at_once(swift: SwiftServer, make_store: MakeStore) -> None:
    before = logins(swift)
    store = make_store(swift, key="wrong-secret-key")
    with pytest.raises(StoreDenied) as caught:
        store.open()
    assert "wrong-secret-key" not in repr(caught.value) + str(caught.value.__cause__)
    assert logins(swift) == before + 1


def test_a_key_that_http_cannot_carry_stays_secret(
    swift: SwiftServer, make_store: MakeStore
) -> None:
    with pytest.raises(LoginRejected) as caught:
        make_store(swift, key="wrong-secret\nkey").open()
    assert "wrong-secret" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_nothing_listening_is_unreachable(swift: SwiftServer, make_store: MakeStore) -> None:
    store = make_store(swift, auth_url=f"http://127.0.0.1:{free_port()}/auth/v1.0")
    with pytest.raises(StoreUnreachable, match="Connection refused"):
        store.open()


@pytest.mark.parametrize("url", ["gopher://h/auth/v1.0", "http://", "http://[/auth", "nonsense"])
def test_no_address_at_all_is_rejected(swift: SwiftServer, make_store: MakeStore, url: str) -> None:
    with pytest.raises(LoginRejected):
        make_store(swift, auth_url=url).open()


def test_an_address_of_something_else_is_rejected(
    swift: SwiftServer, make_store: MakeStore
) -> None:
    swift.inject([{"match": "/elsewhere", "status": 200, "body": "<h1>It works!</h1>"}])
    store = make_store(swift, auth_url=f"http://127.0.0.1:{swift.port}/elsewhere")
    with pytest.raises(LoginRejected) as caught:
        store.open()
    assert "authentication URL" in caught.value.hint


def test_secrets_reach_no_log_and_no_repr(
    swift: SwiftServer, store: SwiftStore, container: str, caplog: pytest.LogCaptureFixture
) -> None:
    for library in ("", "swiftclient", "urllib3", "requests"):
        caplog.set_level(logging.DEBUG, library)
    _, token = client.get_auth(swift.auth_url, swift.user, swift.key)
    caplog.clear()
    name = fresh()
    store.put(Container.OBJECTS, name, views(b"logged"))
    swift.inject([{"match": name, "status": 401}])
    assert store.get(Container.OBJECTS, name, 10) == b"logged"
    with pytest.raises(StoreNotFound):
        store.get(Container.OBJECTS, fresh(), 10)
    assert container in caplog.text, "the libraries were expected to log requests"
    shown = caplog.text + repr(settings_for(swift, container)) + repr(vars(store._session))
    # tempauth gives every client the same token while the token lives
    for secret in (swift.key, token, token[len("AUTH_tk") :][:6]):
        assert secret not in shown


def test_the_environment_changes_nothing(
    swift: SwiftServer, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, nowhere)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert make_store(swift).limits().nesting


def test_reads_of_small_objects_ask_for_the_newest(swift: SwiftServer, store: SwiftStore) -> None:
    name = fresh()
    store.put(Container.OBJECTS, name, views(b"x"))
    store.get(Container.OBJECTS, name, 10)
    lines = [line for line in swift.requests() if name in line]
    assert [line.split()[-1] for line in lines] == ["-", "newest"]


def test_connections_are_kept(swift: SwiftServer, store: SwiftStore) -> None:
    for _ in range(3):
        store.put(Container.OBJECTS, fresh(), views(b"x"))
    assert len(store._session._shared.idle) == 1
    store.close()
    assert not store._session._shared.idle
