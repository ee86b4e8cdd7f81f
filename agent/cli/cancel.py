"""The verb `cancel`, which ends a waiting or running task of an agent."""

import argparse
from uuid import uuid4

from agent.cli import remote, tables
from agent.cli.verb import Verbs, add_json, add_verb, build_request, uuid_argument
from agent.config.settings import Config
from agent.model import CancelTask

_MORE = """\
A task that `backup-create` sent has the same id as its backup. A cancelled backup leaves no data
in the store, and a cancelled restore leaves no files in the target. A cancel comes too late when
the backup is whole and its record is about to say so, or when a delete has begun. With --wait the
exit status is 0 if the task is cancelled, and 1 if the cancel came too late.
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
    verb.add_argument(
        "--instance", type=uuid_argument, help="the task's instance (default: this one)"
    )
    verb.add_argument("--wait", action="store_true", help="wait until the task has ended")
    add_json(verb)


def cancel(config: Config, arguments: argparse.Namespace) -> int:
    instance = arguments.instance or config.agent.instance_id
    task = build_request(CancelTask, task_id=str(uuid4()), cancels=arguments.task)
    last = remote.send(
        config,
        instance,
        task,
        wait=arguments.wait,
        label="cancel",
        runs_locally=False,
        what_next=_what_next(instance, task),
    )
    status = remote.status(last)
    if arguments.json:
        print(tables.as_json(last.model_dump(mode="json") if last else {"task_id": task.task_id}))
    elif not status:
        if last:
            print(f"task {task.cancels} is cancelled")
        else:
            print(f"sent the cancel of task {task.cancels}; --wait shows whether it is cancelled")
    return status


def _what_next(instance_id: str, task: CancelTask) -> str:
    return (
        f"to cancel again, run: backup-agent cancel --wait --instance {instance_id} {task.cancels}"
    )
