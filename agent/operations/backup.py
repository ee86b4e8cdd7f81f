"""Make one full or incremental backup.

The order of begin: journal (the runner's), record BUILDING, first segment. The order of
commit: stream proved, segments confirmed, lists, finished record journalled, SLO, record
COMPLETED. Any of these may be the last instruction of this process.
"""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

from agent.codec.aead import SealingStream
from agent.errors import (
    Internal,
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
from agent.operations.preflight import Found, ObserveLsn, look, series, usable_parent
from agent.operations.proof import Proof, ProvedStream
from agent.pipeline.meter import Meter
from agent.pipeline.pace import Pace
from agent.pipeline.stop import Stop
from agent.pipeline.upload import Upload
from agent.store.protocol import Shelf, StoreLimits

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

    def run(self) -> Record:
        """Make the backup; return its COMPLETED record, raise what stopped it."""
        limits = self._parts.store.open()
        found = look(self._parts, self._observe_lsn)
        parent = usable_parent(self._parts, self._task, found)
        data_key = os.urandom(32)
        record = self._begin(found, parent, data_key)
        manifest = Manifest(self._parts.store, limits, record.id, record.attempt)
        proof = self._copy(record, manifest, data_key, limits)
        return self._commit(record, parent, manifest, proof)

    @property
    def record(self) -> Record | None:
        """The record as it was begun; None before."""
        return self._record

    def abandon(self, error: ErrorInfo) -> Record | None:
        """After a failure of `run`: record FAILED, segments removed; the record, if any.

        Raises StoreError where the record can't be written; nothing is removed then.
        """
        if self._record is None:
            return None
        measured = self._record.model_copy(update={"measured": self._meter.measured()})
        return abandon_record(self._parts, measured, error)

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
        self._parts.catalogue.begin(record)
        self._record = record
        self._on_begin(record)
        if parent is None:
            self._meter.expected_raw_bytes = found.datadir_bytes
        return record

    def _copy(
        self, record: Record, manifest: Manifest, data_key: bytes, limits: StoreLimits
    ) -> Proof:
        """Run the engine through the data path until the last segment is confirmed."""
        store = self._parts.store

        def send(number: int, parts: list[memoryview]) -> None:
            name = segment_name(record.id, record.attempt, number)
            md5 = store.put(Shelf.SEGMENTS, name, parts)
            manifest.add(number, Segment(sum(len(part) for part in parts), md5))

        from_lsn = record.from_lsn if record.parent_id else None
        scratch = self._parts.scratch / record.attempt
        scratch.mkdir(mode=0o700, parents=True)
        try:
            with (
                self._parts.engine.start_backup(scratch, from_lsn) as engine_run,
                self._stop.on_stop(engine_run.interrupt),
            ):
                stream = ProvedStream(engine_run, from_lsn, self._parts.database.tablespaces)
                self._upload(stream, SealingStream(data_key, record.id.encode()), send, limits)
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
        limits: StoreLimits,
    ) -> None:
        wanted = self._task.limits
        path = self._parts.path
        Upload(
            stream,
            sealing,
            send,
            plan=path.plan(cores=wanted.cores),
            level=path.level,
            pace=Pace(wanted.bytes_per_second or path.bytes_per_second, self._stop),
            meter=self._meter,
            stop=self._stop,
        ).run()

    def _commit(
        self, record: Record, parent: Record | None, manifest: Manifest, proof: Proof
    ) -> Record:
        self._stop.check()
        finished = self._finished(record, manifest.finish(), proof)
        self._on_finished(finished)
        self._parts.catalogue.fence(finished)
        manifest.publish(_headers(finished, parent))
        self._parts.catalogue.write(finished)
        return finished

    def _finished(self, record: Record, stored: Finished, proof: Proof) -> Record:
        path = self._parts.path
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
                    segment_size=path.plan().segment_bytes,
                    segment_count=stored.segments,
                    lists=stored.lists,
                    slo_etag=stored.etag,
                ),
                "measured": self._meter.measured(),
            }
        )


def abandon_record(parts: BackupParts, record: Record, error: ErrorInfo) -> Record:
    """Write the record of a backup that will not be finished, then remove its segments.

    The segments go only after the store has confirmed that nobody takes the backup for a
    good one. Where the record turns out COMPLETED already (the answer to its last write was
    lost), the backup is good, and that record is returned as it is.
    """
    there = parts.catalogue.read(record.id)
    if there and there.attempt == record.attempt and there.status is BackupStatus.COMPLETED:
        return there
    failed = record.model_copy(
        update={
            "status": BackupStatus.CANCELLED if error.code == "cancelled" else BackupStatus.FAILED,
            "updated": utc_now(),
            "error": error,
        }
    )
    parts.catalogue.write(failed)
    prefix = attempt_prefix(record.id, record.attempt)
    names = [row.name for row in parts.store.list(Shelf.SEGMENTS, prefix)]
    with ThreadPoolExecutor(parts.path.connections, "remove") as workers:
        list(workers.map(lambda name: parts.store.delete(Shelf.SEGMENTS, name), names))
    return failed


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
