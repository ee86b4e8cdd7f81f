"""Tests of the login at a real Keystone, in front of a real Swift."""

import json
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from swiftclient.exceptions import ClientException

from agent.errors import (
    Cancelled,
    EndpointMissing,
    LoginDenied,
    LoginRejected,
    StoreBusy,
    StoreError,
    StoreRedirected,
    StoreUnreachable,
    TokenExpired,
    TokenRefused,
)
from agent.stop import Stop
from agent.store.protocol import Container
from agent.store.swift.keystone import KeystoneLogin, KeystoneSettings
from agent.store.swift.login import Access, AuthV1, Connect
from agent.store.swift.store import SwiftSettings, SwiftStore
from tests.stack.keystone import REGION, Account, ApplicationCredential, KeystoneServer
from tests.stack.process import poll
from tests.stack.swift import SwiftServer

MakeStore = Callable[..., SwiftStore]


def password(
    keystone: KeystoneServer, user: Account | None = None, **changes: Any
) -> KeystoneSettings:
    user = user or keystone.agent
    options = {
        "username": user.name,
        "user_domain_name": user.domain,
        "password": user.password,
        "project_name": keystone.project,
        "project_domain_name": keystone.project_domain,
    }
    given = {"auth_url": keystone.auth_url, "kind": "v3password", "region": REGION, **changes}
    return KeystoneSettings(options={**options, **given.pop("options", {})}, **given)


def credential(keystone: KeystoneServer, one: ApplicationCredential) -> KeystoneSettings:
    options = {"application_credential_id": one.id, "application_credential_secret": one.secret}
    return KeystoneSettings(keystone.auth_url, "v3applicationcredential", options, REGION)


@pytest.fixture
def make() -> Iterator[MakeStore]:
    """Yield a function that makes a store with a login. Each store is closed after the test."""
    made = []

    def make_store(settings: KeystoneSettings, **changes: Any) -> SwiftStore:
        given = {"attempts": 3, "timeout_seconds": 10.0, "backoff_seconds": 0.01, **changes}
        login = KeystoneLogin(settings)
        made.append(SwiftStore(SwiftSettings(login, f"c-{uuid.uuid4()}", **given)))
        return made[-1]

    yield make_store
    for store in made:
        store.close()


@pytest.fixture
def short(short_keystone: KeystoneServer, short_swift: SwiftServer) -> KeystoneServer:
    """Return a Keystone whose tokens live for 2 s, with a Swift of its own."""
    return short_keystone


def put_and_read(store: SwiftStore) -> None:
    store.open()
    store.put(Container.OBJECTS, "o", [memoryview(b"hello")])
    assert store.get(Container.OBJECTS, "o", 10) == b"hello"


def refusal(store: SwiftStore) -> StoreError:
    with pytest.raises(StoreError) as raised:
        store.open()
    return raised.value


@pytest.mark.parametrize("interface", ["public", "internal", "admin"])
def test_a_password_opens_the_account_of_the_interface(
    keystone: KeystoneServer,
    swift_behind_keystone: SwiftServer,
    make: MakeStore,
    interface: str,
) -> None:
    store = make(password(keystone, interface=interface))
    before = len(keystone.logins("agent"))
    put_and_read(store)
    assert keystone.logins("agent")[before:] == ["201"]
    prefix = {"public": "AUTH", "internal": "INTERNAL", "admin": "ADMIN"}[interface]
    assert f"/v1/{prefix}_{keystone.project_id}/" in store.location


@pytest.mark.usefixtures("swift_behind_keystone")
def test_an_application_credential_opens_its_project_until_it_is_deleted(
    keystone: KeystoneServer, make: MakeStore
) -> None:
    one = keystone.make_application_credential()
    store = make(credential(keystone, one))
    put_and_read(store)
    keystone.delete_application_credential(one)
    before = time.monotonic()
    with pytest.raises(LoginDenied, match=one.id) as raised:
        store.put(Container.OBJECTS, "p", [memoryview(b"hello")])
    assert time.monotonic() - before < 5
    assert one.secret not in f"{raised.value} {raised.value.hint}"
    assert keystone.logins(one.id) == ["201", "404"]


@pytest.mark.usefixtures("swift_behind_keystone")
@pytest.mark.parametrize("named", [True, False])
def test_an_application_credential_is_known_by_its_name_or_its_id(
    keystone: KeystoneServer, make: MakeStore, named: bool
) -> None:
    one = keystone.make_application_credential()
    options = {"application_credential_secret": "x" + one.secret}
    if named:
        options |= {"application_credential_name": one.name, "user_id": one.user_id}
    else:
        options |= {"application_credential_id": one.id}
    wrong = KeystoneSettings(keystone.auth_url, "v3applicationcredential", options)
    error = refusal(make(wrong))
    assert isinstance(error, LoginDenied)
    assert (one.name if named else one.id) in str(error)


@pytest.mark.usefixtures("swift_behind_keystone")
def test_an_expired_application_credential_is_refused(
    keystone: KeystoneServer, make: MakeStore
) -> None:
    one = keystone.make_application_credential(seconds=1)
    caught: list[StoreError] = []

    def refused() -> bool:
        try:
            make(credential(keystone, one)).open()
        except LoginDenied as error:
            caught.append(error)
        except TokenRefused:
            return False  # a token that ends with the credential
        return bool(caught)

    poll("the credential is refused", refused, 10)
    assert "has expired" in (caught[0].hint or "")


@pytest.mark.usefixtures("swift_behind_keystone")
def test_a_wrong_password_is_told_from_a_wrong_project(
    keystone: KeystoneServer, make: MakeStore
) -> None:
    wrong = refusal(make(password(keystone, options={"password": "wrong-password"})))
    assert isinstance(wrong, LoginDenied)
    assert "password or domain is wrong" in str(wrong)
    assert "wrong-password" not in f"{wrong} {wrong.hint} {wrong.__cause__!r}"
    for project in (keystone.other_project, "no-such-project"):
        other = refusal(make(password(keystone, options={"project_name": project})))
        assert isinstance(other, LoginDenied)
        assert f"not to the project {project}" in str(other)


@pytest.mark.usefixtures("swift_behind_keystone")
def test_a_disabled_user_is_refused_while_the_store_is_in_use(
    keystone: KeystoneServer, make: MakeStore
) -> None:
    user = keystone.add_user()
    store = make(password(keystone, user))
    put_and_read(store)
    keystone.update_user(user, enabled=False)
    with pytest.raises(LoginDenied, match=user.name):
        store.get(Container.OBJECTS, "o", 10)


@pytest.mark.usefixtures("swift_behind_keystone")
def test_a_revoked_token_is_replaced_by_one_login(
    keystone: KeystoneServer, make: MakeStore
) -> None:
    user = keystone.add_user()
    store = make(password(keystone, user))
    put_and_read(store)
    access = store._session._shared.access
    assert access
    keystone.revoke_token(access.token)
    put_and_read(store)
    assert keystone.logins(user.name) == ["201", "201"]


@pytest.mark.usefixtures("swift_behind_keystone")
def test_a_region_or_interface_that_the_catalogue_lacks_is_named(
    keystone: KeystoneServer, make: MakeStore
) -> None:
    error = refusal(make(password(keystone, region="Mars")))
    assert isinstance(error, EndpointMissing)
    assert "in the region Mars" in str(error)
    assert f"public in {REGION}" in str(error)


def test_an_empty_catalogue_and_several_regions_are_refused(
    short: KeystoneServer, make: MakeStore
) -> None:
    whole = short.endpoints()
    short.add_endpoint("public", "http://127.0.0.1:9/v1/AUTH_x", region="Second")
    several = refusal(make(password(short, region=None)))
    assert isinstance(several, EndpointMissing)
    assert "public in RegionOne, public in Second" in str(several)
    assert "region" in (several.hint or "")
    short.add_endpoint("public", "http://127.0.0.1:9/v1/AUTH_y", region="Second")
    assert isinstance(refusal(make(password(short, region="Second"))), EndpointMissing)
    only = refusal(make(password(short, region="Second", interface="internal")))
    assert "internal in RegionOne" in str(only)
    short.delete_endpoints()
    empty = refusal(make(password(short, interface="internal")))
    assert isinstance(empty, EndpointMissing)
    assert f"no internal URL of the service object-store in the region {REGION}" in str(empty)
    for one in whole:
        short.add_endpoint(one["interface"], one["url"], region=one["region"])


@pytest.mark.usefixtures("swift_behind_keystone")
def test_a_token_opens_its_project_and_no_other_one(
    keystone: KeystoneServer, make: MakeStore
) -> None:
    token = keystone.token(keystone.agent)
    options = {"token": token, "project_id": keystone.project_id}
    put_and_read(make(KeystoneSettings(keystone.auth_url, "v3token", options, REGION)))
    other = {"token": token, "project_id": keystone.other_project_id}
    error = refusal(make(KeystoneSettings(keystone.auth_url, "v3token", other, REGION)))
    assert isinstance(error, TokenExpired)
    assert token not in f"{error} {error.hint}"
    keystone.revoke_token(token)
    assert isinstance(
        refusal(make(KeystoneSettings(keystone.auth_url, "v3token", options, REGION))), TokenExpired
    )


@pytest.mark.usefixtures("swift_behind_keystone")
def test_a_busy_or_dying_keystone_is_tried_again(keystone: KeystoneServer, make: MakeStore) -> None:
    keystone.inject([{"match": "/auth/tokens", "method": "POST", "status": 503, "times": 2}])
    put_and_read(make(password(keystone)))
    keystone.inject([{"match": "/auth/tokens", "method": "POST", "action": "cut"}])
    put_and_read(make(password(keystone)))
    keystone.inject([{"match": "/auth/tokens", "method": "POST", "status": 503, "times": 9}])
    assert isinstance(refusal(make(password(keystone))), StoreBusy)
    keystone.inject([{"match": "/auth/tokens", "method": "POST", "action": "cut", "times": 9}])
    assert isinstance(refusal(make(password(keystone))), StoreUnreachable)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"status": 200, "body": "<html>Welcome</html>"}, "not as Keystone"),
        ({"status": 201, "body": "{}"}, "not as Keystone"),
        ({"status": 201, "body": '{"token": []}'}, "not as Keystone"),
        ({"status": 404, "body": "no"}, "answers 404"),
        (
            {"status": 302, "headers": {"Location": "http://127.0.0.1:9/"}},
            "log in to the store: the store redirects the request to http://127.0.0.1:9",
        ),
        ({"status": 200, "body": "x" * (5 << 20)}, "more than the"),
    ],
)
@pytest.mark.usefixtures("swift_behind_keystone")
def test_an_answer_that_is_not_keystones_is_refused(
    keystone: KeystoneServer, make: MakeStore, rule: dict[str, Any], message: str
) -> None:
    headers = {"X-Subject-Token": "t"} | rule.get("headers", {})
    keystone.inject([{"match": "/auth/tokens", "method": "POST", **rule, "headers": headers}])
    error = refusal(make(password(keystone)))
    assert type(error) is (StoreRedirected if rule.get("status") == 302 else LoginRejected)
    assert message in str(error)


def test_a_login_page_during_the_work_is_tried_again(
    keystone: KeystoneServer, swift_behind_keystone: SwiftServer, make: MakeStore
) -> None:
    """Only the first login tells if the URL is wrong. Later a proxy may be."""
    store = make(password(keystone))
    store.open()
    swift_behind_keystone.inject([{"match": "/o$", "status": 401}])
    keystone.inject([{"match": "/v3/auth/tokens", "method": "POST", "status": 200, "body": "<p>"}])
    put_and_read(store)


def test_the_secret_of_a_refused_login_is_not_repeated(
    keystone: KeystoneServer, make: MakeStore
) -> None:
    body = json.dumps({"error": {"message": f"no {keystone.agent.password}", "code": 400}})
    headers = {"Content-Type": "application/json"}
    rule = {"match": "/v3/auth/tokens", "method": "POST", "status": 400}
    keystone.inject([rule | {"body": body, "headers": headers}])
    error = refusal(make(password(keystone)))
    told = "".join(traceback.format_exception(error))
    assert "answered 400" in str(error)
    assert keystone.agent.password not in told


@pytest.mark.usefixtures("swift_behind_keystone")
def test_a_revoked_token_of_a_task_is_told_by_keystone(
    keystone: KeystoneServer, swift_behind_keystone: SwiftServer, make: MakeStore
) -> None:
    """Swift may refuse a good one, while it can't reach Keystone."""
    token = keystone.token(keystone.agent)
    options = {"token": token, "project_id": keystone.project_id}
    store = make(KeystoneSettings(keystone.auth_url, "v3token", options, REGION))
    store.open()
    swift_behind_keystone.inject([{"match": "/o$", "status": 401}])
    put_and_read(store)
    keystone.revoke_token(token)
    with pytest.raises(TokenExpired, match="was revoked"):
        store.get(Container.OBJECTS, "o", 10)


def test_a_stopped_renewal_leaves_the_token_and_a_failed_one_its_pause() -> None:
    stop, logins = Stop(), list[str]()
    answers: list[Callable[[], Access]] = [lambda: Access("http://h", "first", True, 800.0)]

    def login(_connect: Connect) -> Access:
        logins.append("login")
        return answers.pop(0)()

    session = SwiftStore(SwiftSettings(login, "c"))._session
    session._current_access()

    def stopped() -> Access:
        stop.request(Cancelled("stop"))
        raise StoreBusy("cut")

    answers.append(stopped)
    session._shared.renew_at = time.monotonic()
    with pytest.raises(Cancelled):
        session.bound(stop)._current_access()
    assert session._shared.access is not None

    def busy() -> Access:
        error = StoreBusy("busy")
        headers = {"Retry-After": "20"}
        error.__cause__ = ClientException("log in", http_response_headers=headers)
        raise error

    answers.append(busy)
    assert session._current_access().token == "first"
    session._shared.void_at = time.monotonic()
    for _ in range(2):
        with pytest.raises(StoreBusy):
            session._current_access()
    assert len(logins) == 3


def test_a_token_is_renewed_before_it_expires_and_once_for_all_threads(
    short: KeystoneServer, make: MakeStore
) -> None:
    user = short.add_user()
    store = make(password(short, user))
    store.open()
    end = time.monotonic() + 6.5

    def work(number: int) -> int:
        done = 0
        while time.monotonic() < end:
            store.put(Container.OBJECTS, f"{number}-{done}", [memoryview(b"x")])
            done += 1
        return done

    with ThreadPoolExecutor(4) as pool:
        assert min(pool.map(work, range(4))) > 0
    # each lives for up to 2 s, and is renewed when an eighth of that is left
    assert short.logins(user.name) in (["201"] * 4, ["201"] * 5)


def test_a_busy_renewal_leaves_the_token_in_use_until_it_expires(swift: SwiftServer) -> None:
    v1 = AuthV1(swift.auth_url, swift.user, swift.key)
    busy, logins = threading.Event(), []

    def login(connect: Connect) -> Access:
        logins.append(busy.is_set())
        if busy.is_set():
            raise StoreBusy("try again later")
        return v1(connect)._replace(seconds=3600.0)

    store = SwiftStore(SwiftSettings(login, f"c-{uuid.uuid4()}", attempts=1))
    put_and_read(store)
    shared = store._session._shared
    busy.set()
    until, shared.renew_at = shared.void_at, time.monotonic()
    put_and_read(store)
    assert (logins, shared.void_at) == ([False, True], until)
    assert time.monotonic() < shared.renew_at < until
    shared.void_at = time.monotonic()
    assert isinstance(refusal(store), StoreBusy)
    busy.clear()
    put_and_read(store)
    assert shared.void_at > until
    store.close()


def test_others_go_on_with_the_token_while_one_thread_renews_it() -> None:
    renewing, go_on = threading.Event(), threading.Event()
    answers = iter([Access("http://h", "first", True, 800.0), Access("http://h", "second")])

    def login(_connect: Connect) -> Access:
        access = next(answers)
        if access.token == "second":
            renewing.set()
            assert go_on.wait(10)
        return access

    session = SwiftStore(SwiftSettings(login, "c"))._session
    assert session._current_access().token == "first"
    session._shared.renew_at = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(session._current_access)
        assert renewing.wait(10)
        assert session._current_access().token == "first"
        go_on.set()
        assert result.result(10).token == "second"
    assert session._current_access().token == "second"


def test_a_store_that_can_not_reach_keystone_is_asked_again(
    keystone: KeystoneServer, swift_behind_keystone: SwiftServer, make: MakeStore
) -> None:
    """Such a Swift answers 401 to good tokens."""
    store = make(password(keystone))
    store.open()
    swift_behind_keystone.inject([{"match": "/o$", "status": 401, "times": 3}])
    put_and_read(store)
    swift_behind_keystone.inject([{"match": "/o$", "status": 401, "times": 99}])
    with pytest.raises(TokenRefused):
        store.put(Container.OBJECTS, "o", [memoryview(b"hello")])
