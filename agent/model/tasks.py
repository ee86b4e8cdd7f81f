"""Models of the tasks that the control plane sends."""

from enum import StrEnum
from typing import Annotated, Final, Literal, get_args

from pydantic import ConfigDict, Field, TypeAdapter

from agent.model.records import Datastore
from agent.model.values import (
    MESSAGE_VERSION,
    TOKEN_WITH_ITS_PLACE,
    WHOLE,
    Description,
    Frozen,
    Id,
    Name,
    ProjectId,
    Token,
    Version,
    type_required,
)


class TaskStatus(StrEnum):
    ACCEPTED = "ACCEPTED"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def final(self) -> bool:
        """Return True if a task in this status has ended."""
        return self in (TaskStatus.DONE, TaskStatus.FAILED, TaskStatus.CANCELLED)


class Limits(Frozen):
    """The limits of one backup, each None for the agent's configured default."""

    bytes_per_second: Annotated[int, Field(ge=1 << 20), WHOLE] | None = None
    cores: Annotated[int, Field(ge=1, le=1024), WHOLE] | None = None


class BackupRequest(Frozen):
    """The backup that a create task requests."""

    id: Id
    name: Name
    description: Description = ""
    parent_id: Id | None = None
    datastore: Datastore | None = None


class TaskStore(Frozen):
    """The store of a task's backups, if it is not the configured one.

    `container` is a container of the tenant. `token` is a token for `storage_url`, a URL that the
    configuration lists, or a token of Keystone for `project_id`, a project that the agent may use.
    The agent keeps the token in memory only, and the journal keeps the task without it.
    """

    model_config = ConfigDict(json_schema_extra=TOKEN_WITH_ITS_PLACE)

    container: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,200}$")] | None = None
    storage_url: Annotated[str, Field(max_length=2048, pattern=r"^https?://[!-?A-~]+$")] | None = (
        None
    )
    token: Token | None = None
    project_id: ProjectId | None = None

    @property
    def account(self) -> str | None:
        """Return a text that differs for each account that a task may name, None without one."""
        return f"project {self.project_id}" if self.project_id else self.storage_url


class TaskBase(Frozen):
    """The base class of all tasks."""

    version: Version = MESSAGE_VERSION
    task_id: Id

    model_config = ConfigDict(json_schema_extra=type_required)

    @property
    def subject(self) -> str | None:
        """Return the id of the backup that the task is about, or None if it is about none."""
        return None

    @property
    def parent_id(self) -> str | None:
        """Return the id of the parent of the backup that the task makes, or None without one."""
        return None

    @property
    def cancelled_id(self) -> str | None:
        """Return the id of the task that the task cancels, or None if it cancels none."""
        return None

    @property
    def named_store(self) -> TaskStore | None:
        """Return the store that the task names, or None for the configured one."""
        return None


class StoreTask(TaskBase):
    """The base class of the tasks about backups, which use a store."""

    store: TaskStore | None = None

    @property
    def named_store(self) -> TaskStore | None:
        return self.store


class CreateTask(StoreTask):
    """A task that makes a backup.

    With `retry`, the agent starts the task again if the agent's own end interrupted it.
    """

    type: Literal["backup.create"] = "backup.create"
    backup: BackupRequest
    on_broken_chain: Literal["fail", "full"] = "fail"
    limits: Limits = Limits()
    retry: bool = False

    @property
    def subject(self) -> str:
        return self.backup.id

    @property
    def parent_id(self) -> str | None:
        return self.backup.parent_id


class RestoreTask(StoreTask):
    """A task that restores a backup into the directory `target`.

    With `retry`, the agent starts the task again if the agent's own end interrupted it.
    """

    type: Literal["backup.restore"] = "backup.restore"
    backup_id: Id
    target: Annotated[str, Field(max_length=4096, pattern=r"^[^\x00-\x1f\x7f]+$")]
    retry: bool = False

    @property
    def subject(self) -> str:
        return self.backup_id


class VerifyTask(StoreTask):
    type: Literal["backup.verify"] = "backup.verify"
    backup_id: Id
    level: Literal["stored", "stream", "restore"] = "stream"
    chain: bool = True

    @property
    def subject(self) -> str:
        return self.backup_id


class DeleteTask(StoreTask):
    type: Literal["backup.delete"] = "backup.delete"
    backup_id: Id

    @property
    def subject(self) -> str:
        return self.backup_id


class CancelTask(TaskBase):
    type: Literal["task.cancel"] = "task.cancel"
    cancels: Id

    @property
    def cancelled_id(self) -> str:
        return self.cancels


class PingTask(TaskBase):
    type: Literal["agent.ping"] = "agent.ping"


Task = Annotated[
    CreateTask | RestoreTask | VerifyTask | DeleteTask | CancelTask | PingTask,
    Field(discriminator="type"),
]
TASK: TypeAdapter[Task] = TypeAdapter(Task)
# The types of tasks, such as "backup.create".
TASK_TYPES: Final[tuple[str, ...]] = tuple(
    model.model_fields["type"].default for model in get_args(get_args(Task)[0])
)
