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
from agent.operations.resources import MachineResources, RestoreResources
from agent.operations.restore.extraction import Extraction
from agent.operations.restore.links import ChainLink, record_link
from agent.operations.restore.reserve import check_space, space_watched
from agent.operations.restore.target import (
    RestoreWorkdir,
    check_paths,
    check_target,
    restore_user,
)
from agent.pipeline.meter import Meter
from agent.stop import Stop
from agent.threads import about_backup

log = logging.getLogger(__name__)


class RestoreOperation:
    """One restore of one chain that records describe.

    Call `run` once. `run_id` is that of `ChainRestore`. `on_whole` is called with the backup's
    record right before the datadir is moved up. By then the datadir is complete and on the disk.
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
        self._chain = ChainRestore(self._resources, meter=meter, stop=stop, run_id=run_id)
        self._on_whole = on_whole

    def run(self, backup_id: str, target: Path) -> list[Record]:
        """Restore the chain of a backup into `target`, and return the chain.

        `target` is the absolute path of a directory that is empty or missing. A restore that must
        be refused is refused before the first byte is written.
        """
        self._resources.store.open(create=False)
        chain = self._resources.catalogue.chain(backup_id)
        links = [record_link(self._resources, record) for record in chain]
        self._chain.restore(links, target, lambda: self._on_whole(chain[-1]))
        return chain


class ChainRestore:
    """One restore of one chain of any kind.

    Call `restore` once. `resources` must be bound to `stop`. `run_id` (a UUID) is in the name of
    the restore's own directory in the target. The cleanup after a crash finds that directory by
    this id. None means a random id.
    """

    def __init__(
        self, resources: MachineResources, *, meter: Meter, stop: Stop, run_id: str | None = None
    ) -> None:
        self._resources = resources
        self._meter = meter
        self._stop = stop
        self._run_id = run_id or str(uuid4())
        self._extraction = Extraction(meter, stop)

    def restore(
        self,
        links: Sequence[ChainLink],
        target: Path,
        on_whole: Callable[[], None] = lambda: None,
    ) -> None:
        """Restore a chain into `target`, as `RestoreOperation.run` does.

        `links` are the members of the chain in order, the full backup first. They are used once.
        Their stores must be open. `on_whole` is called right before the datadir is moved up.
        """
        engine = self._engine_of(links)
        for link in links:
            link.check_memory()
        datadirs = self._resources.datadirs()
        check_target(target, datadirs)
        sizes = [link.least_bytes for link in links]
        reserve = self._resources.reserve_percent
        check_space(target, sizes[0] + max(sizes[1:], default=0), reserve)
        self._meter.expected_raw_bytes = _raw_bytes(links)
        work = RestoreWorkdir(target, self._run_id, restore_user(target, datadirs))
        check_paths(work, max((link.longest_path for link in links[1:]), default=0))
        target_was_missing = not target.exists()
        with ExitStack() as undo:
            undo.callback(self._undo, work, remove_target=target_was_missing)
            work.make()
            with space_watched(work.folder, reserve, self._stop):
                self._restore(engine.run_as(work.user), links, work)
            work.sync()
            # A cancel before this line ends the restore, also one that came during the sync. A
            # later cancel has no effect.
            self._stop.ignore()
            on_whole()
            work.move_up()
            undo.pop_all()

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

    def _engine_of(self, links: Sequence[ChainLink]) -> Engine:
        """Return the engine that made the chain.

        Raises:
            EngineError: this machine doesn't have it.
            DataDamaged: several engines made the chain.
        """
        versions = {(link.engine, link.engine_version) for link in links}
        engines = {self._resources.engines.restoring(*one) for one in versions}
        if len(engines) > 1:
            raise DataDamaged(
                f"the chain of backup {links[-1].backup_id} was made by several engines"
            )
        return engines.pop()

    def _restore(self, engine: Engine, links: Sequence[ChainLink], work: RestoreWorkdir) -> None:
        datadir, beside = work.datadir, work.incremental
        full, *incrementals = links
        with about_backup(full.backup_id):
            work.make_inside(datadir)
            self._extraction.run(engine, full, datadir, work.as_user)
            reached(Point.RESTORE_EXTRACTED)
            self._prepare(engine, datadir, None, last=not incrementals)
        for link in incrementals:
            with about_backup(link.backup_id):
                work.make_inside(beside)
                self._extraction.run(engine, link, beside, work.as_user)
                self._prepare(engine, datadir, beside, last=link is links[-1])
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


def _raw_bytes(links: Sequence[ChainLink]) -> int | None:
    """Return the size of all streams in bytes, or None if one is unknown."""
    sizes = [link.raw_bytes for link in links if link.raw_bytes is not None]
    return sum(sizes) if len(sizes) == len(links) else None
