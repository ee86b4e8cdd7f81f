"""Ways to log in to Swift, each of which returns a storage URL and a token for it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

from swiftclient.exceptions import ClientException

from agent.errors import StoreRejected

# Bytes of the body that are read. They are used only for the message about a refusal.
_LONGEST_ANSWER: Final = 200
# Statuses of a URL without a login. Swift's proxy answers 412 to a path that it can't split.
_NO_LOGIN_HERE: Final = (404, 405, 412)
_URL_HINT: Final = "check that [store] url names the Swift authentication URL"

_LONGEST_URL: Final = 200  # characters of a foreign URL in a message
_CLEAR_HINT: Final = (
    "configure the store to answer with an https:// storage URL (behind a proxy that ends TLS set "
    "storage_url_scheme of Swift's tempauth, the catalogue of Keystone or `rgw swift url` of Ceph)"
)

Connect = Callable[[str], AbstractContextManager[Any]]


class Access(NamedTuple):
    """The storage URL of the account, and a token for it.

    `renewable` is True if another login may bring another token. `seconds` is the time that the
    token is valid from the login on, or None if the login doesn't tell. `service_token` is sent to
    the store beside the token, if there is one. Then `seconds` is the time of the service token,
    which another login replaces.
    """

    storage_url: str
    token: str
    renewable: bool = True
    seconds: float | None = None
    service_token: str = ""

    def __repr__(self) -> str:
        return f"Access({self.storage_url!r})"


class Authenticate(Protocol):
    """A way to log in.

    `connect` opens a connection for a block, as the session opens its own.
    """

    def __call__(self, connect: Connect, /) -> Access: ...


@dataclass(frozen=True)
class AuthV1:
    """Swift's own authentication, version 1, which sends a user name and a key in headers."""

    url: str
    user: str
    key: str = field(repr=False)

    def __call__(self, connect: Connect) -> Access:
        with connect(self.url) as connection:
            headers = {"X-Auth-User": self.user, "X-Auth-Key": self.key}
            connection.request("GET", connection.parsed_url.path, "", headers)
            answer = connection.getresponse()
            body = answer.read(_LONGEST_ANSWER)
            url = answer.getheader("x-storage-url")
            token = answer.getheader("x-storage-token") or answer.getheader("x-auth-token")
            if answer.status in _NO_LOGIN_HERE:
                raise StoreRejected(
                    f"{self.url} answers {answer.status}: it is not a login URL", hint=_URL_HINT
                )
            if answer.status // 100 != 2:
                raise ClientException.from_response(answer, "authenticate", body or b" ")
            if not url or not token:
                raise StoreRejected(
                    f"{self.url} answers, but without a storage URL and a token",
                    hint=_URL_HINT,
                )
            return Access(checked_storage_url(self.url, url), token)


def checked_storage_url(login_url: str, url: str) -> str:
    """Return the storage URL that a login returned, without a slash at its end.

    Raises:
        StoreRejected: the login goes over TLS, but requests to the storage URL would not.
    """
    if _scheme(login_url) == "https" and _scheme(url) != "https":
        raise StoreRejected(
            f"the login at {login_url} goes over TLS, but it returns the storage URL "
            f"{url[:_LONGEST_URL]}, which would get the token in clear text",
            hint=_CLEAR_HINT,
        )
    return url.rstrip("/")


def _server(url: str) -> str:
    """Return the scheme, the host and the port of a URL."""
    parts = urlsplit(url)
    host = f"{parts.scheme}://{parts.netloc}".lower()
    return host.removesuffix(":443" if parts.scheme == "https" else ":80")


def _scheme(url: str) -> str:
    return urlsplit(url).scheme.lower()


@dataclass(frozen=True)
class AuthToken:
    """A given storage URL and token, without a login.

    If the store refuses the token, there is no other one.
    """

    storage_url: str
    token: str = field(repr=False)

    def __call__(self, connect: Connect) -> Access:
        return Access(self.storage_url.rstrip("/"), self.token, renewable=False)


@dataclass(frozen=True)
class WithService:
    """A user's token that can't be renewed, and beside it the token of a service user.

    Swift accepts the user's token after its end if a service token comes with it, as long as
    Keystone still knows it (`allow_expired_window`, 48 h by default). So `user` logs in once, and
    its token is kept. `service` logs in again whenever the service token ends. Its token is sent
    only to the server that its own catalogue names, because whoever chose the user's storage URL
    may want to steal it.
    https://docs.openstack.org/keystone/latest/admin/manage-services.html
    """

    user: Authenticate
    service: Authenticate
    _kept: list[Access] = field(default_factory=list, init=False, repr=False, compare=False)

    def __call__(self, connect: Connect) -> Access:
        if not self._kept:
            self._kept.append(self.user(connect))
        given, service = self._kept[0], self.service(connect)
        if _server(given.storage_url) != _server(service.storage_url):
            raise StoreRejected(
                f"the token of the service user is for {_server(service.storage_url)}, but the "
                f"storage URL is at {_server(given.storage_url)[:_LONGEST_URL]}",
                hint="if both are the same store, choose its URL by [store] region and interface, "
                "or correct the catalogue of Keystone",
            )
        return Access(given.storage_url, given.token, False, service.seconds, service.token)
