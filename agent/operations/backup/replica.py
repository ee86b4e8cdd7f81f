"""Start a replica's SQL threads again after a backup, however the backup ended.

With [engine] safe_slave_backup the engine stops the SQL threads during a backup. It starts them
again itself, unless it fails or is killed. The threads that ran before are noted in a file. So even
an agent that was killed during the backup starts them again after its own restart.
"""

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

from agent.errors import DatabaseError, EngineFailed, LockTimeout
from agent.machine.host import replace_file
from agent.operations.resources import InstanceResources

log = logging.getLogger(__name__)


@contextlib.contextmanager
def sql_thread_restarted(resources: InstanceResources) -> Iterator[None]:
    """Run a block, and then start the replica's SQL threads that ran before it.

    The block is a run of the engine. Does nothing without [engine] safe_slave_backup.

    Raises:
        DatabaseError, LockTimeout: the server can't be queried before the block. A failure after
            the block is only logged.
        EngineFailed: the file that notes the threads can't be written.
    """
    if not resources.safe_slave_backup:
        yield
        return
    restart_sql_thread(resources)
    running = resources.database.replica_sql_running()
    if running:
        _note(_file(resources), running)
    try:
        yield
    finally:
        restart_sql_thread(resources)


def restart_sql_thread(resources: InstanceResources) -> None:
    """Start the SQL threads that are noted in the file, and remove the file.

    A failure is only logged. If a thread can't be started, the file stays for the next call.
    """
    file = _file(resources)
    try:
        channels = frozenset(map(str, json.loads(file.read_bytes())))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        log.warning(
            "can't read %s: %s. If the replica's SQL thread is stopped, run START REPLICA "
            "SQL_THREAD",
            file,
            error,
        )
        return
    try:
        # Even if a thread seems to run: the server may not have done the engine's STOP yet.
        resources.database.start_replica_sql(channels)
    except (DatabaseError, LockTimeout) as error:
        log.warning(
            "can't start the replica's SQL thread, which may be stopped: %s (%s)",
            error,
            error.hint,
        )
        return
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        log.warning(
            "can't remove %s: %s. Until it is removed, the agent keeps starting the threads",
            file,
            error.strerror,
        )


def _file(resources: InstanceResources) -> Path:
    return resources.scratch.with_name("replica-sql-thread.json")


def _note(path: Path, channels: frozenset[str]) -> None:
    try:
        replace_file(path, json.dumps(sorted(channels)))
    except OSError as error:
        raise EngineFailed(
            f"can't note in {path} that the replica's SQL thread runs: {error.strerror}",
            hint="check the free space and permissions of [agent] state_folder",
        ) from error
