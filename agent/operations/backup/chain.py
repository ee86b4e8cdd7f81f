"""Check that the store still has the bytes of every ancestor of an incremental backup."""

from collections.abc import Sequence
from functools import partial

from agent.errors import ParentUnusable
from agent.model import Record
from agent.operations.resources import BackupResources
from agent.records.presence import missing
from agent.threads import Workers


def check_stored(resources: BackupResources, chain: Sequence[Record]) -> None:
    """Check that the store has the bytes of all backups of a chain.

    At most five small requests are sent for each backup, over the connections of the data path.

    Raises:
        ParentUnusable: the bytes of a backup are missing or changed.
        StoreError: the store doesn't answer.
    """
    with Workers(resources.path.connections, "ancestors") as workers:
        problems = list(workers.map(partial(missing, resources.store), chain))
    for record, problem in zip(chain, problems, strict=True):
        if problem is not None:
            raise ParentUnusable(
                f"the parent can't be used: the bytes of backup {record.id} are missing or "
                f"changed: {problem}",
                hint="make a full backup. Find out who removes or changes objects in the store, "
                "and delete the backups that need the lost one",
            )
