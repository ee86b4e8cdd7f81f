"""Make one full or incremental backup.

A backup begins in this order: the caller writes its journal, this module writes the BUILDING
record, then the first segment is stored. A backup is committed in this order: the stream is
proved, all segments are confirmed, the segment lists are stored, the finished record is written
to the journal, the object that joins the segments is stored if the store joins any, the COMPLETED
record is written. The process may be killed after any of these steps.
"""

import logging
import os
from collections.abc import Callable
from contextlib import nullcontext

from agent.crash_points import Point, reached
from agent.errors import (
    BackupExists,
    Cancelled,
    DataError,
    Fenced,
    StoreError,
)
from agent.machine.host import size_gib
from agent.machine.lock import only_backup
from agent.model import (
    BackupStatus,
    CreateTask,
    Datastore,
    ErrorInfo,
    Record,
    utc_now,
)
from agent.operations.backup.abandon import abandon_record
from agent.operations.backup.commit import publish
from agent.operations.backup.completeness import Completeness
from agent.operations.backup.copying import Copying, sealing_of
from agent.operations.backup.finished import finished_record
from agent.operations.backup.preflight import (
    InstanceState,
    ObserveLsn,
    chain_to_continue,
    check_store_folder,
    list_expected,
    observe_instance,
    plan_data_path,
    series,
    whole_chain,
)
from agent.operations.backup.proof import Proof
from agent.operations.backup.watch import Watch
from agent.operations.resources import BackupResources
from agent.pipeline.buffers import Plan
from agent.pipeline.meter import Meter
from agent.records.manifest import Manifest
from agent.records.object_names import (
    Segment,
    attempt_prefix,
    new_attempt,
    object_name,
    segment_name,
)
from agent.records.part_names import AttemptNames
from agent.stop import Stop
from agent.store.protocol import Container, Store, StoreLimits

log = logging.getLogger(__name__)

RecordHook = Callable[[Record], None]


class BackupOperation:
    """One attempt to make the backup that a task requests.

    Call `run` once. `attempt` is the id of the attempt. `observe_lsn` returns the generation of a
    lineage, and notes its LSN. `on_begin` is called with the BUILDING record. `on_finished` is
    called with the finished record, before the object that joins the segments is stored.
    `undecided` is True if the COMPLETED record may have reached the store.
    """

    def __init__(
        self,
        resources: BackupResources,
        task: CreateTask,
        *,
        meter: Meter,
        stop: Stop,
        observe_lsn: ObserveLsn,
        on_begin: RecordHook,
        on_finished: RecordHook,
    ) -> None:
        # Without the stop: the cleanup must still reach the store after the backup was stopped.
        self._unbound = resources
        self._resources = resources.bound(stop)
        self._task = task
        self._meter = meter
        self._stop = stop
        self._observe_lsn = observe_lsn
        self._on_begin = on_begin
        self._on_finished = on_finished
        self._record: Record | None = None
        wanted = task.backup
        self._ancestry = {wanted.id, wanted.parent_id or wanted.id}
        self._deleted_ids: set[str] = set()
        self.attempt = new_attempt(resources.instance_id)
        self.undecided = False

    def run(self) -> Record:
        """Make the backup and return its COMPLETED record, or raise the error that stopped it."""
        if self._resources.store_folder is not None:
            # Checked before anything is written to this directory.
            check_store_folder(
                self._resources.store_folder, [self._resources.database.server().datadir]
            )
        self._resources.store.open()
        limits = self._resources.store.limits()
        found = observe_instance(self._resources, self._observe_lsn)
        with only_backup(found.server.datadir) if self._resources.exclusive else nullcontext():
            return self._make(limits, found)

    def _make(self, limits: StoreLimits, found: InstanceState) -> Record:
        base = chain_to_continue(self._resources, self._task, found, self._stop.check)
        self._ancestry = {self._task.backup.id, *(record.id for record in base.chain)}
        self._cancel_if_deleted()
        plan = plan_data_path(self._resources.path, limits, found, self._task.limits.cores)
        data_key = os.urandom(32) if self._resources.encrypt else None
        self._stop.check()
        completeness = list_expected(
            self._resources,
            found,
            self._stop.check,
            from_lsn=base.parent.to_lsn if base.parent else None,
            checked_spaces=base.checked_spaces,
        )
        self._resources.keep_key()
        record = self._begin(found, base.parent, data_key)
        names = AttemptNames(record.id, record.attempt, record.sealed)
        manifest = Manifest(self._resources.store, limits, names)
        proof = self._copy(found, completeness, record, manifest, data_key, plan)
        self._stop.check()
        located = record.model_copy(
            update={"locationRef": _location(self._resources.store, record)}
        )
        finished = finished_record(
            located, manifest.finish(), proof, self._meter, plan.segment_bytes
        )
        reached(Point.LISTS_STORED)
        self._on_finished(finished)
        reached(Point.RECORD_JOURNALLED)
        return self._commit(finished, manifest)

    def cancel_if_deleted(self, deleted: str) -> None:
        """Stop with Cancelled if the backup `deleted` is this one or one of its ancestors.

        The agent calls this when it accepts a delete task for that backup. Any thread may call it.
        A call has no effect once the COMPLETED record is being written.
        """
        self._deleted_ids.add(deleted)
        self._cancel_if_deleted()

    def _cancel_if_deleted(self) -> None:
        # One thread adds to `_deleted_ids`, another sets `_ancestry`. The second one sees both.
        for deleted in self._deleted_ids & self._ancestry:
            self._stop.request(
                Cancelled(f"backup {deleted}, which this one is or descends from, is being deleted")
            )

    @property
    def record(self) -> Record | None:
        """Return the BUILDING record, which the store may lack if its write failed.

        None before the write is tried, and if it was refused because of a record with this id.
        """
        return self._record

    def abandon(self, error: ErrorInfo, patience: Stop | None = None) -> Record | None:
        """Mark the record FAILED or CANCELLED and remove the segments, after `run` has failed.

        The status is CANCELLED if `error` is a cancel. If `undecided` is True, the backup may be
        COMPLETED in the store, so its bytes stay. If `patience` is requested before the cleanup
        ends, its cause is raised.

        Returns:
            The record, COMPLETED if the backup turns out to be complete. None if the store has no
            record of this attempt.

        Raises:
            StoreError: the record can't be read or written. Nothing is removed then, unless the
                store refused the write for certain (StoreFull, or an error without effect).
        """
        if self._record is None:
            return None
        measured = self._record.model_copy(update={"measured": self._meter.measured()})
        resources = self._unbound.bound(patience) if patience else self._unbound
        return abandon_record(resources, measured, error, remove=not self.undecided)

    def _begin(self, found: InstanceState, parent: Record | None, data_key: bytes | None) -> Record:
        wanted = self._task.backup
        now = utc_now()
        asked = wanted.datastore
        record = Record(
            id=wanted.id,
            name=wanted.name,
            description=wanted.description,
            instance_id=self._resources.instance_id,
            parent_id=parent.id if parent else None,
            datastore=Datastore(
                type=found.server.type,
                version=series(found.server.version),
                version_id=asked.version_id if asked else None,
            ),
            status=BackupStatus.BUILDING,
            size=size_gib(found.datadir_bytes),
            created=now,
            updated=now,
            attempt=self.attempt,
            lineage=found.lineage,
            from_lsn=parent.to_lsn or 0 if parent else 0,
            server_version=found.server.version,
            engine=found.chosen.engine.name,
            engine_version=found.chosen.version,
            cipher="AES256_GCM_HKDF_1MB" if data_key else "none",
            keys=self._resources.keyring.wrap_all(data_key) if data_key else (),
        )
        self._record = record
        try:
            self._resources.catalogue.begin(record)
        except (BackupExists, DataError):
            # the record with this id is not this attempt's, so it must not be changed
            self._record = None
            raise
        reached(Point.RECORD_BEGUN)
        self._on_begin(record)
        if parent is not None:
            # A delete first marks the chain, then looks for its descendants. A backup first writes
            # its record, then looks at the chain. So at least one of the two sees the other.
            whole_chain(self._resources, parent.id)
        else:
            self._meter.expected_raw_bytes = found.copied_bytes
        return record

    def _copy(
        self,
        found: InstanceState,
        completeness: Completeness,
        record: Record,
        manifest: Manifest,
        data_key: bytes | None,
        plan: Plan,
    ) -> Proof:
        """Run the engine and store its stream until the last segment is confirmed."""
        store = self._resources.store

        def send(number: int, parts: list[memoryview]) -> None:
            name = segment_name(record.id, record.attempt, number)
            md5 = store.put(Container.SEGMENTS, name, parts)
            reached(Point.SEGMENT_STORED)
            manifest.add(number, Segment(sum(len(part) for part in parts), md5))

        if data_key is None:
            log.warning("backup %s is stored without encryption: [keys] encrypt is off", record.id)
        copying = Copying(
            self._unbound, limits=self._task.limits, meter=self._meter, stop=self._stop
        )
        return copying.run(
            found,
            completeness,
            sealing_of(record.id, data_key),
            send,
            plan,
            attempt=record.attempt,
            from_lsn=record.from_lsn if record.parent_id else None,
            watch=Watch(self._resources.catalogue, record, self._stop).check,
        )

    def _commit(self, finished: Record, manifest: Manifest) -> Record:
        publish(self._resources, finished, manifest)
        reached(Point.OBJECT_STORED)
        # From here on the backup can't be cancelled.
        self._stop.ignore()
        # From here on the store may take the COMPLETED record although its answer is lost.
        self.undecided = True
        try:
            self._resources.catalogue.write(finished)
        except (Fenced, Cancelled):
            # Fenced: the write was refused before it was sent. Cancelled: a delete had removed the
            # bytes before the store took the record, which is marked DELETING.
            self.undecided = False
            raise
        except StoreError as error:
            self.undecided = not error.without_effect
            raise
        reached(Point.RECORD_COMPLETED)
        return finished


def _location(store: Store, record: Record) -> str:
    """Return the URL of the joined object, or of the segments' directory if nothing joins them."""
    if store.joiner is None:
        segments = attempt_prefix(record.id, record.attempt).rstrip("/")
        return f"{store.location}{Container.SEGMENTS.value}/{segments}"
    return f"{store.location}/{object_name(record.id, sealed=record.sealed)}"
