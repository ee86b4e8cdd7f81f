"""Make one full or incremental backup.

The order of begin: journal (the runner's), record BUILDING, first segment. The order of
commit: stream proved, segments confirmed, lists, finished record journalled, SLO, record
COMPLETED. Any of these may be the last instruction of this process.
"""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

from pydantic import ValidationError

from agent.codec.aead import SealingStream
from agent.errors import (
    BackupExists,
    Cancelled,
    DataDamaged,
    EngineFailed,
    Internal,
    RecordDamaged,
)
from agent.host import size_gib
from agent.layout import Segment, attempt_prefix, object_name, segment_name
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
from agent.operations.parts import BackupParts
from agent.operations.preflight import (
    Found,
    ObserveLsn,
    laid_out,
    look,
    series,
    usable_parent,
)
from agent.operations.proof import Proof, ProvedStream
from agent.pipeline.buffers import Plan
from agent.pipeline.meter import Meter
from agent.pipeline.pace import Pace
from agent.pipeline.stop import Stop
from agent.pipeline.upload import Upload
from agent.store.protocol import Shelf

RecordHook = Callable[[Record], None]


class BackupOperation:
    """One attempt at the backup that a task asks for; `run` it once.

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
        self._parts = parts
        self._task = task
        self._meter = meter
        self._stop = stop
        self._observe_lsn = observe_lsn
        self._on_begin = on_begin
        self._on_finished = on_finished
        self._record: Record | None = None
        self.undecided = False

    def run(self) -> Record:
        """Make the backup; return its COMPLETED record, raise what stopped it."""
        limits = self._parts.store.open()
        found = look(self._parts, self._observe_lsn)
        parent = usable_parent(self._parts, self._task, found)
        plan = laid_out(self._parts.path, limits, found, self._task.limits.cores)
        data_key = os.urandom(32)
        self._stop.check()
        record = self._begin(found, parent, data_key)
        manifest = Manifest(self._parts.store, limits, record.id, record.attempt)
        proof = self._copy(record, manifest, data_key, plan)
        self._stop.check()
        finished = self._finished(record, manifest.finish(), proof, plan.segment_bytes)
        self._on_finished(finished)
        return self._commit(finished, parent, manifest)

    @property
    def record(self) -> Record | None:
        """The record as it was begun, or may have been; None before."""
        return self._record

    def abandon(self, error: ErrorInfo) -> Record | None:
        """After a failure of `run`: record FAILED, segments removed; the record, if any.

        Raises StoreError where the record can't be read or written; nothing is removed then.
        `undecided` tells whether the backup may be COMPLETED in that case.
        """
        if self._record is None:
            return None
        measured = self._record.model_copy(update={"measured": self._meter.measured()})
        return abandon_record(self._parts, measured, error, remove=not self.undecided)

    def _begin(self, found: Found, parent: Record | None, data_key: bytes) -> Record:
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
            attempt=str(uuid4()),
            lineage=found.lineage,
            from_lsn=parent.to_lsn or 0 if parent else 0,
            server_version=found.server.version,
            engine=self._parts.engine.name,
            engine_version=self._parts.engine.version(),
            keys=(self._parts.keyring.active.wrap(data_key),),
        )
        self._record = record
        try:
            self._parts.catalogue.begin(record)
        except BackupExists:
            self._record = None
            raise
        self._on_begin(record)
        if parent is None:
            self._meter.expected_raw_bytes = found.datadir_bytes
        return record

    def _copy(self, record: Record, manifest: Manifest, data_key: bytes, plan: Plan) -> Proof:
        """Run the engine through the data path until the last segment is confirmed."""
        store = self._parts.store

        def send(number: int, parts: list[memoryview]) -> None:
            name = segment_name(record.id, record.attempt, number)
            md5 = store.put(Shelf.SEGMENTS, name, parts)
            manifest.add(number, Segment(sum(len(part) for part in parts), md5))

        from_lsn = record.from_lsn if record.parent_id else None
        scratch = self._parts.scratch / record.attempt
        _make_private(scratch)
        try:
            with (
                self._parts.engine.start_backup(scratch, from_lsn) as engine_run,
                self._stop.on_stop(engine_run.interrupt),
            ):
                stream = ProvedStream(engine_run, from_lsn, self._parts.database.tablespaces)
                self._upload(stream, SealingStream(data_key, record.id.encode()), send, plan)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if stream.proof is None:
            raise Internal("the data path ended before the stream was proved")
        return stream.proof

    def _upload(
        self,
        stream: ProvedStream,
        sealing: SealingStream,
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

    def _commit(self, finished: Record, parent: Record | None, manifest: Manifest) -> Record:
        _publish(self._parts, finished, parent, manifest)
        # From here on a request may reach the store whose answer never comes back.
        self.undecided = True
        self._parts.catalogue.write(finished)
        return finished

    def _finished(
        self, record: Record, stored: Finished, proof: Proof, segment_bytes: int
    ) -> Record:
        return record.model_copy(
            update={
                "status": BackupStatus.COMPLETED,
                "locationRef": f"{self._parts.store.location}/{object_name(record.id)}",
                "updated": utc_now(),
                "to_lsn": proof.checkpoints.to_lsn,
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
                ),
                "measured": self._meter.measured(),
            }
        )


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


def resume_commit(parts: BackupParts, journalled: str) -> Record:
    """Repeat the end of a commit from the finished record as it was journalled.

    Fenced where the backup can't be completed any more; DataDamaged or RecordDamaged where
    what is stored or journalled doesn't make it whole.
    """
    try:
        record = Record.model_validate_json(journalled)
    except ValidationError as error:
        raise RecordDamaged("the record in the journal can't be read") from error
    parts.catalogue.fence(record)
    parent = parts.catalogue.need(record.parent_id) if record.parent_id else None
    manifest = Manifest(parts.store, parts.store.open(), record.id, record.attempt)
    for number, segment in enumerate(parts.catalogue.segments(record)):
        manifest.add(number, segment)
    if record.stored is None or manifest.finish().etag != record.stored.slo_etag:
        raise DataDamaged(f"the segments of backup {record.id} are not those of its record")
    _publish(parts, record, parent, manifest)
    parts.catalogue.write(record)
    return record


def _publish(
    parts: BackupParts, finished: Record, parent: Record | None, manifest: Manifest
) -> None:
    """Write the object of a backup that still is this attempt's to complete; else Fenced."""
    parts.catalogue.fence(finished)
    manifest.publish(_headers(finished, parent))


def abandon_record(
    parts: BackupParts, record: Record, error: ErrorInfo, *, remove: bool = True
) -> Record | None:
    """Write the record of a backup that will not be finished, then remove its object and segments.

    They go only after the store has confirmed that nobody takes the backup for a good one.
    Without `remove` they stay: for where a write of the COMPLETED record may still be under
    way to the store, and would make a good one of a backup without bytes. Where the record
    turns out COMPLETED already, that one is returned; None where the store has no record of
    this attempt.
    """
    there = parts.catalogue.read(record.id)
    if there is None or there.attempt != record.attempt:
        return None
    if there.status is BackupStatus.COMPLETED:
        return there
    cancelled = error.code == Cancelled.code
    status = BackupStatus.CANCELLED if cancelled else BackupStatus.FAILED
    failed = record.model_copy(update={"status": status, "updated": utc_now(), "error": error})
    parts.catalogue.write(failed)
    if remove:
        _remove(parts, record)
    return failed


def _remove(parts: BackupParts, record: Record) -> None:
    parts.store.delete(Shelf.OBJECTS, object_name(record.id))
    prefix = attempt_prefix(record.id, record.attempt)
    names = [row.name for row in parts.store.list(Shelf.SEGMENTS, prefix)]
    with ThreadPoolExecutor(parts.path.connections, "remove") as workers:
        list(workers.map(lambda name: parts.store.delete(Shelf.SEGMENTS, name), names))


def _headers(record: Record, parent: Record | None) -> dict[str, str]:
    """The object headers that Trove's own readers look for."""
    headers = {
        "X-Object-Meta-Lsn": str(record.to_lsn),
        "X-Object-Meta-Datastore": record.datastore.type,
        "X-Object-Meta-Datastore-Version": record.datastore.version or "",
    }
    if parent is not None and parent.stored is not None:
        headers["X-Object-Meta-Parent-Location"] = parent.locationRef or ""
        headers["X-Object-Meta-Parent-Checksum"] = parent.stored.slo_etag
    return headers
