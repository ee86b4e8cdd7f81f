"""Whether an incremental can stand on its chain: the bytes of every ancestor answer."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from agent.errors import ParentUnusable
from agent.model import Record
from agent.operations.resources import BackupResources
from agent.records.presence import missing


def check_stored(resources: BackupResources, chain: Sequence[Record]) -> None:
    """Ask the store for the bytes of all backups of a chain; ParentUnusable if some are gone.

    At most five small requests a backup, over the connections of the data path. StoreError if
    the store doesn't answer.
    """
    with ThreadPoolExecutor(resources.path.connections, "ancestors") as workers:
        problems = list(workers.map(partial(missing, resources.store), chain))
    for record, problem in zip(chain, problems, strict=True):
        if problem is not None:
            raise ParentUnusable(
                f"the parent can't be used: the bytes of backup {record.id} are gone or changed: "
                f"{problem}",
                hint="make a full backup; find out who removes or changes objects in the store, "
                "and delete the backups that need the lost one",
            )
