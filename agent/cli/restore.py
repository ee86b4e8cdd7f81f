"""The verb `restore`, which restores a backup and its chain.

An agent does it, or this process with --local.
"""

import argparse
import shlex
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Final, Protocol
from uuid import uuid4

from agent import wiring
from agent.cli import embedded, remote, tables
from agent.cli.progress import ProgressBar, watch
from agent.cli.trove_restore import TroveRestore, add_options, check_options
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
from agent.operations.restore.chain import RestoreOperation
from agent.operations.restore.target import check_target, errors_translated
from agent.pipeline.meter import Meter
from agent.records.trove.names import parse_location
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
    "--local --trove https://HOST/v1/AUTH_ID/backups/BACKUP.xbstream.gz /srv/restored",
)


def add(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "restore", restore, "restore a backup and its chain", more=_MORE, examples=_EXAMPLES
    )
    verb.add_argument(
        "backup",
        type=_backup_argument,
        help="the id of the backup, full or incremental; with --trove its location",
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
    add_options(verb)
    add_store(verb)
    add_json(verb)


def _backup_argument(text: str) -> str:
    """Return the id or the location of a backup. This is the argparse type of the argument."""
    return text if "://" in text else uuid_argument(text)


def restore(config: Config, arguments: argparse.Namespace) -> int:
    target = arguments.target
    check_options(arguments)
    if arguments.local:
        return _restore_here(config, arguments, target.absolute())
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


class Restore(Protocol):
    """One restore in this process, which has read its secrets."""

    def check(self) -> None:
        """Check that the chain is there and can be opened."""

    def run(self, target: Path) -> Sequence[tuple[str, str]]:
        """Restore the chain into `target`, and return the id and the name of each backup."""

    def close(self) -> None:
        """Close the store."""


class OwnRestore:
    """A restore of a chain in the agent's own layout. It implements Restore."""

    def __init__(self, config: Config, backup_id: str, meter: Meter, stop: Stop) -> None:
        self._resources = wiring.restore_resources(config)
        self._backup_id = backup_id
        self._operation = RestoreOperation(self._resources, meter=meter, stop=stop)

    def check(self) -> None:
        self._resources.store.open(create=False)
        self._resources.catalogue.chain(self._backup_id)

    def run(self, target: Path) -> Sequence[tuple[str, str]]:
        return [(one.id, one.name) for one in self._operation.run(self._backup_id, target)]

    def close(self) -> None:
        self._resources.store.close()


def _restore_here(config: Config, arguments: argparse.Namespace, target: Path) -> int:
    meter, stop = Meter(), Stop()
    job: Restore
    if arguments.trove:
        backup_id = parse_location(arguments.backup).backup_id
        job = TroveRestore(config, arguments, meter, stop)
    else:
        embedded.need_key(config, arguments)
        backup_id = arguments.backup
        job = OwnRestore(config, backup_id, meter, stop)
    cause = Interrupted("the restore was interrupted", hint="run the command again")
    on_signals(lambda: stop.request(cause))
    with about_backup(backup_id), closing(job):
        _leave_root(config, job, target)
        with ProgressBar("restore") as bar:
            with watch(meter, bar):
                chain = job.run(target)
            bar.finish(meter.raw_bytes)
    if arguments.json:
        restored = [one for one, _ in chain]
        print(tables.as_json({"target": str(target), "chain": restored, **_speed(meter)}))
    else:
        names = printable(" + ".join(name for _, name in chain))
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


def _leave_root(config: Config, job: Restore, target: Path) -> None:
    """Become the owner of the target if root restores on a machine with an agent.

    The owner is the agent's user, unless the target exists and belongs to another user than root.
    """
    user = agent_user(config.agent.state_folder)
    if user is None:
        return
    # Refuse a restore that can't work before the target is made or gets another owner.
    job.check()
    check_target(target)
    become(hand_over(target, user))


def _speed(meter: Meter) -> dict[str, float]:
    return {"raw_bytes": meter.raw_bytes, "seconds": round(meter.seconds, 3)}
