"""`cancel`: have an agent end a task that waits or runs."""

import argparse
from uuid import uuid4

from agent.cli import remote, tables
from agent.cli.verb import Verbs, add_json, add_verb, asked, uuid_argument
from agent.config.settings import Config
from agent.model import CancelTask

_MORE = """\
A backup that `backup-create` asked for is the task of the same id. Nothing of what is cancelled
is left in the store, or in the target of a restore. It is too late once the backup is whole and
its record about to say so, and once a delete has begun. With --wait the exit status is 0 where
the task is cancelled, and 1 where it came too late.
"""


def add(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "cancel",
        cancel,
        "end a task that waits or runs",
        more=_MORE,
        examples=["--wait TASK"],
    )
    verb.add_argument("task", type=uuid_argument, help="the task's id")
    verb.add_argument("--instance", type=uuid_argument, help="whose task (this one's by default)")
    verb.add_argument("--wait", action="store_true", help="wait until it has ended")
    add_json(verb)


def cancel(config: Config, arguments: argparse.Namespace) -> int:
    instance = arguments.instance or config.agent.instance_id
    task = asked(CancelTask, task_id=str(uuid4()), cancels=arguments.task)
    last = remote.send(config, instance, task, wait=arguments.wait, label="cancel")
    status = remote.status(last)
    if arguments.json:
        print(tables.as_json(last.model_dump(mode="json") if last else {"task_id": task.task_id}))
    elif not status:
        done = "is cancelled" if last else "is to be cancelled; whether it was, --wait tells"
        print(f"task {task.cancels} {done}")
    return status
