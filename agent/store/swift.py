"""OpenStack Swift as a Store: https://docs.openstack.org/api-ref/object-store/.

Manifests are Static Large Objects:
https://docs.openstack.org/swift/latest/overview_large_objects.html
"""

import copy
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self
from urllib.parse import quote

from swiftclient import client

from agent.errors import StoreMismatch, StoreRejected
from agent.store.protocol import (
    Interruption,
    ManifestEntry,
    Shelf,
    Stat,
    StoredObject,
    StoreLimits,
    manifest_etag,
)
from agent.store.swift_head import read_clock, stat
from agent.store.swift_line import LONGEST_ANSWER
from agent.store.swift_login import Authenticate, AuthV1
from agent.store.swift_session import Link, SwiftSession

_CHUNK = 1 << 20
_PAGE = 1000  # rows of a listing held in memory at a time
_DEFAULT_OBJECT_BYTES = 5 << 30  # Swift's own default of max_file_size
# what Swift says of a manifest whose entries are missing (400) or differ (400, 409)
_MANIFEST_MEANINGS = {400: StoreMismatch, 409: StoreMismatch}
# and what it says of one that is read when its entries are gone
_READ_MEANINGS = {409: StoreMismatch}
_INFO_MEANINGS = {403: StoreRejected, 404: StoreRejected}


@dataclass(frozen=True)
class SwiftSettings:
    """How to reach one container; `container` and its `_segments` sibling are created.

    `timeout_seconds` bounds connecting (10 s at most), each send of 1 MiB and each wait for
    bytes; a whole request has that time, and a second for each 64 KiB.
    `attempts` is per operation, with pauses that double from `backoff_seconds`.
    `ca_file` replaces the public certificate authorities, it doesn't switch checks off.
    """

    auth_url: str
    user: str
    key: str = field(repr=False)
    container: str
    timeout_seconds: float = 60
    attempts: int = 5
    backoff_seconds: float = 0.5
    ca_file: str | None = None


@dataclass
class _Pages:
    """The rows that a page of a listing may have here, as `open` has learnt."""

    rows: int = _PAGE


class SwiftStore:
    """agent.store.protocol.Store in Swift, or in Ceph's gateway through its Swift API."""

    def __init__(self, settings: SwiftSettings, authenticate: Authenticate | None = None) -> None:
        self._container = settings.container
        self._pages = _Pages()
        self._session = SwiftSession(
            authenticate or AuthV1(settings.auth_url, settings.user, settings.key),
            timeout_seconds=settings.timeout_seconds,
            attempts=settings.attempts,
            backoff_seconds=settings.backoff_seconds,
            ca_file=settings.ca_file,
        )

    def bound(self, stop: Interruption) -> Self:
        view = copy.copy(self)
        view._session = self._session.bound(stop)
        return view

    @property
    def location(self) -> str:
        url = self._session.call("authenticate", lambda link: link.url)
        return f"{url}/{quote(self._container)}"

    def open(self, *, create: bool = True) -> StoreLimits:
        for shelf in Shelf if create else ():
            name = self._in(shelf)
            self._session.call(f"create container {name}", partial(_create_container, name))
        info = self._session.call("read the limits from /info", _read_info, _INFO_MEANINGS)
        swift = _section(info, "swift") or {}
        self._pages.rows = min(_PAGE, _count(swift, "container_listing_limit", _PAGE))
        return _limits(_section(info, "slo"), swift)

    def put(self, shelf: Shelf, name: str, parts: Sequence[memoryview]) -> str:
        digest = hashlib.md5(usedforsecurity=False)
        for part in parts:
            digest.update(part)
        size = sum(part.nbytes for part in parts)
        return self._put(shelf, name, parts if size else (), size, digest.hexdigest())

    def put_manifest(
        self,
        shelf: Shelf,
        name: str,
        entries: Sequence[ManifestEntry],
        headers: Mapping[str, str],
    ) -> str:
        container = self._in(Shelf.SEGMENTS)
        rows = [
            {"path": f"/{container}/{entry.name}", "size_bytes": entry.size, "etag": entry.etag}
            for entry in entries
        ]
        body = memoryview(json.dumps(rows).encode())
        return self._put(shelf, name, (body,), body.nbytes, manifest_etag(entries), headers)

    def get(self, shelf: Shelf, name: str, limit: int) -> bytes:
        what = f"get {self._in(shelf)}/{name}"

        def action(link: Link) -> bytes:
            headers, body = self._get(link, shelf, name, {"X-Newest": "true"})
            content = bytearray()
            while piece := body.read(min(_CHUNK, limit + 1 - len(content))):
                content += piece
            if len(content) > limit:
                raise StoreMismatch(f"{what}: larger than the expected {limit} bytes")
            _check_md5(what, content, headers)
            return bytes(content)

        return self._session.call(what, action, _READ_MEANINGS, size=limit)

    def get_into(self, shelf: Shelf, name: str, buffer: memoryview) -> None:
        what = f"get {self._in(shelf)}/{name}"

        def action(link: Link) -> None:
            headers, body = self._get(link, shelf, name, {})
            announced = int(headers.get("content-length", buffer.nbytes))
            if announced != buffer.nbytes:
                raise StoreMismatch(f"{what}: {announced} bytes instead of {buffer.nbytes}")
            if _read_into(body, buffer) != buffer.nbytes or body.read(1):
                raise StoreMismatch(f"{what}: not {buffer.nbytes} bytes, as announced")
            _check_md5(what, buffer, headers)

        self._session.call(what, action, size=buffer.nbytes)

    def stat(self, shelf: Shelf, name: str) -> Stat:
        container = self._in(shelf)
        return self._session.call(f"look at {container}/{name}", partial(stat, container, name))

    def list(self, shelf: Shelf, prefix: str = "") -> Iterator[StoredObject]:
        what = f"list {self._in(shelf)}"
        marker = ""
        while page := self._session.call(
            what, partial(self._page, shelf, prefix, marker), size=LONGEST_ANSWER
        ):
            if page[-1].name <= marker:
                raise StoreRejected(f"{what}: the store does not go on after {marker!r}")
            if not all(row.name.startswith(prefix) for row in page):
                # whoever asks may be about to remove all that he is shown
                raise StoreRejected(f"{what}: the store names more than what begins with {prefix}")
            yield from filter(_reachable, page)
            marker = page[-1].name

    def delete(self, shelf: Shelf, name: str) -> None:
        container = self._in(shelf)

        def action(link: Link) -> None:
            try:
                client.delete_object(link.url, link.token, container, name, http_conn=link.http)
            except client.ClientException as error:
                if error.http_status != 404:
                    raise

        self._session.call(f"delete {container}/{name}", action)

    def clock(self) -> float:
        """The Date of an answer (RFC 9110, section 6.6.1), in whole seconds.

        StoreRejected where there is none: a store need not have a clock.
        """
        what = "read the store's clock"
        return self._session.call(what, partial(read_clock, what, self._in(Shelf.OBJECTS)))

    def abort(self) -> None:
        """End all waits between attempts, and repeat nothing from now on."""
        self._session.abort()

    def close(self) -> None:
        self._session.close()

    def _in(self, shelf: Shelf) -> str:
        return self._container + shelf.value

    def _put(
        self,
        shelf: Shelf,
        name: str,
        parts: Sequence[memoryview],
        size: int,
        etag: str,
        manifest_headers: Mapping[str, str] | None = None,
    ) -> str:
        """Send `parts` with the ETag that Swift must find; the same parts on each attempt."""
        container = self._in(shelf)
        what = f"put {container}/{name}"
        manifest = manifest_headers is not None

        def action(link: Link) -> str:
            stored: str = client.put_object(
                link.url,
                link.token,
                container,
                name,
                # swiftclient and urllib3 pass each part on to one sendall, without a copy
                contents=iter(parts) if parts else None,
                content_length=size,
                etag=etag,
                headers=manifest_headers,
                query_string="multipart-manifest=put" if manifest else None,
                http_conn=link.http,
            )
            if stored != etag:
                raise StoreMismatch(f"{what}: the store holds MD5 {stored[:40]}, sent was {etag}")
            return stored

        meanings = _MANIFEST_MEANINGS if manifest else None
        return self._session.call(what, action, meanings, size=size)

    def _get(
        self, link: Link, shelf: Shelf, name: str, headers: dict[str, str]
    ) -> tuple[Mapping[str, str], Any]:
        answer: tuple[Mapping[str, str], Any] = client.get_object(
            link.url,
            link.token,
            self._in(shelf),
            name,
            http_conn=link.http,
            resp_chunk_size=_CHUNK,
            headers=headers,
        )
        return answer

    def _page(self, shelf: Shelf, prefix: str, marker: str, link: Link) -> Sequence[StoredObject]:
        _, rows = client.get_container(
            link.url,
            link.token,
            self._in(shelf),
            marker=marker,
            limit=self._pages.rows,
            prefix=prefix,
            http_conn=link.http,
        )
        return [_row(row) for row in rows]


def _create_container(name: str, link: Link) -> None:
    client.put_container(link.url, link.token, name, http_conn=link.http)


def _row(row: Mapping[str, Any]) -> StoredObject:
    try:
        # the hash of a manifest is that of its JSON; its ETag is beside it, in quotes
        etag = row.get("slo_etag", row["hash"]).strip('"')
        name, size, modified = row["name"], row["bytes"], row["last_modified"]
        if not (isinstance(name, str) and isinstance(size, int) and isinstance(modified, str)):
            raise TypeError
        return StoredObject(name, size, etag, modified)
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreRejected("the store's listing has a row that names no object") from error


def _reachable(row: StoredObject) -> bool:
    """Whether the object can be asked for by its name, and is none of ours if not.

    The steps `.` and `..` of a URL's path are taken before it is sent (RFC 3986, section 5.2.4):
    it would be another object, perhaps in another container.
    """
    return {".", ".."}.isdisjoint(row.name.split("/"))


def _read_info(link: Link) -> dict[str, Any]:
    parsed, connection = link.http
    # Ceph has its /info below the prefix of its Swift API
    path = re.sub(r"/v\d+(\.\d+)?(/.*)?$", "/info", parsed.path)
    info: dict[str, Any] = client.get_capabilities((parsed._replace(path=path), connection))
    return info


def _section(info: Any, name: str) -> Mapping[str, Any] | None:
    found = info.get(name) if isinstance(info, dict) else name
    if found is not None and not isinstance(found, dict):
        raise StoreRejected(f"what the store's /info says of {name} can't be read")
    return found


def _count(section: Mapping[str, Any], key: str, default: int) -> int:
    value = section.get(key, default)
    if not isinstance(value, int) or value < 1:
        raise StoreRejected(f"the store's /info has no number for {key}: {str(value)[:40]!r}")
    return value


def _limits(slo: Mapping[str, Any] | None, swift: Mapping[str, Any]) -> StoreLimits:
    if slo is None:
        raise StoreRejected("the store does not offer static large objects (slo in /info)")
    return StoreLimits(
        manifest_entries=_count(slo, "max_manifest_segments", 1000),
        object_bytes=_count(swift, "max_file_size", _DEFAULT_OBJECT_BYTES),
        # Ceph's gateway, which can't read nested manifests, announces only the limit above
        nesting="max_manifest_size" in slo,
    )


def _read_into(body: Any, buffer: memoryview) -> int:
    """Fill `buffer` from `body` as far as it goes; the number of bytes read."""
    filled = 0
    while filled < buffer.nbytes:
        piece = body.read(min(_CHUNK, buffer.nbytes - filled))
        if not piece:
            break
        buffer[filled : filled + len(piece)] = piece
        filled += len(piece)
    return filled


def _check_md5(what: str, content: memoryview | bytearray, headers: Mapping[str, str]) -> None:
    expected = headers.get("etag", "").strip('"')
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise StoreMismatch(f"{what}: MD5 {found} differs from the announced {expected[:40]}")
