"""Stores on the real radosgw behind the real Keystone, with each form of its storage URL."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from swiftclient import client

from agent.errors import LoginDenied, StoreDenied, StoreRejected, TokenRefused
from agent.store.protocol import Container, StoreLimits
from agent.store.swift.keystone import KeystoneLogin, KeystoneSettings
from agent.store.swift.store import SwiftSettings, SwiftStore
from tests.radosgw.conftest import LIFETIME
from tests.stack.keystone import Account, KeystoneServer
from tests.stack.process import poll
from tests.stack.radosgw import Radosgw, keystone_settings
from tests.store.contract import fresh, put_segments, views

ACCOUNT = {"rgw_swift_account_in_url": "true"}
SHARED = {"rgw_keystone_implicit_tenants": "false"}
AT_ROOT = {"rgw_swift_url_prefix": "/", "rgw_enable_apis": "swift, swift_auth, admin"}
# The info is at /v1/info. The agent looks for it at /info, as for a Swift's URL /v1/ACCOUNT.
HIDDEN = {"rgw_swift_url_prefix": "v1"}
OF_PROJECT = "/AUTH_$(project_id)s"


@pytest.fixture(scope="module")
def configured(radosgw: Radosgw) -> Iterator[Radosgw]:
    """Yield the gateway, and remove the settings of this module at the end."""
    yield radosgw
    radosgw.configure()


@dataclass
class Project:
    """A user with a project that the gateway has never seen, and stores in it."""

    keystone: KeystoneServer
    owner: Account
    stores: list[SwiftStore] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.id = self.keystone.add_project(self.owner)

    def store(self, url: str, container: str = "", **changes: Any) -> SwiftStore:
        """Return a store with the login of the owner, and with `url` in the catalogue."""
        region = f"region-{uuid.uuid4()}"
        self.keystone.add_endpoint("public", url, region=region)
        options = {
            "username": self.owner.name,
            "user_domain_name": self.owner.domain,
            "password": self.owner.password,
            "project_id": self.id,
        }
        login = KeystoneLogin(
            KeystoneSettings(self.keystone.auth_url, "v3password", options, region)
        )
        given = {"attempts": 4, "timeout_seconds": 20.0, "backoff_seconds": 0.01, **changes}
        name = container or f"backups-{uuid.uuid4()}"
        self.stores.append(SwiftStore(SwiftSettings(login, name, **given)))
        return self.stores[-1]


@pytest.fixture
def project(short: KeystoneServer) -> Iterator[Project]:
    made = Project(short, short.add_user())
    yield made
    for store in made.stores:
        store.close()


@pytest.mark.parametrize(
    ("settings", "url", "wrong"),
    [
        ({}, "/swift/v1", f"/swift/v1{OF_PROJECT}"),
        (ACCOUNT, f"/swift/v1{OF_PROJECT}", "/swift/v1"),
        ({**ACCOUNT, "rgw_swift_url_prefix": "os"}, f"/os/v1{OF_PROJECT}", "/os/v1"),
        ({**ACCOUNT, **AT_ROOT}, f"/v1{OF_PROJECT}", "/v1"),
        (HIDDEN, "/v1/v1", f"/v1/v1{OF_PROJECT}"),
        (SHARED, "/swift/v1/", f"/swift/v1{OF_PROJECT}"),
    ],
    ids=["plain", "account", "prefix", "root", "hidden info", "shared names"],
)
def test_a_store_works_with_the_url_of_the_catalogue(
    configured: Radosgw, project: Project, settings: dict[str, Any], url: str, wrong: str
) -> None:
    configured.configure(**{**keystone_settings(project.keystone), **settings})
    address = f"http://127.0.0.1:{configured.port}"
    store = project.store(address + url)
    for _ in range(2):
        store.open()
    announced = settings != HIDDEN
    assert store.limits() == StoreLimits(1000, 5 << 30, nesting=False, announced=announced)
    folder = fresh()
    entries = put_segments(store, folder, [b"one", b"two"])
    etag = store.put_manifest(Container.OBJECTS, folder, entries, {"X-Object-Meta-Lsn": "42"})
    access = store._session._current_access()
    container = store.location.rpartition("/")[2]
    headers, body = client.get_object(access.storage_url, access.token, container, folder)
    assert (headers["etag"], headers["x-object-meta-lsn"], body) == (f'"{etag}"', "42", b"onetwo")
    store.put(Container.OBJECTS, "plain", views(b"hello"))
    assert store.get(Container.OBJECTS, "plain", 10) == b"hello"
    found = [store.stat(Container.OBJECTS, name) for name in ("plain", folder)]
    assert [one.size for one in found] == [5, 6]
    assert [row.name for row in store.list(Container.SEGMENTS, folder)] == [
        entry.name for entry in entries
    ]
    project.keystone.revoke_token(access.token)
    for entry in entries:
        store.delete(Container.SEGMENTS, entry.name)
    assert list(store.list(Container.SEGMENTS, folder)) == []
    with pytest.raises(StoreRejected, match="may lead to no account") as refused:
        project.store(address + wrong).open()
    assert "rgw swift account in url" in (refused.value.hint or "")


def test_containers_of_another_project_are_told_from_a_busy_store(
    configured: Radosgw, project: Project
) -> None:
    configured.configure(**{**keystone_settings(project.keystone), **SHARED})
    mine = project.store(configured.storage_url)
    mine.open()
    other = Project(project.keystone, project.owner)
    theirs = other.store(configured.storage_url, mine.location.rpartition("/")[2])
    with pytest.raises(StoreDenied, match="belongs to another account") as refused:
        theirs.open()
    assert "rgw keystone implicit tenants" in (refused.value.hint or "")
    theirs.close()


def test_a_user_without_an_accepted_role_is_refused_with_a_hint(
    configured: Radosgw, project: Project
) -> None:
    """Ceph's default is `Member, admin`, and the case matters."""
    roles = {"rgw_keystone_accepted_roles": "Member, admin"}
    configured.configure(**{**keystone_settings(project.keystone), **roles})
    with pytest.raises(TokenRefused) as refused:
        project.store(configured.storage_url).open()
    assert "rgw keystone accepted roles" in (refused.value.hint or "")


@pytest.fixture(scope="module")
def caching(configured: Radosgw, short: KeystoneServer) -> Radosgw:
    """Configure a gateway that caches tokens, as by default, and has another storage policy."""
    configured.add_storage_policy("cold")
    size = {"rgw_keystone_token_cache_size": 100}
    configured.configure(**{**keystone_settings(short), **size})
    return configured


def test_a_disabled_user_writes_until_the_cached_token_ends(
    caching: Radosgw, project: Project
) -> None:
    """Without the cache, the gateway would refuse the token at once."""
    store = project.store(caching.storage_url)
    store.open()
    seen = len(project.keystone.requests())
    project.keystone.update_user(project.owner, enabled=False)
    store.put(Container.OBJECTS, "o", views(b"hello"))
    assert not any("/auth/tokens 404" in line for line in project.keystone.requests()[seen:])
    assert project.keystone.logins(project.owner.name) == ["201"]

    def denied() -> bool:
        try:
            store.put(Container.OBJECTS, "o", views(b"hello"))
        except LoginDenied:
            return True
        return False

    poll("the login is refused", denied, 3 * LIFETIME)


@pytest.mark.parametrize("policies", [("cold", "cold"), ("cold", None), (None, "cold")])
def test_containers_of_two_storage_policies_are_refused_before_a_backup(
    caching: Radosgw, project: Project, policies: tuple[str | None, str | None]
) -> None:
    store = project.store(caching.storage_url)
    access, container = store._session._current_access(), store.location.rpartition("/")[2]
    for kind, policy in zip(Container, policies, strict=True):
        name = container + kind.value
        headers = {"X-Storage-Policy": policy} if policy else {}
        client.put_container(access.storage_url, access.token, name, headers=headers)
    store.open()
    entries = put_segments(store, fresh(), [b"one", b"two"])
    if len(set(policies)) > 1:
        with pytest.raises(StoreRejected, match="of another policy") as refused:
            store.limits()
        assert "X-Storage-Policy" in (refused.value.hint or "")
    else:
        store.limits()
        store.put_manifest(Container.OBJECTS, "joined", entries, {})
