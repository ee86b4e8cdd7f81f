"""What Keystone says about a token: its project, its catalogue, and how long it is valid."""

import re
import time
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

from agent.store.swift.errors import moment
from agent.store.swift.login import Connect

if TYPE_CHECKING:
    from keystoneauth1.access import AccessInfoV3
    from keystoneauth1.session import Session

_VERSION: Final = "/v3"
# Keystone's middleware answers 401 with this header to a request without a token.
_KEYSTONE: Final = re.compile(r"Keystone uri=[\"']?(https?://[^\"'\s]{1,300})")


class Grant(NamedTuple):
    """A token with its catalogue, as Keystone describes it.

    `seconds` is the time that the token is still valid, or None if it doesn't expire.
    """

    info: "AccessInfoV3"
    seconds: float | None


def announced_keystone(storage_url: str, connect: Connect) -> str | None:
    """Return the URL of the Keystone that a store trusts, or None if the store doesn't tell.

    The store is asked without a token. A URL without TLS is not returned if the store has TLS,
    because a token may not be sent in clear text.
    """
    with connect(storage_url) as connection:
        connection.request("HEAD", connection.parsed_url.path, "", {})
        answer = connection.getresponse()
        answer.read()
        found = _KEYSTONE.search(answer.getheader("www-authenticate") or "")
    if found is None:
        return None
    schemes = [urlsplit(url).scheme.lower() for url in (storage_url, found[1])]
    return None if schemes == ["https", "http"] else found[1]


def granted(info: "AccessInfoV3") -> Grant:
    """Return the grant of a token that Keystone has just issued.

    Both times are of Keystone's clock, because this machine's may be wrong.
    """
    if info.expires is None or info.issued is None:
        return Grant(info, None)
    return Grant(info, max((info.expires - info.issued).total_seconds(), 0.0))


def ask_about(session: "Session", auth_url: str, token: str, *, catalogue: bool = True) -> Grant:
    """Ask Keystone about a token, with the token itself as the right to ask.

    https://docs.openstack.org/api-ref/identity/v3/#validate-and-show-information-for-token

    Raises:
        keystoneauth1.exceptions.ClientException: Keystone refuses the token or the question.
    """
    from keystoneauth1.access import AccessInfoV3, create
    from keystoneauth1.exceptions import InvalidResponse

    base = auth_url.rstrip("/")
    base = base if base.endswith(_VERSION) else base + _VERSION
    answer = session.get(
        f"{base}/auth/tokens" + ("" if catalogue else "?nocatalog"),
        headers={"Accept": "application/json", "X-Auth-Token": token, "X-Subject-Token": token},
        authenticated=False,
        log=False,
    )
    try:
        info = create(resp=answer, auth_token=token)
        if not isinstance(info, AccessInfoV3):
            raise InvalidResponse(answer)
        if info.expires is None:
            return Grant(info, None)
        now = moment(answer.headers.get("Date", "")) or time.time()
        return Grant(info, max(info.expires.timestamp() - now, 0.0))
    except ValueError:
        raise InvalidResponse(answer) from None
