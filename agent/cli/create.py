"""`backup-create`: ask an agent for a backup."""

import argparse
from uuid import uuid4

from agent.cli import remote, tables
from agent.cli.verb import Verbs, add_json, add_verb, asked, uuid_argument
from agent.config import Config
from agent.model import (
    BackupRequest,
    BackupStatus,
    BackupView,
    CreateTask,
    Datastore,
    TaskStatus,
    utc_now,
)


def add(verbs: Verbs) -> None:
    create = add_verb(verbs, "backup-create", backup_create, "ask an agent for a backup")
    create.add_argument("instance", type=uuid_argument)
    create.add_argument("name")
    create.add_argument("--description", default="")
    create.add_argument("--parent", type=uuid_argument, help="make an incremental on this backup")
    create.add_argument("--wait", action="store_true", help="follow it to its end")
    add_json(create)


def backup_create(config: Config, arguments: argparse.Namespace) -> int:
    request = asked(
        BackupRequest,
        id=str(uuid4()),
        name=arguments.name,
        description=arguments.description,
        parent_id=arguments.parent,
    )
    task = CreateTask(task_id=str(uuid4()), backup=request)
    now = utc_now()
    view = BackupView(
        id=request.id,
        name=request.name,
        description=request.description,
        instance_id=arguments.instance,
        parent_id=request.parent_id,
        datastore=Datastore(type="mysql"),
        status=BackupStatus.NEW,
        created=now,
        updated=now,
    )
    last = remote.send(config, arguments.instance, task, wait=arguments.wait, label=request.name)
    backup = last.backup if last and last.backup else view
    if last and last.status is TaskStatus.FAILED and not last.backup:
        backup = view.model_copy(update={"status": BackupStatus.FAILED})
    shown = tables.view(backup)
    print(tables.as_json(shown) if arguments.json else tables.property_table(shown))
    return remote.status(last)
