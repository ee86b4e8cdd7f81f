"""Run the engine and store its stream, until the last segment is confirmed and the stream proved.

This part of a backup is the same in every layout of the store.
"""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from agent.codec.aead import SealingStream
from agent.codec.plain import PlainSealing
from agent.errors import EngineFailed, Internal
from agent.model import Limits
from agent.operations.backup.completeness import Completeness
from agent.operations.backup.diagnosis import DiagnosedRun
from agent.operations.backup.lock_watch import LockWatch
from agent.operations.backup.preflight import InstanceState
from agent.operations.backup.proof import Proof, ProvedStream
from agent.operations.backup.replica import sql_thread_restarted
from agent.operations.backup.watch import WATCH_SECONDS
from agent.operations.resources import InstanceResources
from agent.pipeline.buffers import Plan
from agent.pipeline.meter import Meter, every
from agent.pipeline.rate_limit import RateLimit
from agent.pipeline.upload import Sealing, Send, Upload
from agent.stop import Stop

log = logging.getLogger(__name__)


class Copying:
    """One copy of the database.

    `resources` are those of the backup. The copy is bound to `stop`, and its cleanup is not.
    `limits` are those of the task.
    """

    def __init__(
        self, resources: InstanceResources, *, limits: Limits, meter: Meter, stop: Stop
    ) -> None:
        # The SQL threads of a replica must be started again after a stop, too.
        self._unbound = resources
        self._resources = resources.bound(stop)
        self._limits = limits
        self._meter = meter
        self._stop = stop

    def run(
        self,
        found: InstanceState,
        completeness: Completeness,
        sealing: Sealing,
        send: Send,
        plan: Plan,
        *,
        attempt: str,
        from_lsn: int | None,
        watch: Callable[[], None],
    ) -> Proof:
        """Copy the database and return the proof of its stream.

        `from_lsn` is the LSN at which an incremental begins, None for a full backup. `watch` is
        called every WATCH_SECONDS, and once more at the end.
        """
        engine = found.chosen.engine.leaving_out(completeness.survey.left_out)
        database = self._resources.database
        locks = LockWatch(database, self._resources.lock_wait_seconds, self._stop)
        scratch = self._resources.scratch / attempt
        _make_private(scratch)
        try:
            with (
                sql_thread_restarted(self._unbound),
                engine.start_backup(scratch, from_lsn) as engine_run,
                self._stop.on_stop(engine_run.interrupt),
                every(WATCH_SECONDS, watch, name="watch"),
                every(locks.interval, locks.check, name="lock watch"),
            ):
                run = DiagnosedRun(engine_run, self._resources)
                stream = ProvedStream(run, from_lsn, completeness, found.lsn)
                self._upload(stream, sealing, send, plan)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        watch()
        # Raises if a statement in SHOW ENGINE INNODB STATUS imitates the line with the LSN. The
        # engine would believe such an LSN and leave redo log out.
        database.lsn()
        if stream.proof is None:
            raise Internal("the upload ended before the stream was proved")
        return stream.proof

    def _upload(self, stream: ProvedStream, sealing: Sealing, send: Send, plan: Plan) -> None:
        path = self._resources.path
        Upload(
            stream,
            sealing,
            send,
            plan=plan,
            level=path.level,
            rate_limit=RateLimit(
                self._limits.bytes_per_second or path.bytes_per_second, self._stop
            ),
            meter=self._meter,
            stop=self._stop,
        ).run()


def sealing_of(backup_id: str, data_key: bytes | None) -> Sealing:
    """Return the encryption of a backup's stream. None as `data_key` means that there is none."""
    if data_key is None:
        return PlainSealing()
    return SealingStream(data_key, backup_id.encode())


def _make_private(folder: Path) -> None:
    """Make a directory and its parent, with access for this user only.

    Raises:
        EngineFailed: the directory can't be made.
    """
    try:
        # `parents=True` of mkdir makes the parents with the mode of the umask.
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise EngineFailed(
            f"can't make the temporary directory {folder}: {error.strerror}",
            hint="check the free space and permissions of [agent] state_folder",
        ) from error
