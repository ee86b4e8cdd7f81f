"""Restore a chain of backups into a datadir that a server can start on.

The full backup is extracted into the restore's own directory inside the target, and prepared.
Each incremental is extracted beside it, applied, and removed. The complete datadir is then moved
up into the target. After a failure nothing of the restore is left there.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from uuid import uuid4

from agent.crash_points import Point, reached
from agent.engine.protocol import Engine
from agent.errors import DataDamaged, TargetRefused
from agent.model import Record
from agent.operations.resources import RestoreResources
from agent.operations.restore.extraction import Extraction
from agent.operations.restore.reserve import check_space, space_watched
from agent.operations.restore.target import (
    RestoreWorkdir,
    check_paths,
    check_target,
    restore_user,
)
from agent.pipeline.download import Opening
from agent.pipeline.meter import Meter
from agent.stop import Stop
from agent.threads import about_backup

log = logging.getLogger(__name__)


class RestoreOperation:
    """One restore of one chain.

    Call `run` once. `run_id` (a UUID) is in the name of the restore's own directory in the target.
    The cleanup after a crash finds that directory by this id. None means a random id. `on_whole` is
    called with the backup's record right before the datadir is moved up. By then the datadir is
    complete and on the disk.
    """

    def __init__(
        self,
        resources: RestoreResources,
        *,
        meter: Meter,
        stop: Stop,
        run_id: str | None = None,
        on_whole: Callable[[Record], None] = lambda _record: None,
    ) -> None:
        self._resources = resources.bound(stop)
        self._meter = meter
        self._stop = stop
        self._run_id = run_id or str(uuid4())
        self._on_whole = on_whole
        self._extraction = Extraction(self._resources, meter, stop)

    def run(self, backup_id: str, target: Path) -> list[Record]:
        """Restore the chain of a backup into `target`, and return the chain.

        `target` is the absolute path of a directory that is empty or missing. A restore that must
        be refused is refused before the first byte is written.
        """
        self._resources.store.open(create=False)
        chain = self._resources.catalogue.chain(backup_id)
        openings = [self._resources.opening(record) for record in chain]
        engine = self._engine_of(chain)
        for record in chain:
            self._extraction.plan(record)
        datadirs = self._resources.datadirs()
        check_target(target, datadirs)
        sizes = [_raw_bytes(record) for record in chain]
        reserve = self._resources.reserve_percent
        check_space(target, sizes[0] + max(sizes[1:], default=0), reserve)
        self._meter.expected_raw_bytes = sum(sizes)
        work = RestoreWorkdir(target, self._run_id, restore_user(target, datadirs))
        check_paths(work, max(map(_longest_path, chain[1:]), default=0))
        target_was_missing = not target.exists()
        with ExitStack() as undo:
            undo.callback(self._undo, work, remove_target=target_was_missing)
            work.make()
            with space_watched(work.folder, reserve, self._stop):
                self._restore(engine.run_as(work.user), chain, openings, work)
            work.sync()
            # A cancel before this line ends the restore, also one that came during the sync. A
            # later cancel has no effect.
            self._stop.ignore()
            self._on_whole(chain[-1])
            work.move_up()
            undo.pop_all()
        return chain

    def _undo(self, work: RestoreWorkdir, *, remove_target: bool) -> None:
        """Remove everything that the restore made, after a failure.

        Raise the cause of the stop if the restore was stopped.
        """
        try:
            work.remove()
            if remove_target:
                # The target stays if another process has put a file there during the restore.
                with suppress(TargetRefused):
                    work.remove_target()
        except TargetRefused as error:
            log.warning("can't remove %s, which a failed restore left: %s", work.folder, error)
        # A program that was stopped fails with an error of its own, which is not the cause.
        self._stop.check()

    def _engine_of(self, chain: Sequence[Record]) -> Engine:
        """Return the engine that made the chain.

        Raises:
            EngineError: this machine doesn't have it.
            DataDamaged: several engines made the chain.
        """
        versions = {(record.engine, record.engine_version) for record in chain}
        engines = {self._resources.engines.for_record(*one) for one in versions}
        if len(engines) > 1:
            raise DataDamaged(f"the chain of backup {chain[-1].id} was made by several engines")
        return engines.pop()

    def _restore(
        self,
        engine: Engine,
        chain: Sequence[Record],
        openings: Sequence[Opening],
        work: RestoreWorkdir,
    ) -> None:
        datadir, beside = work.datadir, work.incremental
        with about_backup(chain[0].id):
            work.make_inside(datadir)
            self._extraction.run(engine, chain[0], openings[0], datadir, work.as_user)
            reached(Point.RESTORE_EXTRACTED)
            self._prepare(engine, datadir, None, last=len(chain) == 1)
        for number, (record, opening) in enumerate(zip(chain, openings, strict=True)):
            if not number:
                continue
            with about_backup(record.id):
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
            engine.start_prepare(
                target, incremental, self._resources.prepare_memory_bytes, last=last
            ) as prepare_run,
            self._stop.on_stop(prepare_run.interrupt),
        ):
            prepare_run.finish()
        self._stop.check()


def _longest_path(record: Record) -> int:
    """Return the record's longest path in bytes, 0 if it has none. `Gate` then checks the paths."""
    return (record.stored.longest_path if record.stored else None) or 0


def _raw_bytes(record: Record) -> int:
    return record.stored.raw_bytes if record.stored else 0
