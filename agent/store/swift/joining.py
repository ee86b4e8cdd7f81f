"""Static Large Objects: what is sent to make one, and how a store says that it did.

https://docs.openstack.org/swift/latest/middleware.html#static-large-objects
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from swiftclient import client

from agent.errors import StoreMismatch, StoreNotFound, StoreRejected, StoreUnreachable
from agent.store.protocol import ManifestEntry, Stat
from agent.store.swift.headers import stat
from agent.store.swift.session import LEAST_RATE, Link, SwiftSession

_CONNECTIONS: Final = 8  # for HEADs, which are waiting and not bytes
# what Swift says of a manifest whose entries are missing (400) or differ (400, 409)
_MEANINGS: Final = dict.fromkeys((400, 409), StoreMismatch)
# and what Ceph's gateway says of one whose entries are missing
_CEPH_MEANINGS: Final = {**_MEANINGS, 404: StoreMismatch}


class Destination(NamedTuple):
    """Where a manifest goes, and whether the store is to compare its ETag itself.

    Swift compares entries and ETag with what it holds. Ceph's gateway compares sizes alone, and
    refuses every manifest that comes with an ETag.
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
    """Store a manifest of `entries` rows; StoreMismatch if the store answers another ETag.

    StoreRejected for one of none, which both Swift and Ceph's gateway would take.
    """
    if not entries:
        raise StoreRejected(f"{to.what}: a manifest can't join nothing")

    def action(link: Link) -> None:
        stored = _answered_etag(_send(link, to, rows, etag, headers))
        if stored != etag:
            raise StoreMismatch(f"{to.what}: the store joins ETag {stored[:40]}, not {etag}")

    meanings = _MEANINGS if to.compares else _CEPH_MEANINGS
    # the store looks at each object that it is to join: that may take it a second each
    session.call(to.what, action, meanings, size=len(rows) + entries * LEAST_RATE)


def check_entries(
    session: SwiftSession, to: Destination, container: str, entries: Sequence[ManifestEntry]
) -> None:
    """Ask the store for each entry in `container`; StoreMismatch unless it is there as told."""
    pool = ThreadPoolExecutor(_CONNECTIONS, "check")
    try:
        for _ in pool.map(partial(_check_entry, session, to, container), entries):
            continue
    finally:
        pool.shutdown(cancel_futures=True)


def _check_entry(
    session: SwiftSession, to: Destination, container: str, entry: ManifestEntry
) -> None:
    what = f"{to.what}: look at {container}/{entry.name}"
    try:
        found = session.call(what, partial(stat, container, entry.name))
    except StoreNotFound as error:
        raise StoreMismatch(str(error)) from error
    if found != Stat(entry.etag, entry.size):
        raise StoreMismatch(
            f"{to.what}: {entry.name} has {found.size} bytes with ETag {found.etag[:40]}, "
            f"not {entry.size} with {entry.etag[:40]}"
        )


def _send(
    link: Link, to: Destination, rows: bytes, etag: str, headers: Mapping[str, str]
) -> tuple[Any, bytes]:
    """PUT the rows; the answer and its body. ClientException if it is a refusal.

    With `heartbeat` Swift answers 202 at once, then spaces while it looks at the entries, and
    how that ended in the body. Other stores don't know the word, and answer as ever.
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
    """The ETag of a manifest that is stored; ClientException if the body is a refusal."""
    answer, body = answered
    if answer.status != 202:
        return str(answer.getheader("etag") or "").strip('"')
    if not body.strip():
        raise StoreUnreachable("the store's answer ended before it said how the write went")
    said = json.loads(body)
    try:
        status = int(said["Response Status"].split()[0])
        if status // 100 == 2:
            return str(said["Etag"].strip('"'))
        # rows of an entry's path and what is the matter with it
        problems = [f"{why}: {path}" for path, why in said.get("Errors", ())]
        text = "; ".join(problems) or str(said.get("Response Body", ""))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise StoreRejected("the store's answer does not say how the write went") from error
    raise client.ClientException(
        "put a manifest", http_status=status, http_response_content=text.encode()
    )
