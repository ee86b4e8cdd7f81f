"""Tests of the logins that [store], clouds.yaml and OS_* describe, and of their mistakes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from agent.config.cloud import Cloud, cloud_of, names_cloud
from agent.config.settings import StoreSection
from agent.errors import ConfigInvalid
from tests.stack.agent import write_private

SECRET = "hunter2-hunter2"
PASSWORD = {
    "OS_AUTH_URL": "https://k:5000/v3",
    "OS_USERNAME": "u",
    "OS_PASSWORD": SECRET,
    "OS_PROJECT_NAME": "p",
}


def of_environment(**changes: str) -> Cloud:
    return cloud_of(StoreSection(), {**PASSWORD, **changes})


def of_file(folder: Path, cloud: Any, secure: Any = None, **section: Any) -> Cloud:
    write_private(folder / "clouds.yaml", json.dumps({"clouds": {"c": cloud, "other": {}}}))
    environment = {"OS_CLIENT_CONFIG_FILE": str(folder / "clouds.yaml")}
    if secure is not None:
        write_private(folder / "secure.yaml", json.dumps({"clouds": {"c": secure}}))
        environment["OS_CLIENT_SECURE_FILE"] = str(folder / "secure.yaml")
    return cloud_of(StoreSection(cloud="c", **section), environment)


def refused(cause: Any) -> str:
    with pytest.raises(ConfigInvalid) as raised:
        cause()
    text = f"{raised.value} {raised.value.hint}"
    assert SECRET not in text
    return text


def test_a_password_of_the_environment() -> None:
    cloud = of_environment(OS_REGION_NAME="R", OS_INTERFACE="internal", OS_CACERT="/ca.pem")
    keystone = cloud.keystone
    assert (keystone.auth_url, keystone.kind) == ("https://k:5000/v3", "v3password")
    assert keystone.options == {
        "username": "u",
        "user_domain_name": "Default",
        "password": SECRET,
        "project_name": "p",
        "project_domain_name": "Default",
    }
    assert (keystone.region, keystone.interface) == ("R", "internal")
    assert cloud.ca_file == Path("/ca.pem")
    assert SECRET not in repr(cloud)
    assert SECRET not in keystone.account


def test_domains_ids_and_earlier_names_of_the_environment() -> None:
    options = of_environment(
        OS_USER_DOMAIN_ID="d", OS_PROJECT_DOMAIN_NAME="e", OS_ENDPOINT_TYPE="adminURL"
    ).keystone
    assert options.interface == "admin"
    assert options.options["user_domain_id"] == "d"
    assert "user_domain_name" not in options.options
    assert options.options["project_domain_name"] == "e"
    tenant = of_environment(OS_PROJECT_NAME="", OS_TENANT_ID="t").keystone.options
    assert tenant["project_id"] == "t"


@pytest.mark.parametrize("kind", [{}, {"OS_AUTH_TYPE": "v3applicationcredential"}])
def test_an_application_credential_of_the_environment_has_no_project(kind: dict[str, str]) -> None:
    cloud = of_environment(
        OS_USERNAME="",
        OS_PASSWORD="",
        OS_APPLICATION_CREDENTIAL_ID="i",
        OS_APPLICATION_CREDENTIAL_SECRET=SECRET,
        **kind,
    )
    assert cloud.keystone.kind == "v3applicationcredential"
    assert cloud.keystone.options == {
        "application_credential_id": "i",
        "application_credential_secret": SECRET,
    }


def test_a_token_of_the_environment() -> None:
    keystone = of_environment(OS_USERNAME="", OS_PASSWORD="", OS_TOKEN=SECRET).keystone
    assert keystone.kind == "v3token"
    assert keystone.options["token"] == SECRET


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"OS_AUTH_URL": ""}, "neither OS_CLOUD nor OS_AUTH_URL"),
        ({"OS_AUTH_URL": "https://k/v2.0"}, "version 2"),
        ({"OS_PASSWORD": ""}, "no password"),
        ({"OS_PROJECT_NAME": ""}, "no project_id or project_name"),
        ({"OS_USERNAME": ""}, "no user_id or username"),
        ({"OS_INSECURE": "true"}, "never does"),
        ({"OS_INSECURE": "1"}, "never does"),
        ({"OS_AUTH_TYPE": "v3oidcpassword"}, "not supported"),
        ({"OS_INTERFACE": "mars"}, "'mars'"),
        ({"OS_CERT": "/c.pem"}, "cert"),
        ({"OS_STORAGE_URL": "https://s/v1/a"}, "storage_url"),
        ({"OS_AUTH_URL": f"https://u:{SECRET}@k/v3"}, "not a URL of Keystone"),
        ({"OS_AUTH_URL": "k:5000/v3"}, "not a URL of Keystone"),
        (
            {"OS_AUTH_TYPE": "v3token", "OS_TOKEN": f"\ufeff{SECRET}"},
            "characters that HTTP can't send",
        ),
    ],
)
def test_a_mistake_of_the_environment_is_named(changes: dict[str, str], message: str) -> None:
    assert message in refused(lambda: of_environment(**changes))


def test_a_cloud_of_a_file_and_its_secrets_in_another(tmp_path: Path) -> None:
    auth = {"auth_url": "https://k/v3", "username": "u", "project_name": "p", "password": "x"}
    values = {"auth": auth, "region_name": "R", "interface": "internal", "cacert": "/ca.pem"}
    cloud = of_file(tmp_path, values, {"auth": {"password": SECRET}})
    assert cloud.keystone.options["password"] == SECRET
    assert cloud.keystone.told_by == "the cloud c of clouds.yaml"
    assert (cloud.keystone.region, cloud.keystone.interface) == ("R", "internal")
    chosen = of_file(tmp_path, values, region="S", interface="public", ca_file=Path("/own.pem"))
    assert (chosen.keystone.region, chosen.keystone.interface) == ("S", "public")
    assert chosen.ca_file == Path("/own.pem")


def test_a_named_cloud_takes_nothing_from_the_environment(tmp_path: Path) -> None:
    write_private(tmp_path / "clouds.yaml", json.dumps({"clouds": {"c": {"auth": {}}}}))
    environment = {**PASSWORD, "OS_CLIENT_CONFIG_FILE": str(tmp_path / "clouds.yaml")}
    message = refused(lambda: cloud_of(StoreSection(cloud="c"), environment))
    assert "the cloud c of clouds.yaml has no auth_url" in message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"verify": False}, "never does"),
        ({"verify": "no"}, "never does"),
        ({"insecure": True}, "never does"),
        ({"profile": "https://example.com"}, "profile"),
        ({"key": "/k.pem", "cert": "/c.pem"}, "cert"),
        ({"auth_type": "v3totp"}, "not supported"),
        ({"auth_type": "none"}, "not supported"),
        ({"auth": None}, "no auth_url"),
        ({"auth": ["auth_url"]}, "no auth_url"),
        ({"auth": {"auth_url": "https://k/v3"}}, "no password"),
    ],
)
def test_a_mistake_of_a_cloud_is_named(tmp_path: Path, values: Any, message: str) -> None:
    auth = {"auth_url": "https://k/v3", "username": "u", "project_name": "p", "password": SECRET}
    assert message in refused(lambda: of_file(tmp_path, {"auth": auth, **values}))


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clouds.yaml"
    write_private(path, json.dumps({"clouds": {"c": {"auth": {"password": SECRET}}}}))
    path.chmod(0o644)
    environment = {"OS_CLIENT_CONFIG_FILE": str(path)}
    message = refused(lambda: cloud_of(StoreSection(cloud="c"), environment))
    assert f"chmod 0600 {path}" in message


def test_a_value_is_text_as_it_stands(tmp_path: Path) -> None:
    text = """
        clouds:
          c:
            auth: {auth_url: "https://k/v3", username: yes, password: 0123,
                   project_name: 2024-13-45, user_domain_id: ~, project_domain_id: , user_id: null}
    """
    write_private(tmp_path / "clouds.yaml", text)
    environment = {"OS_CLIENT_CONFIG_FILE": str(tmp_path / "clouds.yaml")}
    assert cloud_of(StoreSection(cloud="c"), environment).keystone.options == {
        "username": "yes",
        "user_domain_name": "Default",
        "password": "0123",
        "project_name": "2024-13-45",
        "project_domain_name": "Default",
    }


def test_merge_keys_and_nulls_of_a_cloud(tmp_path: Path) -> None:
    text = """
        common: &common {region_name: R, interface: internal, cacert: /own.pem}
        login: &login {auth_url: "https://k/v3", username: u, password: p, project_name: x}
        clouds:
          c:
            <<: *common
            auth: {<<: *login, username: v}
            auth_type: ~
            insecure: null
            verify: ~
          d:
            auth: *login
            cacert: null
            interface: null
    """
    write_private(tmp_path / "clouds.yaml", text)
    environment = {"OS_CLIENT_CONFIG_FILE": str(tmp_path / "clouds.yaml")}
    cloud = cloud_of(StoreSection(cloud="c"), environment)
    assert (cloud.keystone.region, cloud.keystone.interface) == ("R", "internal")
    assert cloud.ca_file == Path("/own.pem")
    assert cloud.keystone.options["username"] == "v"
    other = cloud_of(StoreSection(cloud="d"), environment)
    assert (other.ca_file, other.keystone.interface) == (None, "public")


def test_the_default_domain_of_a_cloud() -> None:
    options = of_environment(OS_DEFAULT_DOMAIN_ID="d").keystone.options
    assert (options["user_domain_id"], options["project_domain_id"]) == ("d", "d")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"clouds: {{c: [{SECRET}", "is not YAML"),
        (f"clouds:\n  c: !!python/object/apply:os.system ['{SECRET}']\n", "is not YAML"),
        ("[" * 60_000, "is not YAML"),
        ("clouds: 7", "has no clouds"),
        ("text", "has no clouds"),
        ("clouds: {d: {}, 3: {}}", "one of its clouds: 3, d"),
        ("clouds: {c: 7}", "has no cloud c"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, text: str, message: str) -> None:
    write_private(tmp_path / "clouds.yaml", text)
    environment = {"OS_CLIENT_CONFIG_FILE": str(tmp_path / "clouds.yaml")}
    assert message in refused(lambda: cloud_of(StoreSection(cloud="c"), environment))


def test_the_directories_of_clouds_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current directory is none of them."""
    values = {
        "clouds": {"c": {"auth": {"auth_url": "https://k/v3", "token": SECRET, "project_id": "p"}}}
    }
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    write_private(here / "clouds.yaml", json.dumps(values))
    home = tmp_path / "home"
    environment = {"HOME": str(home), "OS_CLOUD": "c"}
    assert f"{home}/.config/openstack" in refused(lambda: cloud_of(StoreSection(), environment))
    (home / ".config" / "openstack").mkdir(parents=True)
    write_private(home / ".config" / "openstack" / "clouds.yaml", json.dumps(values))
    assert cloud_of(StoreSection(), environment).keystone.kind == "v3token"
    other = {**environment, "XDG_CONFIG_HOME": str(tmp_path / "none")}
    assert str(tmp_path / "none") in refused(lambda: cloud_of(StoreSection(), other))


def section(**keys: Any) -> StoreSection:
    return StoreSection(**{"url": "swift:https://k/v3", "key_file": Path("/key"), **keys})


@pytest.mark.parametrize(
    "keys",
    [
        {"user": "u"},
        {"auth": "v3password", "user": "u", "project": "p"},
        {"auth": "v3password", "user": "u", "project": "p", "user_domain": "d", "region": "R"},
        {"auth": "v3applicationcredential", "application_credential": "i", "interface": "internal"},
        {"auth": "v3token", "project": "p"},
        {"url": "swift:", "cloud": "c"},
        {"url": "swift:", "region": "R"},
    ],
)
def test_a_section_with_a_login(keys: dict[str, Any]) -> None:
    section(**keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "needs user and key_file"),
        ({"user": "u", "project": "p"}, "project can't be used with auth 'v1'"),
        ({"user": "u", "region": "p"}, "region can't be used"),
        ({"auth": "v3password", "user": "u"}, "needs user and key_file and project"),
        (
            {"auth": "v3applicationcredential", "application_credential": "i", "project": "p"},
            "project can't be used",
        ),
        ({"auth": "v3token"}, "needs key_file and project"),
        ({"user": "u", "cloud": "c"}, "two logins"),
        ({"url": "swift:", "user": "u"}, "user can't be used without a url"),
        ({"url": "swift:", "auth": "v3password"}, "auth can't be used without a url"),
        ({"url": "swift:x"}, "url"),
    ],
)
def test_a_section_with_a_mistake(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        section(**keys)


def test_the_login_of_a_section(tmp_path: Path) -> None:
    key = tmp_path / "key"
    write_private(key, SECRET)
    login = cloud_of(section(auth="v3password", user="u", project="p", key_file=key)).keystone
    assert login.options["password"] == SECRET
    assert login.who == "the user u"
    other = cloud_of(
        section(auth="v3applicationcredential", application_credential="i", key_file=key)
    ).keystone
    assert other.who == "the application credential i"
    assert login.account != other.account


def test_what_names_a_cloud() -> None:
    environments: list[tuple[Mapping[str, str], bool]] = [
        ({}, False),
        ({"OS_CLOUD": ""}, False),
        ({"OS_CLOUD": "c"}, True),
        (PASSWORD, True),
    ]
    assert [names_cloud(one) for one, _ in environments] == [named for _, named in environments]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["auth", "auth_url", "auth_type", "verify", "interface", "token"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=8,
    )
)
def test_any_cloud_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, values: Any
) -> None:
    folder = tmp_path_factory.getbasetemp()
    try:
        of_file(folder, values)
    except ConfigInvalid:
        assert True
