"""The login at OpenStack's Keystone, version 3, through keystoneauth1.

Keystone returns a token for one project, and the catalogue of the project's services. The storage
URL is that of the service `object-store` in the catalogue
(https://docs.openstack.org/api-ref/identity/v3/#authentication-and-token-management).

keystoneauth1 is imported at the first login, because most commands don't need it.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from swiftclient.exceptions import ClientException

from agent.errors import (
    ConfigInvalid,
    EndpointMissing,
    LoginDenied,
    StoreError,
    StoreRejected,
    TokenExpired,
)
from agent.model import printable
from agent.model.values import VISIBLE
from agent.store.swift.login import Access, Connect, checked_storage_url
from agent.store.swift.tokens import Grant, ask_about, granted

if TYPE_CHECKING:
    from keystoneauth1.access import AccessInfoV3
    from keystoneauth1.session import Session

_SERVICE: Final = "object-store"
# The kinds of login. Each has its class in keystoneauth1.identity.v3.
PASSWORD: Final = "v3password"  # noqa: S105 - the name of a kind
APPLICATION_CREDENTIAL: Final = "v3applicationcredential"
TOKEN: Final = "v3token"  # noqa: S105 - the name of a kind
_CLASSES: Final = {
    PASSWORD: "Password",
    APPLICATION_CREDENTIAL: "ApplicationCredential",
    TOKEN: "Token",
}
_SCOPE: Final = ("project_id", "project_name", "project_domain_id", "project_domain_name")
_USER: Final = ("user_id", "username", "user_domain_id", "user_domain_name")
# The options of each kind, by the names of keystoneauth1. An application credential has a project
# of its own, and Keystone refuses to scope it to another one.
OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    PASSWORD: ("password", *_USER, *_SCOPE),
    APPLICATION_CREDENTIAL: (
        "application_credential_secret",
        "application_credential_id",
        "application_credential_name",
        *_USER,
    ),
    TOKEN: ("token", *_SCOPE),
}
# For each kind, groups of options. One option of each group must be there.
_NEEDED: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = {
    PASSWORD: (("password",), ("user_id", "username"), ("project_id", "project_name")),
    APPLICATION_CREDENTIAL: (
        ("application_credential_secret",),
        ("application_credential_id", "application_credential_name"),
    ),
    TOKEN: (("token",),),
}
_VISIBLE: Final = re.compile(VISIBLE)
# The options that are secrets.
_SECRETS: Final = ("password", "application_credential_secret", "token")
_URL_HINT: Final = "check the URL of Keystone, which ends in /v3"
_MOST_ENDPOINTS: Final = 10  # named in a message
_LONGEST_NAME: Final = 60  # characters of a foreign name in a message


@dataclass(frozen=True)
class KeystoneSettings:
    """The settings of one login.

    `kind` is a key of OPTIONS, and `options` are those of its options that are set. A token without
    a project is used for its own one. `region` None means any region. `interface` is `public`,
    `internal` or `admin`. `told_by` names the place that the settings come from, for messages.

    Raises:
        ConfigInvalid: the kind isn't known, or an option is missing.
    """

    auth_url: str
    kind: str
    options: Mapping[str, str] = field(repr=False)
    region: str | None = None
    interface: str = "public"
    told_by: str = "[store]"

    def __post_init__(self) -> None:
        if self.kind not in OPTIONS:
            raise ConfigInvalid(
                f"{self.told_by} asks for the login {self.kind!r}, which is not supported",
                hint=f"use one of: {', '.join(OPTIONS)}",
            )
        url = urlsplit(self.auth_url)
        if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc:
            raise ConfigInvalid(
                f"{self.told_by} has an auth_url that is not a URL of Keystone",
                hint="set it to http(s)://host:port/v3, without a user or a password in it",
            )
        if not _VISIBLE.fullmatch(self.options.get("token", "t")):
            raise ConfigInvalid(
                f"{self.told_by} has a token with characters that HTTP can't send",
                hint="write the token alone, without blanks, quotes or a byte order mark",
            )
        for group in _NEEDED[self.kind]:
            if not any(self.options.get(name) for name in group):
                raise ConfigInvalid(
                    f"{self.told_by} has no {' or '.join(group)}, which {self.kind} needs",
                    hint="docs/stores.md has an example of each kind of login",
                )

    @property
    def who(self) -> str:
        """Return the user or the application credential, for messages."""
        if self.kind == TOKEN:
            return "the token"
        credential = self.kind == APPLICATION_CREDENTIAL
        options = OPTIONS[self.kind][2:0:-1] if credential else ("username", "user_id")
        found = next(self.options[name] for name in options if name in self.options)
        return f"the application credential {found}" if credential else f"the user {found}"

    @property
    def project(self) -> str | None:
        """Return the name or the id of the project. An application credential names none."""
        return self.options.get("project_name") or self.options.get("project_id")

    def is_project_of(self, info: "AccessInfoV3") -> bool:
        """Return True if a token is scoped to the project, or if none is named."""
        found = {
            "project_id": info.project_id,
            "project_name": info.project_name,
            "project_domain_id": info.project_domain_id,
            "project_domain_name": info.project_domain_name,
        }
        # an id needs no domain
        names = _SCOPE[:1] if "project_id" in self.options else _SCOPE[1:]
        return all(found[name] == self.options[name] for name in names if name in self.options)

    @property
    def account(self) -> str:
        """Return a text that differs for different accounts of the store. It has no secret."""
        known = {name: value for name, value in self.options.items() if name in _NAMING}
        parts = [f"{name}={value}" for name, value in sorted(known.items())]
        return " ".join([self.auth_url, *parts, self.region or "", self.interface])


_NAMING: Final = frozenset((*_USER, *_SCOPE, *OPTIONS[APPLICATION_CREDENTIAL][1:3]))


@dataclass(frozen=True)
class KeystoneLogin:
    """A login at Keystone, which returns the storage URL and a token of the project."""

    settings: KeystoneSettings

    def __call__(self, connect: Connect) -> Access:
        with self._asking(connect) as session:
            grant = self._granted(session)
            url = checked_storage_url(self.settings.auth_url, self._endpoint(grant.info))
            return Access(url, str(grant.info.auth_token), True, grant.seconds)

    def token_seconds_left(self, connect: Connect) -> float | None:
        """Return how long the given token is valid in seconds, or None if it doesn't expire.

        Raises:
            TokenExpired: Keystone refuses the token.
        """
        from keystoneauth1.exceptions import NotFound, Unauthorized

        settings = self.settings
        with self._asking(connect) as session:
            try:
                token = settings.options["token"]
                return ask_about(session, settings.auth_url, token, catalogue=False).seconds
            except (NotFound, Unauthorized) as error:
                if isinstance(error, NotFound) and not _is_of_keystone(error.response):
                    raise
                raise self._refusal(session) from None

    @contextmanager
    def _asking(self, connect: Connect) -> Iterator["Session"]:
        """Yield a session with Keystone, and translate its errors."""
        from keystoneauth1.session import Session

        # keystoneauth1 writes requests and answers to its debug log
        logging.getLogger("keystoneauth").setLevel(logging.WARNING)
        with connect(self.settings.auth_url) as http, self._translated():
            # keystoneauth1 replaces what the connection sends with each request of its own
            given = http.requests_args
            yield Session(session=http.request_session, verify=given["verify"], redirect=False)

    def _granted(self, session: "Session") -> Grant:
        """Return Keystone's answer, or raise the reason of its refusal."""
        from keystoneauth1.exceptions import Forbidden, MissingAuthMethods, NotFound, Unauthorized

        try:
            return self._own_scope(session) or granted(self._authenticated(session))
        except Unauthorized:
            raise self._refusal(session) from None
        except MissingAuthMethods:
            raise self._denied(
                "must log in by a second factor, too, which is not supported",
                "use an application credential of that user",
            ) from None
        except (NotFound, Forbidden) as error:
            if not _is_of_keystone(error.response):
                raise
            if isinstance(error, NotFound):  # a credential or token was deleted or revoked
                raise self._refusal(session) from None
            raise self._denied(
                "may not get a token for the project",
                "the token of an application credential can't be used for another project: use a "
                "token of a user's password"
                if self.settings.kind == TOKEN
                else "give the user a role in the project, and see Keystone's policy",
            ) from None

    def _own_scope(self, session: "Session") -> Grant | None:
        """Return the grant of a given token if it is already one for the project, None otherwise.

        A token is scoped again only if it must be, because Keystone refuses that to the token of an
        application credential.
        """
        from keystoneauth1.exceptions import Forbidden

        settings = self.settings
        if settings.kind != TOKEN:
            return None
        try:
            grant = ask_about(session, settings.auth_url, settings.options["token"])
        except Forbidden:  # by a policy of its own. The next request tells more.
            return None
        return grant if settings.is_project_of(grant.info) else None

    def _authenticated(self, session: "Session", *, scoped: bool = True) -> "AccessInfoV3":
        from keystoneauth1.identity import v3

        options: dict[str, Any] = dict(self.settings.options)
        if not scoped:
            options = {name: one for name, one in options.items() if name not in _SCOPE}
            options["unscoped"] = True
        plugin = getattr(v3, _CLASSES[self.settings.kind])(self.settings.auth_url, **options)
        # not get_access(), which logs in again for each request if a token lives only for seconds
        info: AccessInfoV3 = plugin.get_auth_ref(session)
        return info

    def _refusal(self, session: "Session") -> StoreError:
        """Return the error of a refused login (401).

        Keystone gives the same answer to a wrong password and to a project that the user may not
        use. So the agent asks again without the project.
        """
        if self.settings.kind == TOKEN:
            return TokenExpired(
                f"Keystone at {self.settings.auth_url} refuses the token (from "
                f"{self.settings.told_by}): it has expired, was revoked, or its user has no role "
                "in the project",
                hint="use another token, which is valid for the whole backup",
            )
        if self.settings.kind == APPLICATION_CREDENTIAL:
            return self._denied(
                "is refused",
                "it was deleted or has expired, its secret is wrong, or its user has lost the role "
                "in the project: make another one (openstack application credential create), and "
                "put its id and secret into the configuration",
            )
        from keystoneauth1.exceptions import Unauthorized

        try:
            self._authenticated(session, scoped=False)
        except Unauthorized:
            return self._denied(
                "is refused: the name, password or domain is wrong, or the user is disabled",
                "correct the user, its password and its domain in the configuration",
            )
        return self._denied(
            f"may log in, but not to the project {self.settings.project}",
            "correct the project and its domain in the configuration, or give the user a role in "
            "the project (openstack role add --user USER --project PROJECT member)",
        )

    def _denied(self, what: str, hint: str) -> LoginDenied:
        settings = self.settings
        return LoginDenied(
            f"Keystone at {settings.auth_url}: {settings.who} {what} (from {settings.told_by})",
            hint=hint,
        )

    def _endpoint(self, info: "AccessInfoV3") -> str:
        """Return the URL of the object store in the catalogue.

        Raises:
            EndpointMissing: the catalogue has none for the region and the interface.
        """
        settings, catalogue = self.settings, info.service_catalog
        wanted = f"{settings.interface} URL of the service {_SERVICE}"
        endpoints = [
            one
            for one in catalogue.get_endpoint_data_list(
                service_type=_SERVICE, interface=settings.interface
            )
            if settings.region in (None, one.region_name)
        ]
        if not endpoints:
            region = f"in the region {settings.region}" if settings.region else "in any region"
            raise EndpointMissing(
                f"Keystone at {settings.auth_url} has no {wanted} {region} for {settings.who}: "
                f"{_offer(catalogue)}"
            )
        if len({one.url for one in endpoints}) > 1:
            # Their order may change. Then the backups of one database would be in several stores.
            raise EndpointMissing(
                f"Keystone at {settings.auth_url} has more than one {wanted}: {_offer(catalogue)}",
                hint="name one region in [store] region (for clouds.yaml in region_name, for the "
                "environment in OS_REGION_NAME)",
            )
        return str(endpoints[0].url)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn an error of keystoneauth1 into one of the HTTP libraries, or into a StoreRejected.

        The session translates those of the HTTP libraries.
        """
        from keystoneauth1 import exceptions

        url = self.settings.auth_url
        try:
            yield
        except exceptions.NotFound as error:
            raise StoreRejected(
                f"{url} answers 404: it is not a URL of Keystone's version 3", hint=_URL_HINT
            ) from error
        except exceptions.HttpError as error:
            raise _as_of_swiftclient(error.response, self._shown(error)) from None
        except exceptions.ConnectionError as error:
            # keystoneauth1 hides the error of requests, which has the reason
            if error.__context__ is not None:
                raise error.__context__ from None
            raise
        except (exceptions.ClientException, LookupError, TypeError, AttributeError) as error:
            # the last three are what keystoneauth1 raises for JSON of another form
            answer = getattr(error, "response", None)
            if answer is not None and answer.is_redirect:
                raise _as_of_swiftclient(answer) from None
            raise StoreRejected(
                f"{url} answers, but not as Keystone's version 3 does", hint=_URL_HINT
            ) from None

    def _shown(self, error: Any) -> str:
        """Return Keystone's reason for a refusal, "" if it may contain a secret."""
        text = str(error.message)
        secrets = (self.settings.options.get(name) for name in _SECRETS)
        safe = _is_of_keystone(error.response) and not any(one and one in text for one in secrets)
        return text if safe else ""


def _is_of_keystone(answer: Any) -> bool:
    """Return True if an answer is an error in Keystone's form, and not in that of a web server."""
    try:
        return isinstance(answer.json()["error"], dict)
    except (ValueError, LookupError, TypeError, AttributeError):
        return False


def _offer(catalogue: Any) -> str:
    """Return the object stores of a catalogue as text."""
    if not catalogue.catalog:
        return "its catalogue is empty"
    rows = sorted(
        printable(f"{one.interface} in {one.region_name}"[:_LONGEST_NAME])
        for one in catalogue.get_endpoint_data_list(service_type=_SERVICE, interface=None)
    )
    return f"it offers {', '.join(rows[:_MOST_ENDPOINTS]) or 'only other services'}"


def _as_of_swiftclient(answer: Any, message: str = "") -> ClientException:
    """Return the error of swiftclient for a refusal, which the session knows."""
    return ClientException(
        "log in",
        http_status=getattr(answer, "status_code", 0),
        http_response_content=message,
        http_response_headers=getattr(answer, "headers", {}),
    )
