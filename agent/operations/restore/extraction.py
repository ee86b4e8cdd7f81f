"""Extract the stored bytes of one backup into a directory, for an engine to prepare.

Each block of the stream is checked before the extractor gets it (gate.py). Afterwards everything
that could lead an engine out of the directory is removed.
"""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from agent.engine.backup_options import disarm
from agent.engine.checkpoints import read_checkpoints
from agent.engine.protocol import Engine
from agent.errors import BackupUnusable, DataDamaged
from agent.operations.restore.gate import Gate
from agent.operations.restore.links import ChainLink
from agent.operations.restore.target import errors_translated
from agent.pipeline.meter import Meter
from agent.stop import Stop

log = logging.getLogger(__name__)

_ORPHAN = (
    "Trove 14 to 23 noted the parent of a large backup in its own database only. Add it to the "
    "backup's object: swift post CONTAINER OBJECT -m Parent-Location:URL -m Parent-Checksum:SUM, "
    "with the parent's locationRef and checksum (of the whole chain, if need be)"
)


class Extraction:
    """An extraction of backups, one after the other.

    It gets the stream of a backup, checks it and extracts its files.
    """

    def __init__(self, meter: Meter, stop: Stop) -> None:
        self._meter = meter
        self._stop = stop

    def run(
        self,
        engine: Engine,
        link: ChainLink,
        folder: Path,
        as_user: Callable[[Callable[[], None]], None],
    ) -> None:
        """Extract one backup into `folder`, which is empty, and disarm it.

        Disarming removes everything that could lead an engine out of the directory. `as_user` calls
        a function with the rights of the owner of the extracted files.

        Raises:
            DataDamaged: stored bytes were changed or are missing, or the facts of the link don't
                fit them.
            ContentRefused: the backup holds something that no engine writes.
        """
        log.info("extracting backup %s into %s", link.backup_id, folder)
        named = folder.resolve() if link.incremental else None
        with (
            engine.start_extract(folder) as extract_run,
            self._stop.on_stop(extract_run.interrupt),
        ):
            gate = Gate(extract_run.write, link.backup_id, link.raw_bytes, named)
            link.stream(gate.write, self._meter, self._stop)
            gate.finish()
            extract_run.finish()
        as_user(partial(_disarm_and_check, link, folder, self._stop.check))


def _disarm_and_check(link: ChainLink, folder: Path, check: Callable[[], None]) -> None:
    """Disarm the extracted backup, and check that its LSNs are those that are known of it."""
    with errors_translated(folder):
        disarm(folder, check)
    _check_lsns(link, folder)


def _check_lsns(link: ChainLink, folder: Path) -> None:
    found = read_checkpoints(folder)
    if found.from_lsn and not link.incremental and link.raw_bytes is None:
        raise BackupUnusable(
            f"backup {link.backup_id} is an incremental from LSN {found.from_lsn}, but names no "
            "parent",
            hint=_ORPHAN,
        )
    if link.from_lsn in (None, found.from_lsn) and link.to_lsn in (None, found.to_lsn):
        return
    raise DataDamaged(
        f"backup {link.backup_id} goes from LSN {found.from_lsn} to {found.to_lsn}, but its record "
        f"says {_shown(link.from_lsn)} to {_shown(link.to_lsn)}"
    )


def _shown(lsn: int | None) -> str:
    return "an unknown LSN" if lsn is None else str(lsn)
