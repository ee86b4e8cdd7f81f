"""What Swift tells in the headers of an answer without a body."""

from email.utils import parsedate_to_datetime

from swiftclient import client

from agent.errors import StoreRejected
from agent.store.protocol import Stat
from agent.store.swift.session import Link


def stat(container: str, name: str, link: Link) -> Stat:
    """Return ETag and size of an object's newest copy."""
    headers = client.head_object(
        link.url, link.token, container, name, http_conn=link.http, headers={"X-Newest": "true"}
    )
    length = headers.get("content-length")
    # the ETag of a manifest is in quotes, in Ceph's gateway that of any object
    return Stat(headers.get("etag", "").strip('"'), None if length is None else int(length))


def read_clock(what: str, container: str, link: Link) -> float:
    """Return the Date of an answer in Unix seconds; StoreRejected if it has none.

    A store need not have a clock (RFC 9110, section 6.6.1).
    """
    headers = client.head_container(link.url, link.token, container, http_conn=link.http)
    date = headers.get("date", "")
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        raise StoreRejected(f"{what}: its answer is dated {date[:40]!r}") from None
