"""Make one full or incremental backup in Trove's layout.

A backup is made in this order: what killed runs left is removed, the marker is stored, then the
segments, the appendix with the record, and the object that joins them. Trove takes the result only
from a run that ended with status 0, and the marker is removed before that. So a backup with a
marker is unknown to Trove, and the next run removes it. The process may be killed after any of
these steps.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple
from uuid import NAMESPACE_OID, uuid5

from agent.codec.gzip_appendix import encode
from agent.crash_points import Point, reached
from agent.errors import (
    BackupExists,
    Interrupted,
    StoreError,
    StoreMismatch,
    StoreNotFound,
    UsageWrong,
)
from agent.machine.host import size_gib
from agent.machine.lock import only_backup
from agent.model import (
    BackupStatus,
    Datastore,
    Limits,
    Lineage,
    Record,
    WrappedKey,
    printable,
    utc_now,
)
from agent.operations.backup.completeness import Completeness
from agent.operations.backup.copying import Copying, sealing_of
from agent.operations.backup.finished import finished_record
from agent.operations.backup.preflight import (
    InstanceState,
    list_expected,
    observe_instance,
    plan_data_path,
    series,
)
from agent.operations.backup.proof import Proof
from agent.operations.patience import patience
from agent.operations.trove.parent import Parent, check_parent, still_there
from agent.operations.trove.resources import TroveResources
from agent.pipeline.buffers import Plan
from agent.pipeline.meter import Meter
from agent.records.manifest import Manifest, submanifest_entries
from agent.records.object_names import Segment, new_attempt
from agent.records.trove.document import Document, encode_document
from agent.records.trove.names import ATTEMPT, LONGEST_LOCATION, TroveNames, parse_location
from agent.records.trove.objects import Place
from agent.records.trove.unfinished import Marker, remove_leftovers, remove_parts
from agent.stop import Stop
from agent.store.protocol import Container, ManifestEntry, StoreLimits
from agent.store.swift.store import SwiftStore

log = logging.getLogger(__name__)

# Changes at each boot (random(4)).
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
# Swift's default limit of one value of metadata, in bytes.
_LONGEST_VALUE: Final = 256
# In seconds. Docker kills a container 10 s after it asked the run to end.
_PATIENCE_STOPPED: Final = 5.0
_PATIENCE: Final = 300.0
# So the segment lists of a backup have at most 42 MB.
_MOST_ENTRIES: Final = 999


class TroveRequest(NamedTuple):
    """A backup that Trove requests.

    `metadata` are Trove's own headers, without their prefix. `parent` is None for a full backup.
    """

    backup_id: str
    container: str
    metadata: Mapping[str, str]
    parent: Place | None = None

    def headers(self, record: Record | None = None) -> dict[str, str]:
        """Return the headers of the object. Without the finished record, some are missing."""
        facts = dict(self.metadata)
        if self.parent is not None:
            facts["parent-location"] = self.parent.location.url
            facts["parent-checksum"] = self.parent.checksum or ""
        if record is not None:
            facts |= {"lsn": str(record.to_lsn), ATTEMPT: record.attempt, "cipher": record.cipher}
        return {f"X-Object-Meta-{key.replace('_', '-')}": value for key, value in facts.items()}


class TroveResult(NamedTuple):
    """What Trove notes of a backup that is complete."""

    checksum: str
    location: str


class _Attempt(NamedTuple):
    """What is known right before the engine starts. `record` has the status BUILDING."""

    names: TroveNames
    record: Record
    parent: Parent | None
    data_key: bytes | None
    found: InstanceState
    completeness: Completeness
    limits: StoreLimits
    plan: Plan


class TroveBackup:
    """One attempt to make the backup that Trove requests.

    Call `run` once. It calls `on_size` with the number of bytes that a full copy reads, before
    anything is stored. It calls `tell` with the result before its last step, which may still fail.
    """

    def __init__(
        self,
        resources: TroveResources,
        request: TroveRequest,
        *,
        meter: Meter,
        stop: Stop,
        tell: Callable[[TroveResult], None],
        on_size: Callable[[int], None] = lambda _size: None,
    ) -> None:
        # Without the stop: the cleanup must still reach the store after the run was stopped.
        self._unbound = resources
        self._resources = resources.bound(stop)
        self._request = request
        self._meter = meter
        self._stop = stop
        self._on_size = on_size
        self._tell = tell
        self._store = self._resources.store.in_container(request.container)
        # True if the store may have the object.
        self._undecided = False
        self._begun: set[int] = set()  # the segments that were sent
        self._unanswered: set[str] = set()  # objects that the store may still store

    def run(self) -> None:
        """Make the backup, or raise the error that stopped it."""
        location = self._location()
        self._store.create_container()
        limits = self._store.limits()
        # The appendix is one entry more, and has a row of each segment.
        entries = min(limits.manifest_entries - 1, _MOST_ENTRIES)
        limits = limits._replace(manifest_entries=entries)
        found = observe_instance(self._resources, lambda _lineage, _lsn: "")
        self._on_size(found.copied_bytes)
        datadir = found.server.datadir
        with only_backup(datadir) as locked:
            mark = f"{_BOOT_ID.read_text()}{_identity(datadir)}"
            known = mark if locked else None
            remove_leftovers(self._store, known, self._resources.path.connections)
            names = TroveNames(self._request.backup_id, new_attempt(mark))
            self._make(self._prepared(limits, found, names, location), location)

    def _location(self) -> str:
        """Return the location of the object.

        Raises:
            UsageWrong: Trove or Swift can't keep the location or the metadata.
        """
        container = self._request.container
        account = self._store.location.rpartition("/")[0]
        name = TroveNames(self._request.backup_id, "").object_name
        location = f"{account}/{container}/{name}"
        if "/" in container or parse_location(location).container != container:
            raise UsageWrong(
                f"the container {printable(container)[:200]!r} can't be named in a location",
                hint="choose a name without slashes",
            )
        if len(location) > LONGEST_LOCATION:
            raise UsageWrong(f"the location {location[:200]!r} is too long for Trove's database")
        for key, value in self._request.headers().items():
            if len(value.encode()) > _LONGEST_VALUE or not f"{key}{value}".isprintable():
                raise UsageWrong(
                    f"the metadata {key[:80]!r} can't be a header: {value[:200]!r}",
                    hint=f"Swift keeps at most {_LONGEST_VALUE} printable bytes of one value",
                )
        return location

    def _prepared(
        self, limits: StoreLimits, found: InstanceState, names: TroveNames, location: str
    ) -> _Attempt:
        """Check that the backup can be made, before anything is stored."""
        resources, check = self._resources, self._stop.check
        plan = plan_data_path(resources.path, limits, found, None)
        instance_id = _instance_id(found.lineage)
        parent = None
        if self._request.parent is not None:
            parent = check_parent(resources, self._request.parent, found, instance_id, self._stop)
        completeness = list_expected(
            resources,
            found,
            check,
            from_lsn=parent.to_lsn if parent else None,
            checked_spaces=parent.checked_spaces if parent else None,
        )
        if _exists(self._store, names.object_name):
            raise BackupExists(f"backup {names.backup_id} exists in {self._request.container}")
        data_key: bytes | None = None
        keys: tuple[WrappedKey, ...] = ()
        if resources.keyring is not None and resources.encrypt:
            data_key = os.urandom(32)
            keys = resources.keyring.wrap_all(data_key)
        record = _record(found, names, instance_id, parent).model_copy(
            update={
                "locationRef": location,
                "cipher": "AES256_GCM_HKDF_1MB" if data_key else "none",
                "keys": keys,
            }
        )
        return _Attempt(names, record, parent, data_key, found, completeness, limits, plan)

    def _make(self, attempt: _Attempt, location: str) -> None:
        """Make the backup.

        The result is told before the marker is removed. If that fails, the exit status tells Trove
        that the backup failed. So no moment is left in which the backup is complete, unknown to
        Trove, and without a marker, but the end of the process.
        """
        marker = Marker(self._store, attempt.names)
        manifest = Manifest(self._store, attempt.limits, attempt.names)
        with ExitStack() as undo:
            undo.callback(self._undo, attempt.names)
            marker.put()
            reached(Point.RECORD_BEGUN)
            proof = self._copy(attempt, manifest, marker)
            self._stop.check()
            with self._answered("sub-manifest"):
                summary = manifest.finish()
            size = attempt.plan.segment_bytes
            finished = finished_record(attempt.record, summary, proof, self._meter, size)
            reached(Point.LISTS_STORED)
            checksum = self._commit(attempt, finished, manifest)
            self._tell(TroveResult(checksum, location))
            marker.remove()
            undo.pop_all()

    def _copy(self, attempt: _Attempt, manifest: Manifest, marker: Marker) -> Proof:
        """Run the engine and store its stream until the last segment is confirmed."""

        def send(number: int, parts: list[memoryview]) -> None:
            self._begun.add(number)
            name = attempt.names.segment_name(number)
            with self._answered(name):
                md5 = self._store.put(Container.OBJECTS, name, parts)
                reached(Point.SEGMENT_STORED)
                manifest.add(number, Segment(sum(len(part) for part in parts), md5))

        def watch() -> None:
            with self._stop.guard():
                marker.keep()

        if attempt.parent is None:
            self._meter.expected_raw_bytes = attempt.found.copied_bytes
        copying = Copying(self._unbound, limits=Limits(), meter=self._meter, stop=self._stop)
        return copying.run(
            attempt.found,
            attempt.completeness,
            sealing_of(attempt.record.id, attempt.data_key),
            send,
            attempt.plan,
            attempt=attempt.names.attempt,
            from_lsn=attempt.record.from_lsn if attempt.parent else None,
            watch=watch,
        )

    @contextmanager
    def _answered(self, name: str) -> Iterator[None]:
        """Note that the store may still store the object `name`, if the block fails."""
        self._unanswered.add(name)
        try:
            yield
        except StoreError as error:
            if error.without_effect:
                self._unanswered.discard(name)
            raise
        self._unanswered.discard(name)

    def _commit(self, attempt: _Attempt, finished: Record, manifest: Manifest) -> str:
        """Store the appendix and the object, and return the checksum of the object."""
        place = attempt.parent.place if attempt.parent else None
        document = Document(
            group=submanifest_entries(attempt.limits),
            parent_location=place.location.url if place else None,
            parent_checksum=place.checksum if place else None,
            record=finished,
        )
        keyring = self._resources.keyring
        appendix = encode(encode_document(document, manifest.kept_lists(), keyring))
        name = attempt.names.appendix
        with self._answered(name):
            md5 = self._store.put(Container.OBJECTS, name, [memoryview(appendix)])
        if place is not None:
            still_there(self._resources, place)
        last = ManifestEntry(name, len(appendix), md5)
        self._undecided = True
        try:
            checksum = manifest.publish(self._request.headers(finished), [last])
        except StoreError as error:
            self._undecided = not error.without_effect
            raise
        reached(Point.OBJECT_STORED)
        self._check_object(attempt.names, checksum)
        return checksum

    def _check_object(self, names: TroveNames, checksum: str) -> None:
        """Raise StoreMismatch unless the object has the checksum."""
        try:
            found = self._store.stat(Container.OBJECTS, names.object_name).etag
        except StoreNotFound as error:
            raise StoreMismatch(f"the object of backup {names.backup_id} is gone") from error
        if found != checksum:
            raise StoreMismatch(
                f"the object of backup {names.backup_id} has the checksum {found[:40]}, not "
                f"{checksum}"
            )

    def _undo(self, names: TroveNames) -> None:
        """Remove all of a backup that failed. What can't be removed, the next run removes.

        The marker stays if the store may still process a request of this run.
        """
        stopped = isinstance(self._stop.cause, Interrupted)
        seconds = _PATIENCE_STOPPED if stopped else _PATIENCE
        try:
            with patience(seconds, "the store has not yet removed the failed backup") as late:
                store = self._unbound.store.in_container(self._request.container).bound(late)
                marker = Marker(store, names)
                if self._undecided:
                    marker.condemn()  # it may be gone, and the store may have the object
                segments = max(self._begun, default=-1) + 1
                remove_parts(store, names, self._resources.path.connections, segments)
                if not self._undecided and not self._unanswered:
                    marker.remove()
        except StoreError as error:
            log.warning(
                "can't remove all of the failed backup %s, what has a marker the next backup "
                "removes: %s",
                names.backup_id,
                error,
            )


def _exists(store: SwiftStore, name: str) -> bool:
    try:
        store.stat(Container.OBJECTS, name)
    except StoreNotFound:
        return False
    return True


def _identity(datadir: Path) -> str:
    status = datadir.stat()
    return f"{status.st_dev}:{status.st_ino}"


def _instance_id(lineage: Lineage) -> str:
    """Return an id of the datadir. Under Trove the instance's own id is not known here."""
    text = f"{lineage.server_uuid}:{lineage.inode}:{lineage.birth}"
    return str(uuid5(NAMESPACE_OID, text))


def _record(
    found: InstanceState, names: TroveNames, instance_id: str, parent: Parent | None
) -> Record:
    now = utc_now()
    return Record(
        id=names.backup_id,
        name=names.backup_id,
        instance_id=instance_id,
        parent_id=parent.place.location.backup_id if parent else None,
        datastore=Datastore(type=found.server.type, version=series(found.server.version)),
        status=BackupStatus.BUILDING,
        size=size_gib(found.datadir_bytes),
        created=now,
        updated=now,
        attempt=names.attempt,
        lineage=found.lineage,
        from_lsn=parent.to_lsn if parent else 0,
        server_version=found.server.version,
        engine=found.chosen.engine.name,
        engine_version=found.chosen.version,
        keys=(),
    )
