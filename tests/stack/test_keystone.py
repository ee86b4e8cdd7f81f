"""The private Keystone and the Swift behind it do what a test of the agent relies on."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from keystoneauth1 import exceptions, session
from keystoneauth1.identity import v3
from swiftclient import ClientException, client

from tests.stack.certificate import self_signed
from tests.stack.fixtures_keystone import need_keystone
from tests.stack.keystone import PREFIXES, ApplicationCredential, KeystoneServer
from tests.stack.process import StackError, poll
from tests.stack.swift import SwiftServer


def password(keystone: KeystoneServer, **changes: Any) -> v3.Password:
    given = {
        "username": keystone.agent.name,
        "password": keystone.agent.password,
        "user_domain_name": keystone.agent.domain,
        "project_name": keystone.project,
        "project_domain_name": keystone.project_domain,
    }
    return v3.Password(keystone.auth_url, **given | changes)


def credential(keystone: KeystoneServer, one: ApplicationCredential) -> v3.ApplicationCredential:
    return v3.ApplicationCredential(
        keystone.auth_url,
        application_credential_id=one.id,
        application_credential_secret=one.secret,
    )


def store_and_read(auth: v3.base.Auth, certificate: Path | None = None) -> None:
    """Log in, and store and read an object."""
    login = session.Session(auth=auth, verify=str(certificate) if certificate else True)
    connection = client.Connection(session=login, retries=0, cacert=certificate)
    container = f"c-{uuid4()}"
    connection.put_container(container)
    connection.put_object(container, "o", b"hello")
    assert connection.get_object(container, "o")[1] == b"hello"


def access(auth: v3.base.Auth, interface: str = "public") -> tuple[str, str]:
    """Return the storage URL and a token of a login."""
    login = session.Session(auth=auth)
    token = login.get_token()
    # this raises if the catalogue has no such endpoint
    url = auth.get_access(login).service_catalog.url_for("object-store", interface)
    assert url
    assert token
    return url, token


def refused(storage_url: str, token: str) -> int:
    """Return the status of a request to Swift, or 0 if it was accepted."""
    try:
        client.head_account(storage_url, token)
    except ClientException as error:
        return int(error.http_status)
    return 0


def test_a_password_opens_the_project(
    keystone: KeystoneServer, swift_behind_keystone: SwiftServer
) -> None:
    before = len(keystone.logins("agent"))
    store_and_read(password(keystone))
    assert keystone.logins("agent")[before:] == ["201"]
    assert access(password(keystone))[0] == swift_behind_keystone.storage_url


def test_each_interface_has_an_account(
    keystone: KeystoneServer, swift_behind_keystone: SwiftServer
) -> None:
    urls = {access(password(keystone), interface)[0] for interface in PREFIXES}
    assert len(urls) == len(PREFIXES)
    token = access(password(keystone))[1]
    assert [refused(url, token) for url in urls] == [0] * len(PREFIXES)


def test_a_wrong_password_and_a_project_without_a_role_are_refused(
    keystone: KeystoneServer, swift_behind_keystone: SwiftServer
) -> None:
    wrong = {"password": "wrong"}
    for changes in (wrong, {"project_name": keystone.other_project}):
        with pytest.raises(exceptions.Unauthorized):
            access(password(keystone, **changes))
    token = keystone.token(keystone.reader, keystone.other_project_id)
    assert refused(swift_behind_keystone.storage_url, token) == 403


@pytest.mark.parametrize("unrestricted", [False, True])
@pytest.mark.usefixtures("swift_behind_keystone")
def test_a_deleted_application_credential_is_refused(
    keystone: KeystoneServer, unrestricted: bool
) -> None:
    one = keystone.make_application_credential(unrestricted=unrestricted)
    store_and_read(credential(keystone, one))
    url, token = access(credential(keystone, one))
    keystone.delete_application_credential(one)
    # Keystone answers 404 if a login gives the id, and 401 if it gives name and user
    with pytest.raises(exceptions.NotFound):
        access(credential(keystone, one))
    assert keystone.logins(one.id) == ["201", "201", "404"]
    assert refused(url, token) == 401


@pytest.mark.usefixtures("swift_behind_keystone")
def test_an_application_credential_and_its_token_expire(keystone: KeystoneServer) -> None:
    one = keystone.make_application_credential(seconds=2)
    url, token = access(credential(keystone, one))
    assert refused(url, token) == 0
    # the token ends with the credential's last whole second
    poll("the token is expired", lambda: refused(url, token) == 401, 10)

    def expired() -> bool:
        try:
            access(credential(keystone, one))
        except exceptions.Unauthorized:
            return True
        return False

    poll("the credential is expired", expired, 10)


@pytest.mark.usefixtures("swift_behind_keystone")
def test_a_token_is_refused_at_once_when_it_is_revoked(keystone: KeystoneServer) -> None:
    url, token = access(password(keystone))
    assert refused(url, token) == 0
    keystone.revoke_token(token)
    assert refused(url, token) == 401


@pytest.mark.parametrize("changes", [{"enabled": False}, {"password": "another"}])
@pytest.mark.usefixtures("swift_behind_keystone")
def test_the_tokens_of_a_changed_user_are_refused(
    keystone: KeystoneServer, changes: dict[str, Any]
) -> None:
    user = keystone.add_user()
    auth = password(keystone, username=user.name, password=user.password)
    url, token = access(auth)
    assert refused(url, token) == 0
    keystone.update_user(user, **changes)
    assert refused(url, token) == 401
    with pytest.raises(StackError, match="401"):
        keystone.token(user)


@pytest.mark.usefixtures("swift_behind_keystone")
def test_a_fault_hits_the_requests_it_names(keystone: KeystoneServer) -> None:
    keystone.inject([{"match": "/auth/tokens", "method": "POST", "status": 503, "times": 2}])
    with pytest.raises(exceptions.ServiceUnavailable):
        access(password(keystone))
    keystone.inject([{"match": "/auth/tokens", "method": "POST", "action": "cut"}])
    with pytest.raises(exceptions.ConnectFailure):
        session.Session(auth=password(keystone)).get_token()
    store_and_read(password(keystone))


def test_endpoints_can_be_taken_out_of_the_catalogue(
    keystone: KeystoneServer, swift_behind_keystone: SwiftServer
) -> None:
    keystone.delete_endpoints()
    try:
        with pytest.raises(exceptions.EndpointNotFound):
            access(password(keystone))
        keystone.add_endpoint("public", "http://127.0.0.1:1/v1", region="RegionTwo")
        assert access(password(keystone))[0] == "http://127.0.0.1:1/v1"
    finally:
        keystone.delete_endpoints()
        keystone.add_object_store(swift_behind_keystone.address)


def test_short_tokens_over_tls_and_a_keystone_that_starts_last(tmp_path: Path) -> None:
    need_keystone()
    pem = self_signed(tmp_path / "tls.pem")
    keystone = KeystoneServer(tmp_path / "keystone", token_seconds=4, certificate=pem)
    swift = SwiftServer(tmp_path / "swift", keystone=keystone, certificate=pem)
    try:
        swift.start()
        keystone.start()
        keystone.add_object_store(swift.address)
        store_and_read(password(keystone), pem)
        token = keystone.token(keystone.agent)

        def status() -> int:
            try:
                client.head_account(
                    swift.storage_url,
                    token,
                    http_conn=client.http_connection(swift.storage_url, cacert=str(pem)),
                )
            except ClientException as error:
                return int(error.http_status)
            return 0

        assert status() == 0
        poll("the token is expired", lambda: status() == 401, 10)
    finally:
        swift.stop()
        keystone.stop()
