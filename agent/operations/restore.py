"""Bring a chain back as a datadir that a server can start on.

The full backup is extracted into a folder of the restore's own in the target and prepared;
each incremental is extracted beside it, applied, and removed. What is whole is moved up into
the target; on a failure nothing is left there.
"""

import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from uuid import uuid4

from agent.crash import Point, reached
from agent.engine.checkpoints import read_checkpoints
from agent.engine.protocol import Engine
from agent.errors import ConfigInvalid, DataDamaged, StoreMismatch, StoreNotFound, TargetRefused
from agent.layout import Segment, segment_name
from agent.model import Record
from agent.operations.parts import RestoreParts
from agent.operations.target import Work, check_space, check_target, usable
from agent.pipeline.buffers import Plan
from agent.pipeline.download import Download, Opening
from agent.pipeline.meter import Meter
from agent.pipeline.stop import Stop
from agent.store.protocol import Shelf

log = logging.getLogger(__name__)


class RestoreOperation:
    """One restore of one chain; `run` it once.

    `run_id` (a UUID) names its folder in the target, for whoever clears up after a crash;
    `on_whole` is called with the backup's record when a whole datadir is there and on the disk,
    right before it is moved up.
    """

    def __init__(
        self,
        parts: RestoreParts,
        *,
        meter: Meter,
        stop: Stop,
        run_id: str | None = None,
        on_whole: Callable[[Record], None] = lambda _record: None,
    ) -> None:
        self._parts = parts.bound(stop)
        self._meter = meter
        self._stop = stop
        self._run_id = run_id or str(uuid4())
        self._on_whole = on_whole

    def run(self, backup_id: str, target: Path) -> list[Record]:
        """Restore into `target`, an absolute path that is empty or missing; return the chain.

        Everything that can be refused is refused before a byte is written.
        """
        self._parts.store.open(create=False)
        chain = self._parts.catalogue.chain(backup_id)
        openings = [self._parts.opening(record) for record in chain]
        engine = self._engine_of(chain)
        for record in chain:
            self._plan(record)
        check_target(target)
        sizes = [_raw_bytes(record) for record in chain]
        check_space(target, sizes[0], max(sizes[1:], default=0))
        self._meter.expected_raw_bytes = sum(sizes)
        work = Work(target, self._run_id)
        made = not target.exists()
        with ExitStack() as undo:
            undo.callback(self._undo, work, remove=made)
            work.make()
            self._restore(engine, chain, openings, work)
            work.sync()
            self._on_whole(chain[-1])
            work.move_up()
            undo.pop_all()
        return chain

    def _undo(self, work: Work, *, remove: bool) -> None:
        """Remove what was made after a failure; raises the stop's cause where there is one."""
        try:
            work.remove()
            if remove:
                # not where somebody put something there meanwhile
                with suppress(OSError):
                    work.target.rmdir()
        except TargetRefused as error:
            log.warning("what is left in %s can't be removed: %s", work.folder, error)
        # a program that was told to stop fails in its own words, which are not the cause
        self._stop.check()

    def _engine_of(self, chain: Sequence[Record]) -> Engine:
        """The one engine that made the whole chain; EngineError where it isn't here."""
        made = {(record.engine, record.engine_version) for record in chain}
        engines = {self._parts.engines.for_record(*one) for one in made}
        if len(engines) > 1:
            raise DataDamaged(f"the chain of backup {chain[-1].id} was made by several engines")
        return engines.pop()

    def _restore(
        self,
        engine: Engine,
        chain: Sequence[Record],
        openings: Sequence[Opening],
        work: Work,
    ) -> None:
        datadir, beside = work.datadir, work.incremental
        self._extract(engine, chain[0], openings[0], datadir)
        reached(Point.RESTORE_EXTRACTED)
        self._prepare(engine, datadir, None, last=len(chain) == 1)
        for number, (record, opening) in enumerate(zip(chain, openings, strict=True)):
            if number:
                self._extract(engine, record, opening, beside)
                self._prepare(engine, datadir, beside, last=record is chain[-1])
                shutil.rmtree(beside)
        reached(Point.RESTORE_PREPARED)

    def _extract(self, engine: Engine, record: Record, opening: Opening, folder: Path) -> None:
        """Fetch, open and inflate one backup into `folder`."""
        log.info("extracting backup %s into %s", record.id, folder)
        segments = self._parts.catalogue.segments(record)
        if record.stored is None or len(segments) != record.stored.segment_count:
            raise DataDamaged(f"backup {record.id} has {len(segments)} segments, not as recorded")
        with usable(folder):
            folder.mkdir(mode=0o700)
        before = self._meter.raw_bytes
        with (
            engine.extract(folder) as extract_run,
            self._stop.on_stop(extract_run.interrupt),
        ):
            Download(
                [segment.size for segment in segments],
                lambda number, buffer: self._fetch(record, segments, number, buffer),
                opening,
                extract_run.write,
                plan=self._plan(record),
                meter=self._meter,
                stop=self._stop,
            ).run()
            extract_run.finish()
        if self._meter.raw_bytes - before != record.stored.raw_bytes:
            raise DataDamaged(
                f"backup {record.id} gave {self._meter.raw_bytes - before} bytes, "
                f"its record says {record.stored.raw_bytes}"
            )
        self._check_lsns(record, folder)

    def _plan(self, record: Record) -> Plan:
        """The data path's layout for the segments as this backup has them."""
        size = record.stored.segment_size if record.stored else None
        try:
            return self._parts.path.plan(segment_bytes=size)
        except ConfigInvalid as error:
            raise ConfigInvalid(
                f"the segments of backup {record.id} are too large for this machine: {error}",
                hint="raise [pipeline] memory_bytes",
            ) from error

    def _fetch(
        self, record: Record, segments: Sequence[Segment], number: int, buffer: memoryview
    ) -> None:
        name = segment_name(record.id, record.attempt, number)
        try:
            self._parts.store.get_into(Shelf.SEGMENTS, name, buffer)
        except (StoreMismatch, StoreNotFound) as error:
            raise DataDamaged(
                f"segment {number} of backup {record.id} is not as it was stored: {error}"
            ) from error
        # get_into compares with what the store announces now, which whoever changed the bytes
        # changed too. Sealed bytes need no more: their tags tell.
        if not record.sealed and _md5(buffer) != segments[number].md5:
            raise DataDamaged(f"segment {number} of backup {record.id} is not as it was stored")

    def _check_lsns(self, record: Record, folder: Path) -> None:
        found = read_checkpoints(folder)
        if (found.from_lsn, found.to_lsn) != (record.from_lsn, record.to_lsn):
            raise DataDamaged(
                f"backup {record.id} goes from LSN {found.from_lsn} to {found.to_lsn}, its "
                f"record says {record.from_lsn} to {record.to_lsn}"
            )

    def _prepare(
        self, engine: Engine, target: Path, incremental: Path | None, *, last: bool
    ) -> None:
        self._stop.check()
        log.info("preparing %s", target)
        with (
            engine.prepare(
                target, incremental, self._parts.prepare_memory_bytes, last=last
            ) as prepare_run,
            self._stop.on_stop(prepare_run.interrupt),
        ):
            prepare_run.finish()
        self._stop.check()


def _md5(data: memoryview) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _raw_bytes(record: Record) -> int:
    return record.stored.raw_bytes if record.stored else 0
