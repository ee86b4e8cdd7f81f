"""A replica's SQL thread, which [engine] safe_slave_backup stops: it runs again after any end.

The engine starts it again itself, unless it fails or is killed. What ran before is noted in
a file, so that even an agent that was killed in the middle puts it back after its start.
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from agent.errors import DatabaseError, EngineFailed
from agent.machine.host import sync_folder
from agent.operations.resources import BackupResources

log = logging.getLogger(__name__)


@contextlib.contextmanager
def sql_thread_kept(resources: BackupResources) -> Iterator[None]:
    """Around a run of the engine: what of the replica ran before it runs again after it.

    DatabaseError where the server can't be asked before; afterwards failures are only logged.
    """
    if not resources.safe_slave_backup:
        yield
        return
    put_back(resources)
    running = resources.database.replica_sql_running()
    if running:
        _note(_file(resources), running)
    try:
        yield
    finally:
        put_back(resources)


def put_back(resources: BackupResources) -> None:
    """Start the SQL threads that were noted, and forget them; where that fails, keep the note."""
    file = _file(resources)
    try:
        channels = frozenset(map(str, json.loads(file.read_bytes())))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        log.warning("%s can't be read, START REPLICA SQL_THREAD if need be: %s", file, error)
        return
    try:
        # also where it seems to run: the engine's own STOP may still be on its way
        resources.database.start_replica_sql(channels)
    except DatabaseError as error:
        log.warning(
            "the replica's SQL thread may be stopped and could not be started: %s (%s)",
            error,
            error.hint,
        )
        return
    file.unlink(missing_ok=True)


def _file(resources: BackupResources) -> Path:
    return resources.scratch.with_name("replica-sql-thread.json")


def _note(path: Path, channels: frozenset[str]) -> None:
    partial = path.with_suffix(".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(sorted(channels), file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise EngineFailed(
            f"can't note in {path} that the replica's SQL thread runs: {error.strerror}",
            hint="check the free space and permissions of [agent] state_folder",
        ) from error
