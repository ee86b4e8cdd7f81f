"""Checks of the group `store`, which tell if objects can be stored and read back, and how fast."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from urllib.parse import urlsplit

from agent.config.settings import need
from agent.errors import StoreDenied, StoreFull, StoreMismatch
from agent.machine.host import is_this_machine
from agent.operations.backup.preflight import check_store_folder
from agent.pipeline.buffers import MIB
from agent.records.manifest import most_segments
from agent.selftest.check import Check, CheckOutcome, amount, failed, passed, span, warned
from agent.selftest.context import Context
from agent.store.protocol import Container, ManifestEntry
from agent.threads import Workers
from agent.wiring import login_of, store_folder

_SMALL = 4096
_PART = 64 << 10
_PIECE = 4 * MIB
_PIECES = 8
_SLOW = 5 * MIB  # bytes a second
# Seconds. The times in records are those of this machine's clock, and backups of several machines
# are sorted by them. At a difference of a minute, certificates and tokens begin to fail. The store
# gives its time in whole seconds, so a difference of a few seconds says nothing.
_SKEW_WARNED = 5.0
_SKEW_FAILED = 60.0
_NO_RIGHT = (
    "give [store] user the right to write: an operator role of the account, or X-Container-Write "
    "on both containers"
)
_NO_ROOM = (
    "raise the quota (X-Container-Meta-Quota-Bytes of both containers, or the account's), or "
    "delete old backups"
)


class _Group:
    """The checks of the store, on the objects of one artificial backup."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._content = os.urandom(_SMALL)
        self._entries: list[ManifestEntry] = []

    def login(self) -> CheckOutcome:
        section = need(self._context.config.store, "store")
        location = self._context.store.location
        user, url = login_of(section)
        found = f"{location} as {user}" if user else location
        clear = [one for one in (url, location) if _clear(one)]
        if clear:
            return warned(
                f"{found}; {clear[0]} has no TLS: an eavesdropper on the network reads the key or "
                "the token, and can then read, forge and delete the objects that it opens",
                "give the store a certificate, and use https:// in [store] url",
            )
        return passed(found)

    def container(self) -> CheckOutcome:
        server = self._context.server
        if folder := store_folder(self._context.config):
            check_store_folder(folder, [server.datadir] if server else [])
        self._context.store.open()
        return passed("both containers exist")

    def limits(self) -> CheckOutcome:
        """Check that the limits of the store allow a backup of this database."""
        limits, segment = self._context.store.limits(), self._context.config.pipeline.segment_bytes
        found = f"objects of up to {amount(limits.object_bytes)}"
        if self._context.store.joiner is not None:
            found += (
                f", up to {limits.manifest_entries} segments in a manifest, manifests "
                f"{'can' if limits.nesting else 'can not'} be nested"
            )
        if segment > limits.object_bytes:
            return failed(
                f"{found}; segments of {amount(segment)} are configured",
                f"lower [pipeline] segment_bytes to {limits.object_bytes // MIB * MIB} or less",
            )
        most = segment * most_segments(limits)
        if most < (self._context.datadir_bytes or 0):
            return warned(
                f"{found}: backups of up to {amount(most)}; a larger backup needs larger segments",
                "raise [pipeline] segment_bytes",
            )
        if not limits.announced:
            return warned(
                f"the store does not show its limits (/info), so these are assumed: {found}",
                "make the store show /info (Swift: expose_info = true); if its limits are lower, "
                "backups fail with store_rejected",
            )
        return passed(f"{found}: backups of up to {amount(most)}")

    def clock(self) -> CheckOutcome:
        before = time.time()
        theirs = self._context.store.clock()
        after = time.time()
        skew = max(0.0, theirs - after, before - theirs - 1.0)
        ahead = "ahead of" if theirs > after else "behind"
        found = f"the store's clock is {span(skew)} {ahead} this machine's"
        cure = (
            "run an NTP client on both (systemctl enable --now systemd-timesyncd); compare "
            "`date -u` on this machine with the same on another machine"
        )
        if skew > _SKEW_FAILED:
            return failed(found, cure)
        return warned(found, cure) if skew > _SKEW_WARNED else passed("the same as this machine's")

    def put(self) -> CheckOutcome:
        """Check that small objects can be put into both containers.

        An exceeded quota or a missing right causes an error here.
        """
        remains = self._context.remains
        try:
            remains.put(Container.OBJECTS, self._name, [memoryview(self._content)])
            for number in range(2):
                part = os.urandom(_PART)
                name = remains.segment(number)
                md5 = remains.put(Container.SEGMENTS, name, [memoryview(part)])
                self._entries.append(ManifestEntry(name, _PART, md5))
        except StoreDenied as error:
            return failed(str(error), _NO_RIGHT if self._in_swift else error.hint)
        except StoreFull as error:
            return failed(str(error), _NO_ROOM if self._in_swift else error.hint)
        return passed(f"{amount(_SMALL)} and two segments stored, and confirmed by their MD5")

    def get(self) -> CheckOutcome:
        got = self._context.store.get(Container.OBJECTS, self._name, _SMALL)
        if got != self._content:
            return failed(
                "an object came back changed", "check the store and the proxies before it"
            )
        buffer = memoryview(bytearray(_PART))
        self._context.store.get_into(Container.SEGMENTS, self._entries[0].name, buffer)
        return passed("the objects came back unchanged")

    def list(self) -> CheckOutcome:
        """Check that the listing shows the objects that were just stored.

        Listings of Swift may lag behind. Reading never uses them, but deleting does.
        """
        found = [row.name for row in self._context.store.list(Container.SEGMENTS, self._prefix)]
        missing = [entry.name for entry in self._entries if entry.name not in found]
        if missing:
            return warned(
                "the objects that were just stored are not in the listing yet",
                "the store updates its listings late: see the logs of its container servers",
            )
        return passed("the listing shows the objects that were just stored")

    def manifest(self) -> CheckOutcome:
        """Check that an object can join segments, and that a wrong ETag is refused."""
        joiner = self._context.store.joiner
        if joiner is None:
            return passed("this store joins no segments, and its files need no joining")
        name = self._context.remains.object("self-test-manifest")
        self._context.remains.expect(Container.OBJECTS, name)
        put = partial(joiner.put_manifest, Container.OBJECTS, name, headers={})
        put(self._entries)
        with suppress(StoreMismatch):
            put([self._entries[0]._replace(etag=self._entries[1].etag)])
            return failed(
                "a manifest with the ETag of another segment was accepted",
                "check the store and the proxies before it",
            )
        return passed(
            "an object that joins two segments has the expected ETag; a wrong ETag is refused"
        )

    def delete(self) -> CheckOutcome:
        self._context.remains.remove()
        left = [row.name for row in self._context.store.list(Container.SEGMENTS, self._prefix)]
        if left:
            return warned(
                f"{left[0]} is still listed after it was deleted",
                "the store updates its listings late: see the logs of its container servers",
            )
        return passed("the objects are deleted")

    def throughput(self) -> CheckOutcome:
        """Measure the speed of uploads and downloads of random bytes.

        They use as many connections as a backup.
        """
        remains, store = self._context.remains, self._context.store
        lanes = self._context.config.pipeline.connections
        piece = memoryview(os.urandom(_PIECE))
        names = [remains.segment(number) for number in range(_PIECES)]
        try:
            up = _rate(lanes, names, lambda name: remains.put(Container.SEGMENTS, name, [piece]))
            down = _rate(
                lanes,
                names,
                lambda name: store.get_into(
                    Container.SEGMENTS, name, memoryview(bytearray(_PIECE))
                ),
            )
        finally:
            remains.remove()
        self._context.store_rate = up
        found = f"{up / MIB:.0f} MiB/s up, {down / MIB:.0f} MiB/s down, {lanes} connections"
        if min(up, down) < _SLOW:
            return warned(found, "raise [pipeline] connections; check the network to the store")
        return passed(found)

    @property
    def _in_swift(self) -> bool:
        return need(self._context.config.store, "store").kind == "swift"

    @property
    def _name(self) -> str:
        return self._context.remains.object("self-test")

    @property
    def _prefix(self) -> str:
        return self._context.remains.prefix


def _clear(url: str) -> bool:
    """Return True if requests to `url` go over the network unencrypted."""
    parts = urlsplit(url)
    return parts.scheme == "http" and not is_this_machine(parts.hostname or "")


def _rate(lanes: int, names: Sequence[str], move: Callable[[str], object]) -> float:
    """Call `move` for each name in `lanes` threads, and return the bytes a second."""
    started = time.monotonic()
    with Workers(lanes, "move") as workers:
        list(workers.map(move, names))
    return len(names) * _PIECE / max(time.monotonic() - started, 1e-6)


def checks(context: Context) -> Sequence[Check]:
    group = _Group(context)
    put = ("put",)
    return [
        Check("login", group.login, ("configuration: sections", "configuration: store key")),
        Check("container", group.container, ("login",)),
        Check("limits", group.limits, ("container",)),
        Check("clock", group.clock, ("container",)),
        Check("put", group.put, ("container",)),
        Check("get", group.get, put),
        Check("list", group.list, put),
        Check("manifest", group.manifest, put),
        Check("delete", group.delete, put),
        Check("throughput", group.throughput, ("put", "get", "delete")),
    ]
