"""The verb `backup-delete`, which deletes a backup and all its descendants.

An agent does it, or this process with --local.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from agent import wiring
from agent.cli import embedded, remote, tables
from agent.cli.verb import (
    Verbs,
    add_json,
    add_store,
    add_verb,
    build_request,
    on_signals,
    uuid_argument,
)
from agent.config.settings import Config
from agent.errors import Interrupted
from agent.journal import known_parents
from agent.model import DeleteTask, Record
from agent.operations.delete.family import DeleteOperation
from agent.pipeline.meter import Meter
from agent.records.catalogue import Catalogue
from agent.records.descendants import BackupNode
from agent.stop import Stop
from agent.threads import about_backup

_MORE = """\
Prints nothing on success, unless --dry-run or --json is given. Any agent of the tenant can delete
any backup, also a backup of a VM that does not exist any more. Without --instance the task goes to
the agent of this configuration. A backup that is still being made is cancelled first. To continue
a delete that was interrupted, run the same command again.
"""


def add(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "backup-delete",
        backup_delete,
        "delete a backup and all its descendants",
        more=_MORE,
        examples=(
            "--dry-run BACKUP",
            "--wait BACKUP",
            "--local --store file:///var/backups/db BACKUP",
        ),
    )
    verb.add_argument("backup", type=uuid_argument, help="the backup's id")
    verb.add_argument(
        "--local", action="store_true", help="delete in this process, without a broker"
    )
    verb.add_argument(
        "--wait", action="store_true", help="show the progress and wait until the delete has ended"
    )
    verb.add_argument(
        "--dry-run",
        action="store_true",
        help="show the tree of backups that would be deleted, and delete nothing",
    )
    verb.add_argument(
        "--instance",
        type=uuid_argument,
        help="the instance of the agent that deletes (default: this one)",
    )
    add_store(verb)
    add_json(verb)


def backup_delete(config: Config, arguments: argparse.Namespace) -> int:
    embedded.need_key(config, arguments)
    if arguments.dry_run:
        return _show(config, arguments.backup, arguments.json)
    if arguments.local:
        with about_backup(arguments.backup):
            return _delete_here(config, arguments.backup, arguments.json)
    instance = arguments.instance or config.agent.instance_id
    task = build_request(DeleteTask, task_id=str(uuid4()), backup_id=arguments.backup)
    last = remote.send(config, instance, task, wait=arguments.wait, label="delete")
    if arguments.json:
        print(tables.as_json(last.model_dump(mode="json") if last else {"task_id": task.task_id}))
    return remote.status(last)


def _show(config: Config, backup_id: str, as_json: bool) -> int:
    with _operation(config) as operation:
        family = operation.family(backup_id)
    if as_json:
        print(tables.as_json({"would_delete": [_plain(node) for node in family.plan()]}))
    else:
        for line in family.draw():
            print(line)
    return 0


def _delete_here(config: Config, backup_id: str, as_json: bool) -> int:
    with _operation(config) as operation:
        operation.run(backup_id)
    if as_json:
        print(tables.as_json({"deleted": [_plain(node) for node in operation.deleted]}))
    return 0


@contextmanager
def _operation(config: Config) -> Iterator[DeleteOperation]:
    """Yield a delete that needs only the store and the keys.

    SIGINT and SIGTERM stop it between two objects.
    """
    store, stop = wiring.store(config), Stop()
    again = "run the same command again to continue the delete"
    on_signals(lambda: stop.request(Interrupted("the delete was interrupted", hint=again)))
    try:
        yield DeleteOperation(
            store,
            Catalogue(store, wiring.keyring(config), wiring.record_cache(config)),
            connections=config.pipeline.connections,
            meter=Meter(),
            stop=stop,
            on_begin=_ignore,
            parents=lambda: known_parents(config.agent.journal_file),
        )
    finally:
        store.close()


def _ignore(_record: Record) -> None:
    """Do nothing when the delete begins, because no report is sent."""


def _plain(node: BackupNode) -> dict[str, Any]:
    return {
        "id": node.id,
        "name": node.name,
        "parent_id": node.parent_id,
        "status": node.status.value,
        "created": node.created,
    }
