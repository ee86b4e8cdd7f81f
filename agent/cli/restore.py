"""The verb `restore`, which restores a backup and its chain.

An agent does it, or this process with --local.
"""

import argparse
import shlex
from pathlib import Path
from typing import Final
from uuid import uuid4

from agent import wiring
from agent.cli import embedded, remote, tables
from agent.cli.progress import ProgressBar, watch
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
from agent.errors import Interrupted, TargetRefused
from agent.machine.account import agent_user, become, hand_over
from agent.machine.os_user import OsUser
from agent.model import RestoreTask, printable
from agent.operations.resources import RestoreResources
from agent.operations.restore.chain import RestoreOperation
from agent.operations.restore.target import check_target, errors_translated
from agent.pipeline.meter import Meter
from agent.stop import Stop
from agent.threads import about_backup

# The OS user that the distributions' packages run a server as.
_SERVER_USER: Final = "mysql"
_MORE: Final = (
    "The target becomes a datadir that a server can start on. If the restore fails, the target is "
    "emptied again, or removed if it was missing before."
)
_EXAMPLES: Final = (
    "--wait BACKUP /var/lib/mysql-restore/one",
    "--local BACKUP /srv/restored",
    "--local --store file:///var/backups/db BACKUP /srv/restored",
)


def add(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "restore", restore, "restore a backup and its chain", more=_MORE, examples=_EXAMPLES
    )
    verb.add_argument(
        "backup", type=uuid_argument, help="the id of the backup, full or incremental"
    )
    verb.add_argument(
        "target",
        type=Path,
        help="an empty or missing directory; without --local it is on the agent's machine, below "
        "one of the agent's [agent] restore_roots",
    )
    verb.add_argument(
        "--local", action="store_true", help="restore in this process, without a broker"
    )
    verb.add_argument(
        "--instance",
        type=uuid_argument,
        help="the instance of the agent that restores (default: this one)",
    )
    verb.add_argument(
        "--wait", action="store_true", help="show the progress and wait until the restore has ended"
    )
    add_store(verb)
    add_json(verb)


def restore(config: Config, arguments: argparse.Namespace) -> int:
    target = arguments.target
    if arguments.local:
        embedded.need_key(config, arguments)
        with about_backup(arguments.backup):
            return _restore_here(config, arguments.backup, target.absolute(), arguments.json)
    if not target.is_absolute():
        raise TargetRefused(f"the target {target} is not an absolute path on the agent's machine")
    instance = arguments.instance or config.agent.instance_id
    task = build_request(
        RestoreTask, task_id=str(uuid4()), backup_id=arguments.backup, target=str(target)
    )
    last = remote.send(config, instance, task, wait=arguments.wait, label="restore")
    if arguments.json:
        print(tables.as_json(last.model_dump(mode="json") if last else {"task_id": task.task_id}))
    else:
        print(f"task {task.task_id}: {last.status if last else 'sent'}")
    return remote.status(last)


def _restore_here(config: Config, backup_id: str, target: Path, as_json: bool) -> int:
    meter, stop = Meter(), Stop()
    resources = wiring.restore_resources(config)
    cause = Interrupted("the restore was interrupted", hint="run the command again")
    on_signals(lambda: stop.request(cause))
    try:
        _leave_root(config, resources, backup_id, target)
        with ProgressBar("restore") as bar:
            with watch(meter, bar):
                chain = RestoreOperation(resources, meter=meter, stop=stop).run(backup_id, target)
            bar.finish(meter.raw_bytes)
    finally:
        resources.store.close()
    if as_json:
        restored = [record.id for record in chain]
        print(tables.as_json({"target": str(target), "chain": restored, **_speed(meter)}))
    else:
        names = printable(" + ".join(record.name for record in chain))
        print(f"restored {names} into {printable(str(target))}")
        print(f"{meter.raw_bytes} bytes in {meter.seconds:.1f} s; {_owner_note(target)}")
    return 0


def _owner_note(target: Path) -> str:
    """Return the owner of the restored files, and the way to give them to a server's user."""
    with errors_translated(target):
        status = target.stat()
    owner = OsUser(status.st_uid, status.st_gid, ()).name
    if owner == _SERVER_USER:
        return f"it belongs to {owner}: start a server on it as that user"
    return (
        f"it belongs to {owner}: start a server on it as that user, or as {_SERVER_USER} after "
        f"chown -R {_SERVER_USER}: {shlex.quote(printable(str(target)))}"
    )


def _leave_root(config: Config, resources: RestoreResources, backup_id: str, target: Path) -> None:
    """Become the owner of the target if root restores on a machine with an agent.

    The owner is the agent's user, unless the target exists and belongs to another user than root.
    """
    user = agent_user(config.agent.state_folder)
    if user is None:
        return
    # Refuse a restore that can't work before the target is made or gets another owner.
    resources.store.open(create=False)
    resources.catalogue.chain(backup_id)
    check_target(target)
    become(hand_over(target, user))


def _speed(meter: Meter) -> dict[str, float]:
    return {"raw_bytes": meter.raw_bytes, "seconds": round(meter.seconds, 3)}
