"""Ways to log in to Swift: what gives a storage URL, and the token that opens it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

from swiftclient.exceptions import ClientException

from agent.errors import StoreRejected

_LONGEST_ANSWER: Final = 200  # bytes of a body that only its refusal is told by
_NO_LOGIN_HERE: Final = (404, 405, 412)  # 412 is what Swift's proxy says of a path it can't split
_URL_HINT: Final = "check that [store] url names the Swift authentication URL"

_LONGEST_URL: Final = 200
_CLEAR_HINT: Final = (
    "have the store answer an https:// storage URL (behind a proxy that does its TLS: "
    "storage_url_scheme of Swift's tempauth, the catalogue of Keystone, `rgw swift url` of Ceph)"
)

Connect = Callable[[str], AbstractContextManager[Any]]


class Access(NamedTuple):
    """Where the account's objects are, and the token that opens them.

    `renewable` says whether to log in once more may bring another token.
    """

    storage_url: str
    token: str
    renewable: bool = True

    def __repr__(self) -> str:
        return f"Access({self.storage_url!r})"


class Authenticate(Protocol):
    """One way to log in; `connect` opens a connection for a block, as the session's own are."""

    def __call__(self, connect: Connect) -> Access: ...


@dataclass(frozen=True)
class AuthV1:
    """Swift's own authentication, version 1: a user name and a key in headers."""

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
                    f"{self.url} answers {answer.status}: nobody logs in there", hint=_URL_HINT
                )
            if answer.status // 100 != 2:
                raise ClientException.from_response(answer, "authenticate", body or b" ")
            if not url or not token:
                raise StoreRejected(
                    f"{self.url} answers, but not with a storage URL and a token",
                    hint=_URL_HINT,
                )
            if _scheme(self.url) == "https" and _scheme(url) != "https":
                raise StoreRejected(
                    f"the login at {self.url} goes over TLS, and names the storage URL "
                    f"{url[:_LONGEST_URL]}, to which the token would go in clear text",
                    hint=_CLEAR_HINT,
                )
            return Access(url.rstrip("/"), token)


def _scheme(url: str) -> str:
    return urlsplit(url).scheme.lower()


@dataclass(frozen=True)
class AuthToken:
    """A token that somebody else got; there is no other once the store refuses it."""

    storage_url: str
    token: str = field(repr=False)

    def __call__(self, connect: Connect) -> Access:
        return Access(self.storage_url.rstrip("/"), self.token, renewable=False)
