"""One or more examples of each message, encoded by the agent's own code."""

from typing import Final

from agent.broker import wire
from agent.model import (
    BackupRequest,
    BackupStatus,
    BackupView,
    CancelTask,
    CreateTask,
    Datastore,
    DeleteTask,
    ErrorInfo,
    Limits,
    PingTask,
    Progress,
    Report,
    RestoreTask,
    Task,
    TaskStatus,
    TaskStore,
    VerifyTask,
)

SUMMARIES: Final = {
    "backup.create": "Make a full backup, or an incremental one that continues parent_id.",
    "backup.restore": "Restore a backup with its chain into an empty directory of the agent's VM.",
    "backup.verify": "Reserved: this agent refuses it (task_unsupported).",
    "backup.delete": "Delete a backup and all its descendants.",
    "task.cancel": "End a task that waits or runs.",
    "agent.ping": "Request a heartbeat. The agent answers at once with a report DONE.",
    "report": "A report about a task: ACCEPTED, RUNNING any number of times, then a final report.",
    "dead": "A message that is not a valid task.",
}
_INSTANCE: Final = "a17461ab-6c97-4abf-8890-9f8b10886ecc"
_FULL: Final = "8f714e0f-4cfe-45a3-9205-8c933a9a8d4b"
_CHILD: Final = "1c8c6038-e2a8-4e48-983b-ac104e93b304"
_TASK: Final = "6f6cf0a8-33a1-4f0e-9b8e-0c1f6d1a2b3c"
_URL: Final = "https://swift.example.com/v1/AUTH_backups/database_backups_0cbb58a3"

_TASKS: Final[dict[str, list[Task]]] = {
    "backup.create": [
        CreateTask(task_id=_TASK, backup=BackupRequest(id=_FULL, name="base")),
        CreateTask(
            task_id=_TASK,
            backup=BackupRequest(
                id=_CHILD,
                name="inc.001",
                description="inc backup inc.001",
                parent_id=_FULL,
                datastore=Datastore(type="mariadb", version="10.11"),
            ),
            on_broken_chain="full",
            limits=Limits(bytes_per_second=50 << 20, cores=1),
        ),
        CreateTask(
            task_id=_TASK,
            backup=BackupRequest(id=_FULL, name="base"),
            store=TaskStore(
                container="database_backups_0cbb58a3_archive",
                storage_url="https://swift.example.com/v1/AUTH_tenant",
            ),
        ),
    ],
    "backup.restore": [
        RestoreTask(task_id=_TASK, backup_id=_CHILD, target="/var/lib/backup-agent/restore/one")
    ],
    "backup.verify": [VerifyTask(task_id=_TASK, backup_id=_CHILD)],
    "backup.delete": [DeleteTask(task_id=_TASK, backup_id=_FULL)],
    "task.cancel": [CancelTask(task_id=_TASK, cancels="7d1f7f0e-5a3c-4e57-8a5e-6a2b9f0c4d11")],
    "agent.ping": [PingTask(task_id=_TASK)],
}


def _view(status: BackupStatus) -> BackupView:
    done = status is BackupStatus.COMPLETED
    return BackupView(
        id=_FULL,
        name="base",
        instance_id=_INSTANCE,
        datastore=Datastore(type="mariadb", version="10.11"),
        status=status,
        size=0.42 if done else None,
        locationRef=f"{_URL}/{_FULL}.xbstream.gz.enc" if done else None,
        created="2026-12-28T02:23:49Z",
        updated="2026-12-28T02:24:13Z" if done else "2026-12-28T02:23:49Z",
    )


def _report(status: TaskStatus, seq: int, **more: object) -> Report:
    return Report.model_validate(
        {
            "task_id": _TASK,
            "type": "backup.create",
            "status": status,
            "agent_run_id": "51b0f3a4-0f0c-4a7b-9d3e-2f6a1c5b7e90",
            "seq": 1_798_424_629_000 + seq,
            "at": "2026-12-28T02:23:49Z",
            "instance_id": _INSTANCE,
        }
        | more
    )


_SIZES: Final = {"raw_bytes": 410_243_072, "compressed_bytes": 158_113_402}
_REPORTS: Final = [
    _report(TaskStatus.ACCEPTED, 0),
    _report(
        TaskStatus.RUNNING,
        1,
        backup=_view(BackupStatus.BUILDING),
        progress=Progress(
            raw_bytes=209_715_200,
            stored_bytes=80_740_352,
            bytes_per_second=52_428_800.0,
            percent=51.1,
            seconds_left=3.8,
        ),
    ),
    _report(
        TaskStatus.DONE,
        2,
        backup=_view(BackupStatus.COMPLETED),
        sizes=_SIZES | {"stored_bytes": 158_115_858},
    ),
    _report(
        TaskStatus.FAILED,
        3,
        error=ErrorInfo(
            code="parent_unknown",
            message=f"there is no backup {_CHILD}",
            hint="name an existing COMPLETED backup as parent, or make a full backup",
        ),
    ),
]


def encoded(name: str) -> dict[str, bytes]:
    """Return the examples of a message by their labels, as they are on the wire."""
    if name == "report":
        return {str(report.status): wire.encode_report(report) for report in _REPORTS}
    labels = ("full", "incremental", "elsewhere") if name == "backup.create" else (name,)
    tasks = zip(labels, _TASKS[name], strict=True)
    return {label: _with_token(wire.encode_task(task)) for label, task in tasks}


def _with_token(body: bytes) -> bytes:
    """Add the token that belongs to a storage URL. Only the control plane writes it."""
    url = b'"storage_url":'
    return body.replace(url, b'"token":"TOKEN",' + url)
