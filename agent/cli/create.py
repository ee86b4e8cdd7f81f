"""`backup-create`: ask an agent for a backup, or make it in this process."""

import argparse
from uuid import uuid4

from agent.cli import embedded, local, remote, tables
from agent.cli.verb import Verbs, add_json, add_store, add_verb, asked, uuid_argument
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
    create.add_argument("instance", help="the instance's id; with --local it may be left out")
    name = create.add_argument("name", help="a name for the backup, 1 to 255 characters")
    # `instance` is the name where it stands alone: argparse itself would take the first of two
    # words for it, or none, as soon as an option stands between them
    name.required = False
    create.set_defaults(refuse=create.error)
    create.add_argument("--description", metavar="TEXT", default="", help="kept with the backup")
    create.add_argument(
        "--parent", metavar="BACKUP", type=uuid_argument, help="make an incremental on this backup"
    )
    create.add_argument("--wait", action="store_true", help="follow it to its end")
    create.add_argument(
        "--local", action="store_true", help="make it here and wait for its end, without a broker"
    )
    add_store(create)
    add_json(create)


def backup_create(config: Config, arguments: argparse.Namespace) -> int:
    instance, name = _words(config, arguments)
    request = asked(
        BackupRequest,
        id=str(uuid4()),
        name=name,
        description=arguments.description,
        parent_id=arguments.parent,
    )
    # so that whoever knows the backup can cancel the task
    task = CreateTask(task_id=request.id, backup=request)
    view = _asked_for(instance, request)
    last = _last_report(config, arguments, instance, task)
    backup = view if last is None else last.backup
    error = remote.error(last)
    if backup is None:
        # it was refused: no backup has that id
        if arguments.json:
            print(tables.as_json({"task_id": task.task_id, "error": error}))
    elif arguments.json:
        print(tables.as_json(tables.view(backup) | ({"error": error} if error else {})))
    else:
        print(tables.property_table(tables.view(backup)))
    return remote.status(last)


def _words(config: Config, arguments: argparse.Namespace) -> tuple[str, str]:
    """Instance and name: two words, or the name alone for the instance of this machine."""
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
            hint="leave the instance away, or --local, so that the other one's agent does it",
        )
    return instance, arguments.name


def _last_report(
    config: Config, arguments: argparse.Namespace, instance: str, task: CreateTask
) -> Report | None:
    if not arguments.local:
        return remote.send(config, instance, task, wait=arguments.wait, label=task.backup.name)
    fresh = embedded.fresh_key(config, arguments)
    return local.create_here(config, task, fresh, store_override=arguments.store is not None)


def _asked_for(instance: str, request: BackupRequest) -> BackupView:
    """The backup before any agent has said anything about it."""
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
