"""Tokens of a user: their own project, their end, and a service token beside them.

The Keystone, and the Swift that asks it, are real.
"""

import json
import logging
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from agent.errors import (
    EndpointMissing,
    LoginDenied,
    LoginRejected,
    StoreBusy,
    StoreDenied,
    StoreError,
    StoreRejected,
    StoreUnreachable,
    TokenExpired,
)
from agent.store.protocol import Container
from agent.store.swift import tokens
from agent.store.swift.keystone import TOKEN, KeystoneLogin, KeystoneSettings
from agent.store.swift.login import Authenticate, AuthToken, WithService
from agent.store.swift.store import SwiftSettings, SwiftStore
from tests.stack.keystone import REGION, Account, KeystoneServer
from tests.stack.process import poll
from tests.stack.swift import SwiftServer
from tests.store.test_keystone import credential, password, put_and_read, refusal

MakeStore = Callable[..., SwiftStore]


@pytest.fixture
def make() -> Iterator[MakeStore]:
    """Yield a function that makes a store with a login. Each store is closed after the test."""
    made = []

    def make_store(login: Authenticate, **changes: Any) -> SwiftStore:
        given = {"attempts": 3, "timeout_seconds": 10.0, "backoff_seconds": 0.01, **changes}
        made.append(SwiftStore(SwiftSettings(login, f"c-{uuid.uuid4()}", **given)))
        return made[-1]

    yield make_store
    for store in made:
        store.close()


def token_login(keystone: KeystoneServer, token: str, **changes: Any) -> KeystoneLogin:
    options = {"token": token, **changes.pop("options", {"project_id": keystone.project_id})}
    given = {"auth_url": keystone.auth_url, "region": REGION, **changes}
    return KeystoneLogin(KeystoneSettings(kind=TOKEN, options=options, **given))


def service_login(keystone: KeystoneServer, user: Account | None = None) -> KeystoneLogin:
    project = {
        "project_name": keystone.service_project,
        "project_domain_name": keystone.service.domain,
    }
    options = project if user is None else {}
    return KeystoneLogin(password(keystone, user or keystone.service, options=options))


# --- the scope of a token --------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["/v3", "/v3/", "", "/"])
@pytest.mark.parametrize("named", ["id", "name", "none"])
@pytest.mark.usefixtures("swift_behind_keystone")
def test_a_token_of_the_project_is_used_as_it_is(
    keystone: KeystoneServer, make: MakeStore, suffix: str, named: str
) -> None:
    token = keystone.token(keystone.agent)
    options = {
        "id": {"project_id": keystone.project_id},
        "name": {
            "project_name": keystone.project,
            "project_domain_name": keystone.project_domain,
        },
        "none": {},
    }[named]
    url = keystone.auth_url.removesuffix("/v3") + suffix
    store = make(token_login(keystone, token, auth_url=url, options=options))
    put_and_read(store)
    access = store._session._current_access()
    assert access.token == token
    assert access.seconds is not None
    assert keystone.token_seconds - 60 < access.seconds <= keystone.token_seconds
    assert keystone.logins(token) == []
    assert f"/v1/AUTH_{keystone.project_id}/" in store.location


@pytest.mark.usefixtures("swift_behind_keystone")
def test_a_token_of_another_project_is_scoped_to_the_wanted_one(
    keystone: KeystoneServer, make: MakeStore
) -> None:
    user = keystone.add_user()
    second = keystone.add_project(user)
    token = keystone.token(user, second)
    store = make(token_login(keystone, token))
    put_and_read(store)
    assert f"/v1/AUTH_{keystone.project_id}/" in store.location
    assert store._session._current_access().token != token


@pytest.mark.usefixtures("swift_behind_keystone")
def test_the_token_of_an_application_credential_opens_its_project_only(
    keystone: KeystoneServer, make: MakeStore
) -> None:
    user = keystone.add_user()
    second = keystone.add_project(user)
    owner = make(KeystoneLogin(credential(keystone, keystone.make_application_credential(user))))
    token = owner._session._current_access().token
    put_and_read(make(token_login(keystone, token)))
    error = refusal(make(token_login(keystone, token, options={"project_id": second})))
    assert isinstance(error, LoginDenied)
    assert "can't be used for another project" in error.hint


@pytest.mark.usefixtures("swift_behind_keystone")
def test_a_keystone_that_does_not_tell_about_tokens_scopes_them(
    keystone: KeystoneServer, make: MakeStore
) -> None:
    """Its policy may allow that to services only."""
    body = json.dumps({"error": {"code": 403, "message": "by policy"}})
    keystone.inject([{"match": "/auth/tokens", "method": "GET", "status": 403, "body": body}])
    token = keystone.token(keystone.agent)
    put_and_read(make(token_login(keystone, token)))
    assert keystone.logins(token) == ["201"]


@pytest.mark.usefixtures("swift_behind_keystone")
@pytest.mark.parametrize("path", ["/v2.0", "/elsewhere"])
def test_an_url_of_no_keystone_3_is_refused(
    keystone: KeystoneServer, make: MakeStore, path: str
) -> None:
    url = keystone.auth_url.removesuffix("/v3") + path
    error = refusal(make(token_login(keystone, "token", auth_url=url)))
    assert isinstance(error, LoginRejected)
    assert "not a URL of Keystone's version 3" in str(error)


@pytest.mark.parametrize(
    "body",
    [
        "<html>",
        "[]",
        "{}",
        '{"token": []}',
        '{"access": {"token": {"id": "x", "expires": "x"}}}',
        '{"token": {"expires_at": "soon"}}',
        '{"token": {"expires_at": 5}}',
    ],
)
def test_an_answer_about_a_token_that_is_none_is_refused(
    keystone: KeystoneServer, make: MakeStore, body: str
) -> None:
    login = token_login(keystone, "token")
    rule = {"match": "/auth/tokens", "method": "GET", "status": 200, "body": body, "times": 9}
    keystone.inject([rule])
    assert isinstance(refusal(make(login)), LoginRejected)
    with pytest.raises(StoreRejected):
        make(login).token_seconds_left(login)


def test_a_token_without_an_object_store_is_told(keystone: KeystoneServer, make: MakeStore) -> None:
    about = {"expires_at": "2099-01-01T00:00:00.0Z", "project": {"id": keystone.project_id}}
    body = json.dumps({"token": about})
    rule = {"match": "/auth/tokens", "method": "GET", "status": 200, "body": body}
    keystone.inject([rule])
    error = refusal(make(token_login(keystone, "token")))
    assert isinstance(error, EndpointMissing)
    assert "its catalogue is empty" in str(error)


# --- the end of a token ----------------------------------------------------------------------


def test_keystone_tells_how_long_a_token_is_valid(
    keystone: KeystoneServer, make: MakeStore
) -> None:
    token = keystone.token(keystone.agent)
    login = token_login(keystone, token, options={})
    store = make(AuthToken("http://127.0.0.1:9/v1/AUTH_x", token))
    left = store.token_seconds_left(login)
    assert left is not None
    assert keystone.token_seconds - 60 < left <= keystone.token_seconds
    keystone.inject([{"match": "/auth/tokens", "status": 503}])
    with pytest.raises(StoreBusy):
        store.token_seconds_left(login)
    keystone.inject([{"match": "/auth/tokens", "action": "cut"}])
    with pytest.raises(StoreUnreachable):
        store.token_seconds_left(login)
    keystone.inject([{"match": "/auth/tokens", "status": 403}])
    with pytest.raises(StoreDenied):
        store.token_seconds_left(login)
    keystone.revoke_token(token)
    with pytest.raises(TokenExpired) as caught:
        store.token_seconds_left(login)
    assert token not in "".join(traceback.format_exception(caught.value)) + repr(login)


def test_the_clock_of_keystone_counts(
    keystone: KeystoneServer, make: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = token_login(keystone, keystone.token(keystone.agent))
    monkeypatch.setattr(tokens, "time", SimpleNamespace(time=lambda: 0.0))
    left = make(login).token_seconds_left(login)
    assert left is not None
    assert keystone.token_seconds - 60 < left <= keystone.token_seconds


# --- a service token beside it ---------------------------------------------------------------


@pytest.mark.parametrize("by_keystone", [False, True])
def test_an_expired_token_is_accepted_with_a_service_token(
    short_keystone: KeystoneServer, short_swift: SwiftServer, make: MakeStore, by_keystone: bool
) -> None:
    """The service token also ends meanwhile, and is replaced."""
    keystone = short_keystone
    user = AuthToken(short_swift.storage_url, keystone.token(keystone.agent))
    given = token_login(keystone, user.token) if by_keystone else user
    alone, before = make(given), len(keystone.logins(keystone.service.name))
    both = make(WithService(given, service_login(keystone)))
    put_and_read(alone)
    put_and_read(both)

    def refused() -> bool:
        try:
            alone.stat(Container.OBJECTS, "o")
        except TokenExpired:
            return True
        return False

    poll("the token alone is refused", refused, 10)
    put_and_read(both)
    until = time.monotonic() + keystone.token_seconds
    while time.monotonic() < until:
        both.stat(Container.OBJECTS, "o")
    assert both._session._current_access().token == user.token
    logins = keystone.logins(keystone.service.name)[before:]
    # Swift logs in as the same user
    assert set(logins) == {"201"}


@pytest.mark.usefixtures("swift_behind_keystone")
def test_a_refused_service_token_is_renewed_once(
    keystone: KeystoneServer, swift_behind_keystone: SwiftServer, make: MakeStore
) -> None:
    service = keystone.add_user(role="service")
    user = AuthToken(swift_behind_keystone.storage_url, keystone.token(keystone.agent))
    store = make(WithService(user, service_login(keystone, service)))
    put_and_read(store)
    swift_behind_keystone.inject([{"match": "/o$", "status": 401}])
    put_and_read(store)
    assert len(keystone.logins(service.name)) == 2
    swift_behind_keystone.inject([{"match": "/o$", "status": 401, "times": 99}])
    with pytest.raises(TokenExpired, match="also with a fresh service token") as caught:
        store.stat(Container.OBJECTS, "o")
    assert caught.value.without_effect
    assert len(keystone.logins(service.name)) == 3
    swift_behind_keystone.clear_faults()
    keystone.revoke_token(user.token)
    with pytest.raises(TokenExpired):
        store.stat(Container.OBJECTS, "o")


@pytest.mark.usefixtures("swift_behind_keystone")
def test_a_service_user_without_the_role_or_the_right_password(
    keystone: KeystoneServer, swift_behind_keystone: SwiftServer, make: MakeStore
) -> None:
    user = AuthToken(swift_behind_keystone.storage_url, keystone.token(keystone.agent))
    wrong = password(keystone, options={"password": "wrong-password"})
    error = refusal(make(WithService(user, KeystoneLogin(wrong))))
    assert isinstance(error, LoginDenied)
    assert "wrong-password" not in f"{error} {error.hint}"
    # Swift refuses a service token without the role, beside any token
    member = make(WithService(user, service_login(keystone, keystone.agent)))
    assert isinstance(refusal(member), TokenExpired)


@pytest.mark.usefixtures("swift_behind_keystone")
def test_no_token_reaches_a_log(
    keystone: KeystoneServer,
    swift_behind_keystone: SwiftServer,
    make: MakeStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for library in ("", "swiftclient", "urllib3", "requests", "keystoneauth"):
        caplog.set_level(logging.DEBUG, library)
    user = token_login(keystone, keystone.token(keystone.agent))
    store = make(WithService(user, service_login(keystone)))
    caplog.clear()
    put_and_read(store)
    swift_behind_keystone.inject([{"match": "/o$", "status": 401, "times": 2}])
    with pytest.raises(StoreError) as caught:
        store.get(Container.OBJECTS, "o", 10)
    access = store._session._current_access()
    assert access.service_token
    told = "".join(traceback.format_exception(caught.value))
    login = store._session._authenticate
    shown = (
        caplog.text + told + "".join(map(repr, (vars(store), vars(store._session), access, login)))
    )
    assert store._container in caplog.text, "the libraries were expected to log requests"
    for secret in (access.token[:20], access.service_token[:20], keystone.service.password):
        assert secret not in shown
