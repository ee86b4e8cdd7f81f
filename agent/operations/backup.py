"""Make one full or incremental backup.

The order of begin: journal (the runner's), record BUILDING, first segment. The order of
commit: stream proved, segments confirmed, lists, finished record journalled, SLO, record
COMPLETED. Any of these may be the last instruction of this process.
"""

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from agent.codec.aead import SealingStream
from agent.codec.plain import PlainSealing
from agent.crash import Point, reached
from agent.errors import (
    BackupExists,
    Cancelled,
    EngineFailed,
    Fenced,
    Internal,
    StoreError,
)
from agent.host import size_gib
from agent.layout import Segment, new_attempt, object_name, segment_name
from agent.lock import only_backup
from agent.manifest import Finished, Manifest
from agent.model import (
    BackupStatus,
    CreateTask,
    Datastore,
    ErrorInfo,
    Record,
    Stored,
    utc_now,
)
from agent.operations.abandon import abandon_record
from agent.operations.commit import publish
from agent.operations.completeness import Completeness
from agent.operations.diagnosis import DiagnosedRun
from agent.operations.lock_watch import LockWatch
from agent.operations.parts import BackupParts
from agent.operations.preflight import (
    Found,
    ObserveLsn,
    check_place,
    laid_out,
    look,
    series,
    surveyed,
    usable_base,
    whole_chain,
)
from agent.operations.proof import Proof, ProvedStream
from agent.operations.replica import sql_thread_kept
from agent.operations.watch import WATCH_SECONDS, Watch
from agent.pipeline.buffers import Plan
from agent.pipeline.meter import Meter, every
from agent.pipeline.pace import Pace
from agent.pipeline.stop import Stop
from agent.pipeline.upload import Sealing, Upload
from agent.store.protocol import Shelf, StoreLimits

log = logging.getLogger(__name__)

RecordHook = Callable[[Record], None]


class BackupOperation:
    """One attempt, known by its id `attempt`, at the backup that a task asks for; `run` it once.

    `observe_lsn` tells the generation of a lineage, `on_begin` is called with the BUILDING
    record, `on_finished` with the record that is about to be committed.
    """

    def __init__(
        self,
        parts: BackupParts,
        task: CreateTask,
        *,
        meter: Meter,
        stop: Stop,
        observe_lsn: ObserveLsn,
        on_begin: RecordHook,
        on_finished: RecordHook,
    ) -> None:
        # whoever cleans up afterwards is not stopped by what stopped the backup
        self._unbound = parts
        self._parts = parts.bound(stop)
        self._task = task
        self._meter = meter
        self._stop = stop
        self._observe_lsn = observe_lsn
        self._on_begin = on_begin
        self._on_finished = on_finished
        self._record: Record | None = None
        wanted = task.backup
        self._line = {wanted.id, wanted.parent_id or wanted.id}
        self._doomed: set[str] = set()
        self.attempt = new_attempt(parts.instance_id)
        self.undecided = False

    def run(self) -> Record:
        """Make the backup; return its COMPLETED record, raise what stopped it."""
        if self._parts.store_folder is not None:
            # before anything is made there
            check_place(self._parts.store_folder, [self._parts.database.server().datadir])
        self._parts.store.open()
        limits = self._parts.store.limits()
        found = look(self._parts, self._observe_lsn)
        with only_backup(found.server.datadir) if self._parts.alone else nullcontext():
            return self._make(limits, found)

    def _make(self, limits: StoreLimits, found: Found) -> Record:
        base = usable_base(self._parts, self._task, found, self._stop.check)
        self._line = {self._task.backup.id, *(record.id for record in base.chain)}
        self._make_way()
        plan = laid_out(self._parts.path, limits, found, self._task.limits.cores)
        data_key = os.urandom(32) if self._parts.encrypt else None
        self._stop.check()
        whole = surveyed(self._parts, found, base, self._stop.check)
        self._parts.keep_key()
        record = self._begin(found, base.parent, data_key)
        manifest = Manifest(
            self._parts.store, limits, record.id, record.attempt, sealed=record.sealed
        )
        proof = self._copy(found, whole, record, manifest, data_key, plan)
        self._stop.check()
        finished = self._finished(record, manifest.finish(), proof, plan.segment_bytes)
        reached(Point.LISTS_STORED)
        self._on_finished(finished)
        reached(Point.RECORD_JOURNALLED)
        return self._commit(finished, manifest)

    def make_way(self, deleted: str) -> None:
        """Stop with Cancelled where the backup to be deleted is this one or an ancestor.

        May be called from any thread; after the commit has begun it changes nothing.
        """
        self._doomed.add(deleted)
        self._make_way()

    def _make_way(self) -> None:
        # One thread adds to the doomed, another sets the line; whoever is second sees both.
        for deleted in self._doomed & self._line:
            self._stop.request(
                Cancelled(f"backup {deleted}, which this one is or descends from, is to be deleted")
            )

    @property
    def record(self) -> Record | None:
        """The record as it was begun, or may have been; None before."""
        return self._record

    def abandon(self, error: ErrorInfo, patience: Stop | None = None) -> Record | None:
        """After a failure of `run`: record FAILED, segments removed; the record, if any.

        Raises StoreError where the record can't be read or written; nothing is removed then.
        `undecided` tells whether the backup may be COMPLETED in that case. Raises the cause of
        `patience` where that comes before its end.
        """
        if self._record is None:
            return None
        measured = self._record.model_copy(update={"measured": self._meter.measured()})
        parts = self._unbound.bound(patience) if patience else self._unbound
        return abandon_record(parts, measured, error, remove=not self.undecided)

    def _begin(self, found: Found, parent: Record | None, data_key: bytes | None) -> Record:
        wanted = self._task.backup
        now = utc_now()
        asked = wanted.datastore
        record = Record(
            id=wanted.id,
            name=wanted.name,
            description=wanted.description,
            instance_id=self._parts.instance_id,
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
            keys=self._parts.keyring.wrap_all(data_key) if data_key else (),
        )
        self._record = record
        try:
            self._parts.catalogue.begin(record)
        except BackupExists:
            self._record = None
            raise
        reached(Point.RECORD_BEGUN)
        self._on_begin(record)
        if parent is not None:
            # A delete marks the chain first and then looks what descends from it, a backup
            # writes its record first and then looks at the chain: one sees the other.
            whole_chain(self._parts, parent.id)
        else:
            self._meter.expected_raw_bytes = found.copied_bytes
        return record

    def _copy(
        self,
        found: Found,
        whole: Completeness,
        record: Record,
        manifest: Manifest,
        data_key: bytes | None,
        plan: Plan,
    ) -> Proof:
        """Run the engine through the data path until the last segment is confirmed."""
        store = self._parts.store

        def send(number: int, parts: list[memoryview]) -> None:
            name = segment_name(record.id, record.attempt, number)
            md5 = store.put(Shelf.SEGMENTS, name, parts)
            reached(Point.SEGMENT_STORED)
            manifest.add(number, Segment(sum(len(part) for part in parts), md5))

        from_lsn = record.from_lsn if record.parent_id else None
        engine = found.chosen.engine.leaving_out(whole.survey.left_out)
        watch = Watch(self._parts.catalogue, record, self._stop)
        locks = LockWatch(self._parts.database, self._parts.lock_wait_seconds, self._stop)
        scratch = self._parts.scratch / record.attempt
        _make_private(scratch)
        try:
            with (
                sql_thread_kept(self._unbound),
                engine.start_backup(scratch, from_lsn) as engine_run,
                self._stop.on_stop(engine_run.interrupt),
                every(WATCH_SECONDS, watch.look, name="watch"),
                every(locks.interval, locks.look, name="lock watch"),
            ):
                run = DiagnosedRun(engine_run, self._parts)
                stream = ProvedStream(run, from_lsn, whole, found.lsn)
                self._upload(stream, _sealing(record, data_key), send, plan)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        watch.look()
        # whoever made the engine believe a false LSN has let it leave redo log out
        self._parts.database.lsn()
        if stream.proof is None:
            raise Internal("the data path ended before the stream was proved")
        return stream.proof

    def _upload(
        self,
        stream: ProvedStream,
        sealing: Sealing,
        send: Callable[[int, list[memoryview]], None],
        plan: Plan,
    ) -> None:
        path = self._parts.path
        Upload(
            stream,
            sealing,
            send,
            plan=plan,
            level=path.level,
            pace=Pace(self._task.limits.bytes_per_second or path.bytes_per_second, self._stop),
            meter=self._meter,
            stop=self._stop,
        ).run()

    def _commit(self, finished: Record, manifest: Manifest) -> Record:
        publish(self._parts, finished, manifest)
        reached(Point.OBJECT_STORED)
        # The point of no return: whoever wants to cancel it now comes too late.
        self._stop.close()
        # From here on a request may reach the store whose answer never comes back.
        self.undecided = True
        try:
            self._parts.catalogue.write(finished)
        except (Fenced, Cancelled):
            # refused before it was sent, or marked DELETING after it came too late
            self.undecided = False
            raise
        except StoreError as error:
            self.undecided = not error.without_effect
            raise
        reached(Point.RECORD_COMPLETED)
        return finished

    def _finished(
        self, record: Record, stored: Finished, proof: Proof, segment_bytes: int
    ) -> Record:
        return record.model_copy(
            update={
                "status": BackupStatus.COMPLETED,
                "locationRef": f"{self._parts.store.location}/{_object_name(record)}",
                "updated": utc_now(),
                "to_lsn": proof.checkpoints.to_lsn,
                **proof.tables._asdict(),
                "binlog": proof.binlog,
                "replica": proof.replica,
                "galera": proof.galera,
                "stored": Stored(
                    raw_bytes=proof.raw_bytes,
                    compressed_bytes=self._meter.compressed_bytes,
                    stored_bytes=stored.stored_bytes,
                    segment_size=segment_bytes,
                    segment_count=stored.segments,
                    lists=stored.lists,
                    slo_etag=stored.etag,
                    longest_path=proof.longest_path,
                ),
                "measured": self._meter.measured(),
            }
        )


def _sealing(record: Record, data_key: bytes | None) -> Sealing:
    if data_key is None:
        log.warning("backup %s is stored without encryption: [keys] encrypt is off", record.id)
        return PlainSealing()
    return SealingStream(data_key, record.id.encode())


def _object_name(record: Record) -> str:
    return object_name(record.id, sealed=record.sealed)


def _make_private(folder: Path) -> None:
    """Make a folder and its parent for this user alone; EngineFailed where that can't be."""
    try:
        # `parents` of mkdir gives the parents the umask's mode
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise EngineFailed(
            f"can't make the scratch folder {folder}: {error.strerror}",
            hint="check the free space and permissions of [agent] state_folder",
        ) from error
