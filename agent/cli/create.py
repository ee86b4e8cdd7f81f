"""The verb `backup-create`, which requests a backup from an agent or makes it in this process."""

import argparse
from uuid import uuid4

from agent.cli import embedded, local, remote, tables
from agent.cli.verb import Verbs, add_json, add_store, add_verb, build_request, uuid_argument
from agent.config.settings import Config
from agent.errors import UsageWrong
from agent.model import (
    BackupRequest,
    BackupStatus,
    BackupView,
    CreateTask,
    Datastore,
    Report,
    utc_now,
)

_EXAMPLES = (
    "--wait INSTANCE base",
    "--wait --parent BACKUP INSTANCE inc.001",
    "--local --store file:///var/backups/db base",
    "--local --store file:///var/backups/db --parent BACKUP inc.001",
)


def add(verbs: Verbs) -> None:
    create = add_verb(verbs, "backup-create", backup_create, "make a backup", examples=_EXAMPLES)
    create.add_argument("instance", help="the instance's id; may be omitted with --local")
    name = create.add_argument("name", help="a name for the backup, 1 to 255 characters")
    # A word that stands alone is the name, although argparse stores it as `instance`. An optional
    # word (nargs="?") does not work here: as soon as an option stands between the two words,
    # argparse takes the first one for the name, or none.
    name.required = False
    create.set_defaults(refuse=create.error)
    create.add_argument("--description", metavar="TEXT", default="", help="a text to store with it")
    create.add_argument(
        "--parent",
        metavar="BACKUP",
        type=uuid_argument,
        help="make an incremental backup with this backup as its parent",
    )
    create.add_argument(
        "--wait", action="store_true", help="show the progress and wait until the backup has ended"
    )
    create.add_argument(
        "--local",
        action="store_true",
        help="make the backup in this process, without a broker, and wait until it has ended",
    )
    add_store(create)
    add_json(create)


def backup_create(config: Config, arguments: argparse.Namespace) -> int:
    instance, name = _instance_and_name(config, arguments)
    request = build_request(
        BackupRequest,
        id=str(uuid4()),
        name=name,
        description=arguments.description,
        parent_id=arguments.parent,
    )
    # The task has the backup's id, so that a user who knows the backup can cancel the task.
    task = CreateTask(task_id=request.id, backup=request)
    view = _new_view(instance, request)
    last = _last_report(config, arguments, instance, task)
    backup = view if last is None else last.backup
    error = remote.error(last)
    if backup is None:
        # the task was refused, so no backup has that id
        if arguments.json:
            print(tables.as_json({"task_id": task.task_id, "error": error}))
    elif arguments.json:
        print(tables.as_json(tables.view(backup) | ({"error": error} if error else {})))
    else:
        print(tables.property_table(tables.view(backup)))
    return remote.status(last)


def _instance_and_name(config: Config, arguments: argparse.Namespace) -> tuple[str, str]:
    """Return the instance's id and the backup's name from the arguments.

    With --local the name may stand alone. The instance is then that of this machine. Exit with a
    usage error if a word is missing or the instance is not a UUID.

    Raises:
        UsageWrong: --local is given with the id of another instance.
    """
    own = config.agent.instance_id
    if arguments.name is None:
        if not arguments.local:
            arguments.refuse("the following arguments are required: name")
        return own, arguments.instance
    try:
        instance = uuid_argument(arguments.instance)
    except argparse.ArgumentTypeError as error:
        arguments.refuse(f"argument instance: {error}")
    if arguments.local and instance != own:
        raise UsageWrong(
            f"--local backs up the instance {own} of this machine, not {instance}",
            hint="remove the instance's id, or remove the --local flag so that the agent of that "
            "instance makes the backup",
        )
    return instance, arguments.name


def _last_report(
    config: Config, arguments: argparse.Namespace, instance: str, task: CreateTask
) -> Report | None:
    if not arguments.local:
        return remote.send(config, instance, task, wait=arguments.wait, label=task.backup.name)
    fresh = embedded.fresh_key(config, arguments)
    return local.create_here(config, task, fresh, store_override=arguments.store is not None)


def _new_view(instance: str, request: BackupRequest) -> BackupView:
    """Return the view of a backup for which no agent has sent a report yet."""
    now = utc_now()
    return BackupView(
        id=request.id,
        name=request.name,
        description=request.description,
        instance_id=instance,
        parent_id=request.parent_id,
        datastore=Datastore(type="mysql"),
        status=BackupStatus.NEW,
        created=now,
        updated=now,
    )
