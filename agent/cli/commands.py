"""What each verb does with its arguments: `(config, arguments) -> exit status`."""

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from agent import assembly
from agent.broker.client import ControlClient
from agent.cli import tables
from agent.cli.progress import ProgressBar, watch
from agent.config import Config
from agent.errors import BackupUnknown, Interrupted, TargetRefused
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
    utc_now,
)
from agent.operations.restore import RestoreOperation
from agent.pipeline.meter import Meter
from agent.pipeline.stop import Stop
from agent.service import Service

Command = Callable[[Config, argparse.Namespace], int]

# An agent reports at least this often while a task runs; behind other tasks it may wait
# longer, so silence is only an error after this many seconds.
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
    request = BackupRequest(
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
    task = RestoreTask(task_id=str(uuid4()), backup_id=arguments.backup, target=str(target))
    last = _send(config, instance, task, wait=arguments.wait, label="restore")
    if arguments.json:
        print(tables.as_json(last.model_dump(mode="json") if last else {"task_id": task.task_id}))
    else:
        print(f"task {task.task_id}: {last.status if last else 'sent'}")
    return _status(last)


def _restore_here(config: Config, backup_id: str, target: Path, as_json: bool) -> int:
    meter, stop = Meter(), Stop()
    parts = assembly.restore_parts(config)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.request(Interrupted("the restore was interrupted")))
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
        print(f"restored {' + '.join(record.name for record in chain)} into {target}")
        print(
            f"{meter.raw_bytes} bytes in {meter.seconds:.1f} s; start a server on it as its owner"
        )
    return 0


def _speed(meter: Meter) -> dict[str, float]:
    return {"raw_bytes": meter.raw_bytes, "seconds": round(meter.seconds, 3)}


def _send(config: Config, instance_id: str, task: Task, *, wait: bool, label: str) -> Report | None:
    """Send a task; with `wait` follow it to its final report, and return that."""
    with ControlClient(assembly.broker(config)) as client:
        if not wait:
            client.send_task(instance_id, task)
            return None
        client.subscribe(instance_id)
        client.send_task(instance_id, task)
        last: Report | None = None
        with ProgressBar(label) as bar:
            for report in client.reports(task.task_id, idle_seconds=_SILENCE_SECONDS):
                last = report
                if report.progress:
                    bar.show(report.progress)
                elif report.status is TaskStatus.DONE and report.sizes:
                    bar.finish(report.sizes["raw_bytes"])
        return last


def _status(last: Report | None) -> int:
    """Say a final report's error; the exit status it stands for."""
    if last is None or last.status is TaskStatus.DONE:
        return 0
    if last.error is not None:
        error = last.error
        print(
            f"backup-agent: {error.code}: {error.message}\n  what to do: {error.hint}",
            file=sys.stderr,
        )
    return 1
