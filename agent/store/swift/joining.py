"""Requests that create Static Large Objects, and the store's answers to them.

https://docs.openstack.org/swift/latest/middleware.html#static-large-objects
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from swiftclient import client

from agent.errors import StoreMismatch, StoreNotFound, StoreRejected, StoreUnreachable
from agent.store.protocol import ManifestEntry, check_entry
from agent.store.swift.headers import stat
from agent.store.swift.session import LEAST_RATE, Link, SwiftSession
from agent.threads import Workers

_CONNECTIONS: Final = 8  # for HEAD requests, which wait and move no bytes
# Swift's answer to a manifest with entries that are missing (400) or differ (400, 409).
_MEANINGS: Final = dict.fromkeys((400, 409), StoreMismatch)
# Ceph's gateway answers 404 to a manifest with entries that are missing.
_CEPH_MEANINGS: Final = {**_MEANINGS, 404: StoreMismatch}


class Destination(NamedTuple):
    """The container and the name of a manifest.

    `compares` is True if the store itself compares the entries and the ETag. Swift compares the
    entries and the ETag with its own objects. Ceph's gateway compares only sizes, and it refuses
    every manifest that comes with an ETag.
    """

    container: str
    name: str
    compares: bool

    @property
    def what(self) -> str:
        return f"put {self.container}/{self.name}"


def put_manifest(
    session: SwiftSession,
    to: Destination,
    rows: bytes,
    etag: str,
    headers: Mapping[str, str],
    entries: int,
) -> None:
    """Store a manifest of `entries` rows.

    Raises:
        StoreMismatch: the store answers another ETag.
        StoreRejected: there are no entries. Both Swift and Ceph's gateway would accept such a
            manifest.
    """
    if not entries:
        raise StoreRejected(f"{to.what}: a manifest needs at least one entry")

    def action(link: Link) -> None:
        stored = _answered_etag(_send(link, to, rows, etag, headers))
        if stored != etag:
            raise StoreMismatch(f"{to.what}: the store's ETag is {stored[:40]}, not {etag}")

    meanings = _MEANINGS if to.compares else _CEPH_MEANINGS
    # The store checks each object that it joins. A check may take a second, so each entry adds one
    # second to the deadline.
    session.call(to.what, action, meanings, size=len(rows) + entries * LEAST_RATE)


def check_entries(
    session: SwiftSession, to: Destination, container: str, entries: Sequence[ManifestEntry]
) -> None:
    """Check by requests that each entry is in `container` with its ETag and size.

    Raises:
        StoreMismatch: an entry is missing or differs.
    """
    pool = Workers(_CONNECTIONS, "check")
    try:
        for _ in pool.map(partial(_check_entry, session, to, container), entries):
            continue
    finally:
        pool.shutdown(cancel_futures=True)


def _check_entry(
    session: SwiftSession, to: Destination, container: str, entry: ManifestEntry
) -> None:
    what = f"{to.what}: check {container}/{entry.name}"
    try:
        found = session.call(what, partial(stat, container, entry.name))
    except StoreNotFound as error:
        raise StoreMismatch(str(error)) from error
    check_entry(to.what, entry, found)


def _send(
    link: Link, to: Destination, rows: bytes, etag: str, headers: Mapping[str, str]
) -> tuple[Any, bytes]:
    """Send the rows with PUT and return the answer and its body.

    With `heartbeat` Swift answers 202 at once. It then sends spaces while it checks the entries,
    and reports the result in the body. Other stores ignore `heartbeat` and answer as usual.

    Raises:
        ClientException: the answer is a refusal.
    """
    parsed, connection = link.http
    path = f"{parsed.path.rstrip('/')}/{quote(to.container)}/{quote(to.name)}"
    sent = {**headers, "X-Auth-Token": link.token, "Accept": "application/json"}
    if to.compares:
        sent["ETag"] = etag
    connection.request("PUT", f"{path}?multipart-manifest=put&heartbeat=on", rows, sent)
    answer = connection.getresponse()
    body: bytes = answer.read()
    if answer.status // 100 != 2:
        raise client.ClientException.from_response(answer, "put a manifest", body)
    return answer, body


def _answered_etag(answered: tuple[Any, bytes]) -> str:
    """Return the ETag of a manifest that the store confirms.

    Raises:
        ClientException: the body reports a refusal.
        StoreUnreachable: the answer ends too early.
        StoreRejected: the body can't be understood.
    """
    answer, body = answered
    if answer.status != 202:
        return str(answer.getheader("etag") or "").strip('"')
    if not body.strip():
        raise StoreUnreachable("the store's answer ended before the result of the write")
    said = json.loads(body)
    try:
        status = int(said["Response Status"].split()[0])
        if status // 100 == 2:
            return str(said["Etag"].strip('"'))
        # Each row has the path of an entry and its problem.
        problems = [f"{why}: {path}" for path, why in said.get("Errors", ())]
        text = "; ".join(problems) or str(said.get("Response Body", ""))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise StoreRejected("the store's answer does not report the result of the write") from error
    raise client.ClientException(
        "put a manifest", http_status=status, http_response_content=text.encode()
    )
