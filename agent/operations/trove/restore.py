"""Restore a chain in Trove's layout."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from agent.engine.mariadb import MariadbBackup
from agent.engine.xtrabackup import XtraBackup
from agent.errors import TargetRefused, UsageWrong
from agent.machine.lock import only_backup
from agent.machine.os_user import owner_of
from agent.operations.restore.chain import ChainRestore
from agent.operations.restore.links import ChainLink
from agent.operations.restore.target import RestoreWorkdir, earlier_restores
from agent.operations.trove.links import link_of
from agent.operations.trove.resources import TroveRestoreResources
from agent.pipeline.meter import Meter
from agent.records.trove.objects import (
    ForeignBackup,
    OwnBackup,
    Place,
    TroveBackup,
    read_chain,
)
from agent.stop import Stop

log = logging.getLogger(__name__)


class TroveChain(NamedTuple):
    """The backups of a chain, and the same chain as a restore reads it. Both are in order."""

    backups: Sequence[TroveBackup]
    links: Sequence[ChainLink]


def open_chain(
    resources: TroveRestoreResources, place: Place, *, engine: str | None, password: str
) -> TroveChain:
    """Return the chain of the backup at `place`.

    `resources` must be bound to the stop of the restore. `engine` is the engine that made backups
    of Trove itself. None means that the objects tell it. `password` is the one that these backups
    are encrypted with.

    Raises:
        AgentError: a backup is missing or can't be opened here, or nothing tells the engine.
    """
    backups = read_chain(resources.store, place, resources.keyring)
    if any(isinstance(backup, ForeignBackup) for backup in backups):
        engine = engine or _engine_of(backups)
    return TroveChain(
        backups,
        [link_of(resources, one, engine=engine or "", password=password) for one in backups],
    )


def _engine_of(backups: Sequence[TroveBackup]) -> str:
    """Return the engine that made the backups, as the records or the headers tell."""
    for backup in backups:
        if isinstance(backup, OwnBackup):
            return backup.record.engine
        datastore = backup.object.facts.metadata.get("datastore", "").lower()
        if datastore:
            return MariadbBackup.name if datastore == "mariadb" else XtraBackup.name
    raise UsageWrong(
        f"the object of backup {backups[-1].backup_id} doesn't tell the engine that made it",
        hint=f"set [engine] kind in agent.toml to {MariadbBackup.name} or {XtraBackup.name}, or "
        "the variable BACKUP_AGENT_ENGINE__KIND",
    )


def restore(
    resources: TroveRestoreResources,
    place: Place,
    target: Path,
    *,
    engine: str,
    password: str,
    meter: Meter,
    stop: Stop,
) -> Sequence[TroveBackup]:
    """Restore the chain of the backup at `place` into `target`, and return the chain.

    `engine` and `password` are those of `open_chain`. The directory `target` exists. What a killed
    restore left in it is removed first.

    Raises:
        AgentError: the restore failed, and left nothing.
    """
    if not target.is_dir():
        raise TargetRefused(
            f"there is no directory {target}",
            hint="mount the volume of the instance at /var/lib/mysql, as Trove does",
        )
    bound = resources.bound(stop)
    chain = open_chain(bound, place, engine=engine, password=password)
    with only_backup(target) as locked:
        for earlier in earlier_restores(target) if locked else ():
            log.warning("removing what the killed restore %s left in %s", earlier, target)
            RestoreWorkdir(target, earlier, owner_of(target)).discard()
        ChainRestore(bound, meter=meter, stop=stop).restore(chain.links, target)
    return chain.backups
