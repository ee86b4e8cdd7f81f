"""The client side of the verbs that an agent carries out.

The task goes to the agent through the broker, and the agent's reports come back.
"""

from agent import wiring
from agent.broker.client import ControlClient
from agent.cli import tables
from agent.cli.progress import ProgressBar
from agent.cli.streams import note
from agent.config.settings import Config
from agent.errors import BrokerUnreachable, BrokerUntrusted, Cancelled, Interrupted
from agent.model import ErrorInfo, Report, Task, TaskStatus, printable
from agent.threads import about_task

# The longest `progress_seconds` that an agent may have. While an agent runs and has work, a report
# of this task or of another one comes within that time.
_SILENCE_SECONDS = 3600.0


def send(
    config: Config,
    instance_id: str,
    task: Task,
    *,
    wait: bool,
    label: str,
    runs_locally: bool = True,
    what_next: str = "",
) -> Report | None:
    """Send a task and, if `wait` is true, follow it and return its final report.

    Return None if `wait` is false. `runs_locally` means that the verb has the option --local.
    `what_next` is the hint for a user who stops waiting. "" is the hint for most verbs, which names
    the command that cancels the task.
    """
    what_next = what_next or _what_next(instance_id, task.task_id)
    try:
        with about_task(task.task_id, task.subject):
            return _send(config, instance_id, task, wait=wait, label=label, what_next=what_next)
    except (BrokerUnreachable, BrokerUntrusted) as error:
        if not runs_locally:
            raise
        hint = (
            f"{error.hint}; or run the command on the machine itself with --local, which needs no "
            "broker"
        )
        raise type(error)(str(error), hint=hint) from error


def _send(
    config: Config, instance_id: str, task: Task, *, wait: bool, label: str, what_next: str
) -> Report | None:
    with ControlClient(wiring.control(config)) as client:
        if wait:
            client.subscribe(instance_id)
        if not client.send_task(instance_id, task):
            note(
                f"backup-agent: note: no agent takes tasks for {instance_id} at the moment; "
                "the task waits in its queue"
            )
        return _follow(client, task.task_id, label, what_next) if wait else None


def _follow(client: ControlClient, task_id: str, label: str, what_next: str) -> Report | None:
    last: Report | None = None
    try:
        with ProgressBar(printable(label)) as bar:
            for report in client.reports(task_id, idle_seconds=_SILENCE_SECONDS):
                last = report
                if report.progress:
                    bar.show(report.progress)
                elif report.status is TaskStatus.DONE and report.sizes:
                    bar.finish(report.sizes["raw_bytes"])
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped waiting for the task {task_id}; the agent continues it",
            hint=what_next,
        ) from None
    return last


def _what_next(instance_id: str, task_id: str) -> str:
    return (
        "to see how it goes on, run: backup-agent backup-list; to end it, run: "
        f"backup-agent cancel --instance {instance_id} {task_id}"
    )


def error(last: Report | None) -> dict[str, str] | None:
    """Return the error of a task for JSON, or None if the task is DONE or has not ended."""
    found = _error(last)
    return found.model_dump() if found else None


def status(last: Report | None) -> int:
    """Print the error of a final report if there is one, and return the exit status.

    `last` is None if the command did not wait for the report. The exit status is 0 then.
    """
    found = _error(last)
    if found is None:
        return 0
    tables.complain(found.code, found.message, found.hint)
    return 1


def _error(last: Report | None) -> ErrorInfo | None:
    if last is None or last.status is TaskStatus.DONE:
        return None
    return last.error or ErrorInfo.of(Cancelled(f"the task {last.task_id} was cancelled"))
