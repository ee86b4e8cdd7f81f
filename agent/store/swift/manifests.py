"""Requests that read the rows of Static Large Objects.

https://docs.openstack.org/swift/latest/api/large_objects.html (the query multipart-manifest=get)
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from swiftclient import client

from agent.errors import StoreMismatch, StoreRejected
from agent.store.protocol import ManifestEntry, manifest_etag
from agent.store.swift.objects import READ_MEANINGS, ObjectFacts, is_manifest
from agent.store.swift.session import Link, SwiftSession

# Levels of manifests: one, and those that it joins.
_LEVELS: Final = 2
# Rows of all manifests of one object. With their names they take 100 MB at most.
_MOST_PIECES: Final = 250_000
_PATH: Final = re.compile(r"/([^/]{1,256})/(.{1,1024})", re.DOTALL)
_MD5: Final = re.compile(r"[0-9a-f]{32}")
# Steps of a path that would lead a request to another object (RFC 3986, section 5.2.4).
_STEPS: Final = frozenset((".", ".."))


class Piece(NamedTuple):
    """One object that holds bytes of a joined object.

    `container` and `name` are in the same account. `size` is in bytes, and `md5` is lower-case hex.
    """

    container: str
    name: str
    size: int
    md5: str


class _Row(NamedTuple):
    piece: Piece
    nested: bool


def read_pieces(
    session: SwiftSession, container: str, name: str, facts: ObjectFacts
) -> list[Piece] | None:
    """Return the objects that a manifest and the manifests in it join, in the order of their bytes.

    `facts` describe the manifest. Return None if the store doesn't show rows, as Ceph's gateway.

    Raises:
        StoreMismatch: the rows don't have the ETag and the size of the manifest.
        StoreRejected: a row is of a kind that isn't supported, or there are too many rows.
    """
    pieces: list[Piece] = []
    whole = Piece(container, name, facts.size, facts.etag)
    return pieces if _collect(session, whole, pieces, _LEVELS) else None


def _collect(session: SwiftSession, manifest: Piece, pieces: list[Piece], levels: int) -> bool:
    """Append the pieces of `manifest`, which has at most `levels` levels.

    Return False if the store shows no rows.
    """
    what = f"read the manifest {manifest.container}/{manifest.name}"
    if not levels:
        raise StoreRejected(f"{what}: more than {_LEVELS} levels of manifests are not supported")
    rows = session.call(what, lambda link: _rows(what, manifest, link), READ_MEANINGS)
    if not rows:
        return False
    if len(rows) + len(pieces) > _MOST_PIECES:
        raise StoreRejected(f"{what}: more than {_MOST_PIECES} objects are not supported")
    for row in rows:
        if not row.nested:
            pieces.append(row.piece)
        elif not _collect(session, row.piece, pieces, levels - 1):
            raise StoreMismatch(f"{what}: its entry {row.piece.name[:200]!r} shows no rows")
    return True


def _rows(what: str, manifest: Piece, link: Link) -> Sequence[_Row]:
    """Return the rows of one manifest, or none if the store shows no rows.

    Raises:
        StoreRejected: the answer is longer than LONGEST_ANSWER, or it isn't one of rows.
    """
    headers, body = client.get_object(
        link.url,
        link.token,
        manifest.container,
        manifest.name,
        http_conn=link.http,
        query_string="multipart-manifest=get",
        headers={"X-Newest": "true"},
    )
    if not body:
        return ()
    if not is_manifest(headers):
        raise StoreMismatch(f"{what}: it is not a manifest")
    parsed = json.loads(body)
    if not isinstance(parsed, list) or not parsed:
        raise StoreRejected(f"{what}: the store's answer is not a list of rows")
    rows = [_row(what, row) for row in parsed]
    _check_rows(what, manifest, rows)
    return rows


def _check_rows(what: str, manifest: Piece, rows: Sequence[_Row]) -> None:
    """Raise StoreMismatch unless the rows have the ETag and the size of the manifest."""
    entries = [ManifestEntry(row.piece.name, row.piece.size, row.piece.md5) for row in rows]
    found = manifest_etag(entries), sum(entry.size for entry in entries)
    if found != (manifest.md5, manifest.size):
        raise StoreMismatch(
            f"{what}: its rows have the ETag {found[0]} and {found[1]} bytes, but the manifest has "
            f"{manifest.md5[:40]} and {manifest.size}"
        )


def _row(what: str, row: Any) -> _Row:
    """Return one row in the form of the store's answer.

    Raises:
        StoreRejected: it isn't a row of a whole object. A row may also hold a range of an object,
            or bytes. Neither the agent nor Trove makes such rows.
    """
    if not isinstance(row, dict):
        raise StoreRejected(f"{what}: the store's answer has a row that is not an object")
    path, size, md5 = row.get("name"), row.get("bytes"), row.get("hash")
    split = _PATH.fullmatch(path) if isinstance(path, str) else None
    if (
        split is None
        or not _STEPS.isdisjoint(split[0].split("/"))
        or type(size) is not int
        or size < 0
        or not (isinstance(md5, str) and _MD5.fullmatch(md5))
        or "range" in row
        or "data" in row
    ):
        raise StoreRejected(
            f"{what}: a row does not describe a whole object: {str(path)[:200]!r}",
            hint="it was made by another program, with ranges or data in it, or with other names: "
            "download the object with the command `swift` instead",
        )
    return _Row(Piece(split[1], split[2], size, md5), bool(row.get("sub_slo")))
