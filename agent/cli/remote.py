"""A verb's work done by an agent: its task goes through the broker, its reports come back."""

import sys

from agent import wiring
from agent.broker.client import ControlClient
from agent.cli import tables
from agent.cli.progress import ProgressBar
from agent.config.settings import Config
from agent.errors import BrokerUnreachable, Cancelled, Interrupted
from agent.model import CancelTask, ErrorInfo, Report, Task, TaskStatus, printable

# The longest `progress_seconds` that an agent may have: while it lives and has work, some
# report of this task or of another comes in that time.
_SILENCE_SECONDS = 3600.0


def send(config: Config, instance_id: str, task: Task, *, wait: bool, label: str) -> Report | None:
    """Send a task; with `wait` follow it to its final report, and return that."""
    try:
        return _send(config, instance_id, task, wait=wait, label=label)
    except BrokerUnreachable as error:
        if isinstance(task, CancelTask):
            raise
        hint = f"{error.hint}; without the broker it can be done on the machine itself with --local"
        raise type(error)(str(error), hint=hint) from error


def _send(config: Config, instance_id: str, task: Task, *, wait: bool, label: str) -> Report | None:
    with ControlClient(wiring.control(config)) as client:
        if wait:
            client.subscribe(instance_id)
        if not client.send_task(instance_id, task):
            print(
                f"backup-agent: note: no agent takes tasks for {instance_id} at the moment; "
                "the task waits in its queue",
                file=sys.stderr,
            )
        return _follow(client, instance_id, task, label) if wait else None


def _follow(client: ControlClient, instance_id: str, task: Task, label: str) -> Report | None:
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
            hint=_what_next(instance_id, task),
        ) from None
    return last


def _what_next(instance_id: str, task: Task) -> str:
    if isinstance(task, CancelTask):
        return f"ask again: backup-agent cancel --wait --instance {instance_id} {task.cancels}"
    return (
        "see what becomes of it with: backup-agent backup-list; end it with: "
        f"backup-agent cancel --instance {instance_id} {task.task_id}"
    )


def error(last: Report | None) -> dict[str, str] | None:
    """Return why a task is not DONE, for JSON; None if it is, or has not ended."""
    said = _error(last)
    return said.model_dump() if said else None


def status(last: Report | None) -> int:
    """Say a final report's error; return the exit status it stands for."""
    said = _error(last)
    if said is None:
        return 0
    tables.complain(said.code, said.message, said.hint)
    return 1


def _error(last: Report | None) -> ErrorInfo | None:
    if last is None or last.status is TaskStatus.DONE:
        return None
    return last.error or ErrorInfo.of(Cancelled(f"the task {last.task_id} was cancelled"))
