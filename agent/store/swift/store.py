"""OpenStack Swift as a store (https://docs.openstack.org/api-ref/object-store/).

Manifests are Static Large Objects:
https://docs.openstack.org/swift/latest/overview_large_objects.html
"""

import copy
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Self
from urllib.parse import quote

from swiftclient import client

from agent.errors import StoreError, StoreMismatch, StoreNotFound, StoreRejected
from agent.store.protocol import (
    Container,
    Interruption,
    ManifestEntry,
    Stat,
    StoredObject,
    StoreLimits,
    manifest_etag,
    manifest_json,
    no_container,
)
from agent.store.swift.connection import LONGEST_ANSWER
from agent.store.swift.containers import check_policies, create_container
from agent.store.swift.headers import read_clock, stat
from agent.store.swift.info import read_limits
from agent.store.swift.joining import Destination, check_entries, put_manifest
from agent.store.swift.keystone import KeystoneLogin
from agent.store.swift.listing import Paging, list_objects
from agent.store.swift.login import Authenticate
from agent.store.swift.manifests import Piece, read_pieces
from agent.store.swift.objects import (
    CHUNK,
    READ_MEANINGS,
    ObjectFacts,
    check_md5,
    describe,
    get_object,
    read_into,
)
from agent.store.swift.ranges import get_range
from agent.store.swift.session import Link, SwiftSession
from agent.store.swift.tokens import announced_keystone

log = logging.getLogger(__name__)

_CONTAINERS: Final = 1000  # names that a message chooses from


@dataclass(frozen=True)
class SwiftSettings:
    """The settings to reach one container.

    `container` and `<container>_segments` are created if missing. `timeout_seconds` limits
    connecting (to 10 s at most), each send of 1 MiB and each wait for bytes. A whole request may
    take `timeout_seconds`, the time for connecting, and a second for each 64 KiB. `attempts` is the
    number of attempts of one operation. The pauses between them double from `backoff_seconds`.
    `ca_file` replaces the certificate authorities of the system. It does not turn the checks of
    certificates off.
    """

    login: Authenticate
    container: str
    timeout_seconds: float = 60
    attempts: int = 5
    backoff_seconds: float = 0.5
    ca_file: str | None = None


@dataclass
class _Learnt:
    """Facts about this store that its answers have shown, shared by all views of the store."""

    paging: Paging = field(default_factory=Paging)
    limits: StoreLimits | None = None


class SwiftStore:
    """A store in Swift, or in Ceph's gateway through its Swift API.

    It implements agent.store.protocol.Store.
    """

    def __init__(self, settings: SwiftSettings) -> None:
        self._container = settings.container
        self._learnt = _Learnt()
        self._session = SwiftSession(
            settings.login,
            timeout_seconds=settings.timeout_seconds,
            attempts=settings.attempts,
            backoff_seconds=settings.backoff_seconds,
            ca_file=settings.ca_file,
        )

    def bound(self, stop: Interruption) -> Self:
        view = copy.copy(self)
        view._session = self._session.bound(stop)
        return view

    def in_container(self, name: str) -> Self:
        """Return a view of another container of the account, which shares this store's session."""
        view = copy.copy(self)
        view._container = name
        return view

    @property
    def location(self) -> str:
        url = self._session.call("authenticate", lambda link: link.url)
        return f"{url}/{quote(self._container)}"

    @property
    def joiner(self) -> Self:
        return self

    def open(self, *, create: bool = True) -> None:
        self._session.call("authenticate", lambda _link: None)
        for container in Container if create else ():
            create_container(self._session, self._container_name(container))

    def create_container(self) -> None:
        """Authenticate, and create only the container OBJECTS if it is missing.

        It is for layouts with the segments in the same container.
        """
        create_container(self._session, self._container_name(Container.OBJECTS))

    def limits(self) -> StoreLimits:
        limits = self._session.call("read the limits from /info", read_limits)
        if limits.announced and not limits.nesting:  # Ceph's gateway
            check_policies(self._session, *map(self._container_name, Container))
        self._learnt.limits = limits
        return limits

    def put(self, container: Container, name: str, parts: Sequence[memoryview]) -> str:
        digest = hashlib.md5(usedforsecurity=False)
        for part in parts:
            digest.update(part)
        size = sum(part.nbytes for part in parts)
        return self._put(container, name, parts if size else (), size, digest.hexdigest())

    def put_manifest(
        self,
        container: Container,
        name: str,
        entries: Sequence[ManifestEntry],
        headers: Mapping[str, str],
        *,
        segments: Container = Container.SEGMENTS,
    ) -> str:
        inside, etag = self._container_name(segments), manifest_etag(entries)
        limits = self._learnt.limits or self.limits()
        # A store that announces nesting is Swift. Swift compares manifests with its own objects.
        to = Destination(self._container_name(container), name, compares=limits.nesting)
        if not to.compares:
            check_entries(self._session, to, inside, entries)
        rows = manifest_json(inside, entries)
        put_manifest(self._session, to, rows, etag, headers, len(entries))
        return etag

    def get(self, container: Container, name: str, limit: int) -> bytes:
        inside = self._container_name(container)
        what = f"get {inside}/{name}"

        def action(link: Link) -> bytes:
            headers, body = get_object(link, inside, name, {"X-Newest": "true"})
            content = bytearray()
            while piece := body.read(min(CHUNK, limit + 1 - len(content))):
                content += piece
            if len(content) > limit:
                raise StoreMismatch(f"{what}: it is larger than the expected {limit} bytes")
            check_md5(what, content, headers)
            return bytes(content)

        return self._session.call(what, action, READ_MEANINGS, size=limit)

    def get_into(self, container: Container, name: str, buffer: memoryview) -> None:
        inside = self._container_name(container)
        what = f"get {inside}/{name}"

        def action(link: Link) -> None:
            headers, body = get_object(link, inside, name, {})
            announced = int(headers.get("content-length", buffer.nbytes))
            if announced != buffer.nbytes:
                raise StoreMismatch(f"{what}: it has {announced} bytes instead of {buffer.nbytes}")
            if read_into(body, buffer) != buffer.nbytes or body.read(1):
                raise StoreMismatch(
                    f"{what}: the store did not send {buffer.nbytes} bytes, as announced"
                )
            check_md5(what, buffer, headers)

        self._session.call(what, action, size=buffer.nbytes)

    def stat(self, container: Container, name: str) -> Stat:
        inside = self._container_name(container)
        return self._session.call(f"look up {inside}/{name}", partial(stat, inside, name))

    def token_seconds_left(self, login: KeystoneLogin) -> float | None:
        """Ask Keystone how long the token of `login` is valid, None if it doesn't expire.

        `login` is of the kind TOKEN, and need not be the login of this store.

        Raises:
            TokenExpired: Keystone refuses the token.
            StoreError: Keystone doesn't tell.
        """
        return self._session.ask("ask Keystone about the token", login.token_seconds_left)

    def keystone(self) -> str | None:
        """Return the URL of the Keystone that the store trusts, or None if it doesn't tell.

        Raises:
            StoreError: the store doesn't answer.
        """
        url = self._session.call("authenticate", lambda link: link.url)
        return self._session.ask("ask for Keystone", partial(announced_keystone, url))

    def describe(self, container: Container, name: str) -> ObjectFacts:
        """Return the facts of an object's newest copy, with its metadata.

        Raises:
            StoreNotFound: there is no such object.
        """
        inside = self._container_name(container)
        what = f"look up {inside}/{name}"
        return self._session.call(what, partial(describe, what, inside, name))

    def get_range(
        self, container: Container, name: str, offset: int, buffer: memoryview, etag: str
    ) -> None:
        """Fill `buffer` with the bytes from `offset` of an object or of a joined object.

        `etag` is the one that `describe` returned. No MD5 of a range is known, so the caller must
        check the bytes. An empty buffer needs no request.

        Raises:
            StoreNotFound: there is no such object.
            StoreMismatch: the object has another ETag or ends before the range does, or an object
                that the manifest joins is missing.
        """
        if buffer.nbytes:
            get_range(self._session, self._container_name(container), name, offset, buffer, etag)

    def manifest_rows(self, container: Container, name: str) -> Sequence[Piece] | None:
        """Return the objects that a manifest joins, in the order of their bytes.

        The objects of a manifest in the manifest take its place. Return None if the store doesn't
        show the rows. Ceph's gateway doesn't.

        Raises:
            StoreNotFound: there is no such object, or a manifest in it is missing.
            StoreMismatch: the rows don't have the ETag and the size of the manifest.
            StoreRejected: the object is no manifest, a row has a range or data, the answer is
                longer than 4 MiB, or there are too many rows or levels.
        """
        facts = self.describe(container, name)
        inside = self._container_name(container)
        if not facts.is_manifest:
            raise StoreRejected(f"{inside}/{name} is not a manifest, but an object of its own")
        return read_pieces(self._session, inside, name, facts)

    def list(self, container: Container, prefix: str = "") -> Iterator[StoredObject]:
        with self._naming_missing(container):
            inside = self._container_name(container)
            yield from list_objects(self._session, self._learnt.paging, inside, prefix)

    def delete(self, container: Container, name: str) -> None:
        inside = self._container_name(container)

        def action(link: Link) -> None:
            try:
                client.delete_object(link.url, link.token, inside, name, http_conn=link.http)
            except client.ClientException as error:
                if error.http_status != 404:
                    raise

        self._session.call(f"delete {inside}/{name}", action)

    def clock(self) -> float:
        """Return the Date of an answer (RFC 9110, section 6.6.1) in whole Unix seconds.

        Raises:
            StoreRejected: the answer has no valid Date, because a store need not have a clock.
        """
        what = "read the store's clock"
        action = partial(read_clock, what, self._container_name(Container.OBJECTS))
        with self._naming_missing(Container.OBJECTS):
            return self._session.call(what, action)

    def abort(self) -> None:
        """End all waits between attempts and stop all retries."""
        self._session.abort()

    def close(self) -> None:
        self._session.close()

    def _container_name(self, container: Container) -> str:
        return self._container + container.value

    def _put(
        self, container: Container, name: str, parts: Sequence[memoryview], size: int, etag: str
    ) -> str:
        """Send `parts` as one object, with the ETag `etag` that the store must compute.

        Each attempt sends the same parts.
        """
        inside = self._container_name(container)
        what = f"put {inside}/{name}"

        def action(link: Link) -> str:
            stored: str = client.put_object(
                link.url,
                link.token,
                inside,
                name,
                # swiftclient and urllib3 pass each part to one sendall without a copy.
                contents=iter(parts) if parts else None,
                content_length=size,
                etag=etag,
                http_conn=link.http,
            )
            if stored != etag:
                raise StoreMismatch(
                    f"{what}: the store has the MD5 {stored[:40]}, but the sent bytes have {etag}"
                )
            return stored

        return self._session.call(what, action, size=size)

    @contextmanager
    def _naming_missing(self, container: Container) -> Iterator[None]:
        """Replace a StoreNotFound about the container by one that names the existing containers."""
        try:
            yield
        except StoreNotFound as error:
            name = self._container_name(container)
            raise StoreNotFound(no_container(name, "the account", self._containers())) from error

    def _containers(self) -> Sequence[str]:
        """Return the names of the account's containers, or none if the store doesn't list them."""

        def action(link: Link) -> Sequence[str]:
            _, rows = client.get_account(
                link.url, link.token, limit=_CONTAINERS, http_conn=link.http
            )
            return [row["name"] for row in rows if str(row["name"]).isprintable()]

        try:
            return self._session.call("list the containers", action, size=LONGEST_ANSWER)
        except StoreError as error:
            log.debug("%s", error)
            return []
