"""Requests that list a container, page by page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from swiftclient import client

from agent.errors import StoreRejected
from agent.store.protocol import StoredObject
from agent.store.swift.connection import LONGEST_ANSWER
from agent.store.swift.session import Link, SwiftSession

_PAGE: Final = 1000  # rows of a listing that are in memory at a time
# Swift's answer to a request for a page of more rows than it allows.
_TOO_LONG: Final = 412


@dataclass
class Paging:
    """The number of rows that are requested at a time, None for the store's own default."""

    rows: int | None = _PAGE


def list_objects(
    session: SwiftSession, paging: Paging, container: str, prefix: str
) -> Iterator[StoredObject]:
    """Yield the objects with names that begin with `prefix`, in order of their names.

    Objects that no request can reach by their names are left out.

    Raises:
        StoreRejected: the listing doesn't go on, or has other names.
    """
    what, marker = f"list {container}", ""
    while page := session.call(
        what, partial(_page, paging, container, prefix, marker), size=LONGEST_ANSWER
    ):
        if page[-1].name <= marker:
            raise StoreRejected(f"{what}: the store's listing does not go on after {marker!r}")
        if not all(row.name.startswith(prefix) for row in page):
            # The caller may be about to delete every object that is listed.
            raise StoreRejected(
                f"{what}: the store lists names that do not begin with {prefix}, as requested"
            )
        yield from filter(_reachable, page)
        marker = page[-1].name


def _page(
    paging: Paging, container: str, prefix: str, marker: str, link: Link
) -> Sequence[StoredObject]:
    rows = paging.rows
    try:
        return _rows(container, prefix, marker, rows, link)
    except client.ClientException as error:
        if error.http_status != _TOO_LONG or rows is None:
            raise
    # The store's own default is below the number requested. So such a page is small enough.
    paging.rows = None
    return _rows(container, prefix, marker, None, link)


def _rows(
    container: str, prefix: str, marker: str, limit: int | None, link: Link
) -> Sequence[StoredObject]:
    _, rows = client.get_container(
        link.url,
        link.token,
        container,
        marker=marker,
        limit=limit,
        prefix=prefix,
        http_conn=link.http,
    )
    return [_row(row) for row in rows]


def _row(row: Mapping[str, Any]) -> StoredObject:
    try:
        # The `hash` of a manifest is the MD5 of its JSON. Its ETag is in `slo_etag`, in quotes.
        etag = row.get("slo_etag", row["hash"]).strip('"')
        name, size, modified = row["name"], row["bytes"], row["last_modified"]
        if not (isinstance(name, str) and isinstance(size, int) and isinstance(modified, str)):
            raise TypeError
        return StoredObject(name, size, etag, modified)
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreRejected(
            "the store's listing has a row that does not describe an object"
        ) from error


def _reachable(row: StoredObject) -> bool:
    """Return True if a request by its name can reach the object.

    Before a URL is sent, the steps `.` and `..` of its path are resolved (RFC 3986, section 5.2.4).
    So the request would reach another object, perhaps in another container. The agent makes no such
    names.
    """
    return {".", ".."}.isdisjoint(row.name.split("/"))
