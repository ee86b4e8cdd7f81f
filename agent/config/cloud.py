"""The login at an OpenStack cloud: keys of [store], a cloud of clouds.yaml, or variables OS_*.

clouds.yaml is the file of openstacksdk, and secure.yaml beside it may hold the secrets
(https://docs.openstack.org/openstacksdk/latest/user/config/configuration.html). The variables are
those of the command `openstack`. Not supported are vendor profiles, which would be fetched from the
network, and a clouds.yaml in the current directory, where another user may have put it.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from agent.config.secrets import read_secret
from agent.config.settings import StoreSection
from agent.errors import ConfigInvalid
from agent.store.swift.keystone import APPLICATION_CREDENTIAL, OPTIONS, KeystoneSettings

_CLOUDS: Final = ("clouds.yaml", "clouds.yml")
_SECURE: Final = ("secure.yaml", "secure.yml")
# Keystone's domain in a cloud that has no other one (keystone-manage bootstrap).
_DOMAIN: Final = "Default"
# The kinds of login by the names that clouds.yaml and OS_AUTH_TYPE may use.
_KINDS: Final = {
    "password": "v3password",
    "v3password": "v3password",
    "token": "v3token",
    "v3token": "v3token",
    "v3applicationcredential": APPLICATION_CREDENTIAL,
}
# Earlier names of options.
_ALIASES: Final = {
    "tenant_id": "project_id",
    "tenant_name": "project_name",
    "user_name": "username",
    "domain_id": "user_domain_id",
    "domain_name": "user_domain_name",
}
_INTERFACES: Final = ("public", "internal", "admin")
_OTHER_URL: Final = "remove it: the agent uses the URL in the catalogue of Keystone"
# What a cloud may have that would need another login or another store, and the cures.
_UNSUPPORTED: Final = {
    "profile": "write the auth_url and the other values of the profile into the cloud itself",
    "cert": "use a login without a client certificate, such as an application credential",
    "object_store_endpoint_override": _OTHER_URL,
    "storage_url": _OTHER_URL,
}
_NULLS: Final = ("", "~", "null")
_OFF: Final = ("false", "0", "no", "off")


class Cloud(NamedTuple):
    """A login, and the file with the certificate authority of the cloud."""

    keystone: KeystoneSettings
    ca_file: Path | None = None


def names_cloud(environment: Mapping[str, str]) -> bool:
    """Return True if the environment describes or names a cloud."""
    return bool(environment.get("OS_CLOUD") or environment.get("OS_AUTH_URL"))


def cloud_of(section: StoreSection, environment: Mapping[str, str] = os.environ) -> Cloud:
    """Return the login at Keystone that [store] describes or names.

    Raises:
        ConfigInvalid: the description is missing, incomplete, or asks for something that isn't
            supported, or a file with it can't be read or is accessible to other users.
    """
    if section.address:
        return Cloud(_of_section(section), section.ca_file)
    name = section.cloud or environment.get("OS_CLOUD")
    if name:
        place, values = f"the cloud {name} of clouds.yaml", _of_file(name, environment)
    else:
        place, values = "the environment", _of_environment(environment)
    return _cloud(values, place, section)


def _of_section(section: StoreSection) -> KeystoneSettings:
    assert section.key_file is not None  # the section has been validated
    secret = read_secret(section.key_file, "[store] key_file")
    project = {
        "project_name": section.project,
        "project_domain_name": section.project_domain,
    }
    options = {
        "v3password": {
            "username": section.user,
            "user_domain_name": section.user_domain,
            "password": secret,
            **project,
        },
        "v3applicationcredential": {
            "application_credential_id": section.application_credential,
            "application_credential_secret": secret,
        },
        "v3token": {"token": secret, **project},
    }[section.auth]
    return KeystoneSettings(
        section.address, section.auth, options, section.region, section.interface
    )


def _of_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the variables OS_* in the form of a cloud of clouds.yaml."""
    known = {
        name.removeprefix("OS_").lower(): value
        for name, value in environment.items()
        if name.startswith("OS_") and value
    }
    if "auth_url" not in known:
        raise ConfigInvalid(
            "[store] has no url, and the environment has neither OS_CLOUD nor OS_AUTH_URL",
            hint="set [store] url to swift: and the URL of a login, or to file:/// and a folder, "
            "or set [store] cloud to the name of a cloud in clouds.yaml",
        )
    if known.get("auth_url", "").rstrip("/").endswith("/v2.0"):
        raise ConfigInvalid(
            "OS_AUTH_URL is that of Keystone's version 2, which no longer exists",
            hint="set it to the URL of version 3, which ends in /v3",
        )
    return {
        **known,
        "auth": known,
        "interface": known.get("interface", known.get("endpoint_type")),
    }


def _cloud(values: Mapping[str, Any], place: str, section: StoreSection) -> Cloud:
    """Return the login that the values of a cloud describe. `place` names them in messages."""
    values = {name: one for name, one in values.items() if one not in _NULLS}
    _check_supported(values, place)
    given = values.get("auth")
    pairs = given.items() if isinstance(given, dict) else ()
    auth = {key: one for key, one in pairs if isinstance(one, str) and one not in _NULLS}
    for earlier, name in _ALIASES.items():
        if earlier in auth:
            auth.setdefault(name, auth[earlier])
    asked = str(values.get("auth_type") or _kind(auth))
    kind = _KINDS.get(asked, asked)
    options = {name: auth[name] for name in OPTIONS.get(kind, ()) if auth.get(name)}
    for name, domain in (("username", "user_domain"), ("project_name", "project_domain")):
        if name in options and not {f"{domain}_id", f"{domain}_name"} & options.keys():
            options |= _default_domain(domain, auth, values)
    if not auth.get("auth_url"):
        raise ConfigInvalid(f"{place} has no auth_url", hint="set it to the URL of Keystone")
    keystone = KeystoneSettings(
        auth["auth_url"],
        kind,
        options,
        section.region or _text(values.get("region_name")),
        section.interface if "interface" in section.model_fields_set else _interface(values, place),
        place,
    )
    return Cloud(keystone, section.ca_file or _path(values.get("cacert")))


def _default_domain(
    domain: str, auth: Mapping[str, str], values: Mapping[str, Any]
) -> dict[str, str]:
    """Return the option of a domain that has none of its own."""
    for form in ("id", "name"):
        name = f"default_domain_{form}"
        if given := auth.get(name) or _text(values.get(name)):
            return {f"{domain}_{form}": given}
    return {f"{domain}_name": _DOMAIN}


def _kind(auth: Mapping[str, str]) -> str:
    """Return the kind of a login that has no auth_type."""
    if any(name.startswith("application_credential") for name in auth):
        return APPLICATION_CREDENTIAL
    return "token" if "token" in auth and "password" not in auth else "password"


def _check_supported(values: Mapping[str, Any], place: str) -> None:
    """Raise ConfigInvalid if a cloud would need something that the agent can't or must not do."""
    off = str(values.get("verify", "true")).lower() in _OFF
    if off or str(values.get("insecure") or "false").lower() not in _OFF:
        raise ConfigInvalid(
            f"{place} turns the check of TLS certificates off, which the agent never does",
            hint="name the certificate of the cloud's authority: cacert in clouds.yaml, OS_CACERT "
            "in the environment, or [store] ca_file",
        )
    for name, cure in _UNSUPPORTED.items():
        if _text(values.get(name)):
            raise ConfigInvalid(f"{place} has {name}, which is not supported", hint=cure)


def _interface(values: Mapping[str, Any], place: str) -> str:
    named = str(values.get("interface") or values.get("endpoint_type") or "public")
    interface = named.removesuffix("URL")
    if interface not in _INTERFACES:
        raise ConfigInvalid(
            f"{place} names the interface {named!r}", hint=f"use one of {', '.join(_INTERFACES)}"
        )
    return interface


def _text(value: Any) -> str | None:
    return str(value) if value and value not in _NULLS else None


def _path(value: Any) -> Path | None:
    # not Path.expanduser(), which raises an error for a user without a home directory
    return Path(os.path.expanduser(str(value))) if value else None


# --- clouds.yaml ---------------------------------------------------------------------------


def _of_file(name: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of a cloud, with those of secure.yaml.

    Raises:
        ConfigInvalid: there is no such file or cloud, or a file can't be read.
    """
    path = _found("OS_CLIENT_CONFIG_FILE", _CLOUDS, environment)
    if path is None:
        folders = " and ".join(str(folder) for folder in _folders(environment))
        raise ConfigInvalid(
            f"the cloud {name} is not known, because there is no clouds.yaml in {folders}",
            hint="make the file, mode 0600, or set OS_CLIENT_CONFIG_FILE to its path",
        )
    clouds = _clouds(path)
    if not isinstance(clouds.get(name), dict):
        raise ConfigInvalid(
            f"{path} has no cloud {name}",
            hint=f"use one of its clouds: {', '.join(map(str, sorted(clouds, key=str))) or 'none'}",
        )
    secure = _found("OS_CLIENT_SECURE_FILE", _SECURE, environment)
    return _merged(clouds[name], _clouds(secure).get(name) or {} if secure else {})


def _merged(values: dict[str, Any], more: Any) -> dict[str, Any]:
    """Return the values of both. Those of `more` replace others."""
    merged = dict(values)
    for key, value in more.items() if isinstance(more, dict) else ():
        there = merged.get(key)
        merged[key] = _merged(there, value) if isinstance(there, dict) else value
    return merged


def _clouds(path: Path) -> dict[str, Any]:
    """Return the clouds of a file by name."""
    import yaml  # 10 ms, and most commands read no clouds.yaml

    class _Texts(yaml.SafeLoader):
        """A loader whose values are text, also a password such as 0123 that is not in quotes.

        Only merge keys (`<<`) have a meaning.
        """

        yaml_implicit_resolvers = {  # noqa: RUF012 - as the base class declares it
            "<": [("tag:yaml.org,2002:merge", re.compile("^(?:<<)$"))]
        }

    try:
        whole = yaml.load(read_secret(path, "clouds.yaml"), Loader=_Texts)  # noqa: S506
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)  # the text of the error may show a secret
        where = f" (line {mark.line + 1})" if mark else ""
        raise ConfigInvalid(
            f"{path} is not YAML{where}", hint="correct the file: see clouds.yaml in docs/stores.md"
        ) from None
    clouds = whole.get("clouds") if isinstance(whole, dict) else None
    if not isinstance(clouds, dict):
        raise ConfigInvalid(
            f"{path} has no clouds", hint="correct the file: see clouds.yaml in docs/stores.md"
        )
    return clouds


def _found(variable: str, names: tuple[str, ...], environment: Mapping[str, str]) -> Path | None:
    """Return the path that `variable` names, or else the first file of these names."""
    if given := environment.get(variable):
        return Path(given)
    paths = (folder / name for folder in _folders(environment) for name in names)
    return next((path for path in paths if os.path.exists(path)), None)


def _folders(environment: Mapping[str, str]) -> Iterator[Path]:
    """Yield the directories that may hold the files, as openstacksdk looks for them."""
    home, config = environment.get("HOME"), environment.get("XDG_CONFIG_HOME")
    if config:
        yield Path(config) / "openstack"
    elif home:
        yield Path(home) / ".config" / "openstack"
    yield Path("/etc/openstack")
