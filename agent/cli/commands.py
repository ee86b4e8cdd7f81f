"""What each verb does with its arguments: `(config, arguments) -> exit status`."""

import argparse
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from pydantic import ValidationError

from agent import assembly
from agent.broker.client import ControlClient
from agent.cli import tables
from agent.cli.progress import ProgressBar, watch
from agent.config import Config
from agent.errors import BackupUnknown, Interrupted, TargetRefused, UsageWrong
from agent.model import (
    BackupRequest,
    BackupStatus,
    BackupView,
    CreateTask,
    Datastore,
    Report,
    RestoreTask,
    Task,
    TaskStatus,
    printable,
    utc_now,
)
from agent.operations.restore import RestoreOperation
from agent.pipeline.meter import Meter
from agent.pipeline.stop import Stop
from agent.service import Service

Asked = TypeVar("Asked", BackupRequest, RestoreTask)
Command = Callable[[Config, argparse.Namespace], int]

# The longest `progress_seconds` that an agent may have: while it lives and has work, some
# report of this task or of another comes in that time.
_SILENCE_SECONDS = 3600.0


def run(config: Config, _arguments: argparse.Namespace) -> int:
    """The daemon."""
    Service(config).run()
    return 0


def backup_list(config: Config, arguments: argparse.Namespace) -> int:
    rows = [tables.row(listed) for listed in assembly.catalogue(config).records()]
    rows.sort(key=lambda row: (row.get("updated") or "", row["id"]))
    print(tables.as_json(rows) if arguments.json else tables.list_table(rows))
    return 0


def backup_show(config: Config, arguments: argparse.Namespace) -> int:
    listed = assembly.catalogue(config).look(arguments.backup)
    if listed is None:
        raise BackupUnknown(f"there is no backup {arguments.backup}")
    row = tables.row(listed)
    if arguments.json:
        record = listed.record.model_dump(mode="json") if listed.record else {}
        print(tables.as_json({**record, **row}))
    else:
        print(tables.property_table({key: row[key] for key in row if key != "record_state"}))
    return 0


def backup_create(config: Config, arguments: argparse.Namespace) -> int:
    request = _asked(
        BackupRequest,
        id=str(uuid4()),
        name=arguments.name,
        description=arguments.description,
        parent_id=arguments.parent,
    )
    task = CreateTask(task_id=str(uuid4()), backup=request)
    now = utc_now()
    asked = BackupView(
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
    last = _send(config, arguments.instance, task, wait=arguments.wait, label=request.name)
    backup = last.backup if last and last.backup else asked
    if last and last.status is TaskStatus.FAILED and not last.backup:
        backup = asked.model_copy(update={"status": BackupStatus.FAILED})
    shown = tables.view(backup)
    print(tables.as_json(shown) if arguments.json else tables.property_table(shown))
    return _status(last)


def restore(config: Config, arguments: argparse.Namespace) -> int:
    target = arguments.target
    if arguments.local:
        return _restore_here(config, arguments.backup, target.absolute(), arguments.json)
    if not target.is_absolute():
        raise TargetRefused(f"the target {target} is not an absolute path on the agent's machine")
    instance = arguments.instance or config.agent.instance_id
    task = _asked(RestoreTask, task_id=str(uuid4()), backup_id=arguments.backup, target=str(target))
    last = _send(config, instance, task, wait=arguments.wait, label="restore")
    if arguments.json:
        print(tables.as_json(last.model_dump(mode="json") if last else {"task_id": task.task_id}))
    else:
        print(f"task {task.task_id}: {last.status if last else 'sent'}")
    return _status(last)


def _restore_here(config: Config, backup_id: str, target: Path, as_json: bool) -> int:
    meter, stop = Meter(), Stop()
    parts = assembly.restore_parts(config)

    def end() -> None:
        stop.request(Interrupted("the restore was interrupted", hint="run it again"))
        parts.store.abort()

    for number in (signal.SIGINT, signal.SIGTERM):
        # on a thread of its own: the one that the signal interrupts may hold the stop's lock
        signal.signal(number, lambda *_: threading.Thread(target=end, daemon=True).start())
    try:
        with ProgressBar("restore") as bar:
            with watch(meter, bar):
                chain = RestoreOperation(parts, meter=meter, stop=stop).run(backup_id, target)
            bar.finish(meter.raw_bytes)
    finally:
        parts.store.close()
    if as_json:
        restored = [record.id for record in chain]
        print(tables.as_json({"target": str(target), "chain": restored, **_speed(meter)}))
    else:
        names = printable(" + ".join(record.name for record in chain))
        print(f"restored {names} into {printable(str(target))}")
        print(
            f"{meter.raw_bytes} bytes in {meter.seconds:.1f} s; start a server on it as its owner"
        )
    return 0


def _asked(kind: type[Asked], **values: Any) -> Asked:
    """A request with what was typed; UsageWrong where it can't be asked for."""
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        says = first["msg"]
        if first["type"] == "string_pattern_mismatch":
            says = "it is empty or holds a control character"
        raise UsageWrong(
            f"the {first['loc'][0]} can't be used: {says}",
            hint="names have 1 to 255 characters, descriptions at most 1024, all on one line",
        ) from None


def _speed(meter: Meter) -> dict[str, float]:
    return {"raw_bytes": meter.raw_bytes, "seconds": round(meter.seconds, 3)}


def _send(config: Config, instance_id: str, task: Task, *, wait: bool, label: str) -> Report | None:
    """Send a task; with `wait` follow it to its final report, and return that."""
    with ControlClient(assembly.broker(config)) as client:
        if wait:
            client.subscribe(instance_id)
        if not client.send_task(instance_id, task):
            print(
                f"backup-agent: note: no agent takes tasks for {instance_id} at the moment; "
                "the task waits in its queue",
                file=sys.stderr,
            )
        return _follow(client, task, label) if wait else None


def _follow(client: ControlClient, task: Task, label: str) -> Report | None:
    last: Report | None = None
    try:
        with ProgressBar(printable(label)) as bar:
            for report in client.reports(task.task_id, idle_seconds=_SILENCE_SECONDS):
                last = report
                if report.progress:
                    bar.show(report.progress)
                elif report.status is TaskStatus.DONE and report.sizes:
                    bar.finish(report.sizes["raw_bytes"])
    except KeyboardInterrupt:
        raise Interrupted(
            f"no longer waiting for the task {task.task_id}; the agent goes on with it",
            hint="see what becomes of it with: backup-agent backup-list",
        ) from None
    return last


def _status(last: Report | None) -> int:
    """Say a final report's error; the exit status it stands for."""
    if last is None or last.status is TaskStatus.DONE:
        return 0
    if last.error is not None:
        tables.complain(last.error.code, last.error.message, last.error.hint)
    return 1
