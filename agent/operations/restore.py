"""Bring a chain back as a datadir that a server can start on.

The full backup is extracted into a folder of the restore's own in the target and prepared;
each incremental is extracted beside it, applied, and removed. What is whole is moved up into
the target; on a failure nothing is left there.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from uuid import uuid4

from agent.crash import Point, reached
from agent.engine.protocol import Engine
from agent.errors import DataDamaged, TargetRefused
from agent.model import Record
from agent.operations.extraction import Extraction
from agent.operations.parts import RestoreParts
from agent.operations.reserve import check_space, space_watched
from agent.operations.target import Work, check_paths, check_target, restore_user
from agent.pipeline.download import Opening
from agent.pipeline.meter import Meter
from agent.pipeline.stop import Stop

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
        self._extraction = Extraction(self._parts, meter, stop)

    def run(self, backup_id: str, target: Path) -> list[Record]:
        """Restore into `target`, an absolute path that is empty or missing; return the chain.

        Everything that can be refused is refused before a byte is written.
        """
        self._parts.store.open(create=False)
        chain = self._parts.catalogue.chain(backup_id)
        openings = [self._parts.opening(record) for record in chain]
        engine = self._engine_of(chain)
        for record in chain:
            self._extraction.plan(record)
        datadirs = self._parts.datadirs()
        check_target(target, datadirs)
        sizes = [_raw_bytes(record) for record in chain]
        reserve = self._parts.reserve_percent
        check_space(target, sizes[0] + max(sizes[1:], default=0), reserve)
        self._meter.expected_raw_bytes = sum(sizes)
        work = Work(target, self._run_id, restore_user(target, datadirs))
        check_paths(work, max(map(_longest_path, chain[1:]), default=0))
        made = not target.exists()
        with ExitStack() as undo:
            undo.callback(self._undo, work, remove=made)
            work.make()
            with space_watched(work.folder, reserve, self._stop):
                self._restore(engine.run_as(work.user), chain, openings, work)
            work.sync()
            # a cancel that came while the disk wrote still ends it, a later one comes too late
            self._stop.close()
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
                with suppress(TargetRefused):
                    work.remove_target()
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
        work.make_inside(datadir)
        self._extraction.run(engine, chain[0], openings[0], datadir, work.as_user)
        reached(Point.RESTORE_EXTRACTED)
        self._prepare(engine, datadir, None, last=len(chain) == 1)
        for number, (record, opening) in enumerate(zip(chain, openings, strict=True)):
            if number:
                work.make_inside(beside)
                self._extraction.run(engine, record, opening, beside, work.as_user)
                self._prepare(engine, datadir, beside, last=record is chain[-1])
                work.remove_inside(beside)
        reached(Point.RESTORE_PREPARED)

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


def _longest_path(record: Record) -> int:
    """Return 0 for a backup of an agent that didn't note it; `Gate` judges its paths."""
    return (record.stored.longest_path if record.stored else None) or 0


def _raw_bytes(record: Record) -> int:
    return record.stored.raw_bytes if record.stored else 0
