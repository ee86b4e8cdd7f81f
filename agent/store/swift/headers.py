"""Functions that read the headers of Swift's answers without a body."""

from email.utils import parsedate_to_datetime

from swiftclient import client

from agent.errors import StoreRejected
from agent.store.protocol import Stat
from agent.store.swift.session import Link


def stat(container: str, name: str, link: Link) -> Stat:
    """Return the ETag and the size of an object's newest copy."""
    headers = client.head_object(
        link.url, link.token, container, name, http_conn=link.http, headers={"X-Newest": "true"}
    )
    length = headers.get("content-length")
    # The ETag of a manifest is in quotes.
    return Stat(headers.get("etag", "").strip('"'), None if length is None else int(length))


def read_clock(what: str, container: str, link: Link) -> float:
    """Return the Date header of an answer in Unix seconds.

    Raises:
        StoreRejected: the answer has no valid Date. A store need not have a clock (RFC 9110,
            section 6.6.1).
    """
    headers = client.head_container(link.url, link.token, container, http_conn=link.http)
    date = headers.get("date", "")
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        raise StoreRejected(
            f"{what}: the Date header of the store's answer is not a date: {date[:40]!r}"
        ) from None
