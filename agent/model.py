"""The words of the domain as frozen models: tasks, reports, records.

Sizes are bytes unless a name says otherwise; LSNs are InnoDB log sequence
numbers; times are RFC 3339 strings in UTC with `Z`.
"""

from enum import StrEnum
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter

from agent.errors import AgentError, Internal
from agent.values import (
    BOTH_OR_NEITHER,
    WHOLE,
    Description as Description,
    Frozen as Frozen,
    Id as Id,
    Name as Name,
    Token,
    Version,
    canonical_uuid as canonical_uuid,
    is_uuid as is_uuid,
    printable as printable,
    type_required,
    utc as utc,
    utc_now as utc_now,
)

FORMAT_VERSION: Final = 1
MESSAGE_VERSION: Final = 1


class BackupStatus(StrEnum):
    NEW = "NEW"
    BUILDING = "BUILDING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    DELETING = "DELETING"


class TaskStatus(StrEnum):
    ACCEPTED = "ACCEPTED"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def final(self) -> bool:
        """Whether a task in this status has ended."""
        return self in (TaskStatus.DONE, TaskStatus.FAILED, TaskStatus.CANCELLED)


class Datastore(Frozen):
    type: Annotated[str, Field(max_length=64)]
    version: Annotated[str, Field(max_length=64)] | None = None
    version_id: Annotated[str, Field(max_length=64)] | None = None


def _encodable(text: str) -> str:
    """Escape what UTF-8 has no bytes for: half characters, by which Python writes odd file names.

    The JSON of a report could not be made otherwise.
    """
    return text.encode("utf-8", "backslashreplace").decode()


_Text = Annotated[str, AfterValidator(_encodable)]


class ErrorInfo(Frozen):
    """An error as reports and records carry it."""

    code: str
    message: _Text
    hint: _Text

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """Say an error; one that isn't ours is a defect, and its text may hold anything."""
        if not isinstance(error, AgentError):
            error = Internal(f"{type(error).__name__} inside the agent")
        return cls(code=error.code, message=str(error)[:4096], hint=error.hint)


# --- tasks: what the control plane sends -------------------------------------------------


class Limits(Frozen):
    """What one backup may use; None means the agent's configured default."""

    bytes_per_second: Annotated[int, Field(ge=1 << 20), WHOLE] | None = None
    cores: Annotated[int, Field(ge=1, le=1024), WHOLE] | None = None


class BackupRequest(Frozen):
    """The backup that a create task asks for."""

    id: Id
    name: Name
    description: Description = ""
    parent_id: Id | None = None
    datastore: Datastore | None = None


class TaskStore(Frozen):
    """Where a task's backups are, if not where the configuration says.

    A container of the tenant; a storage URL that the configuration lists, with a token for it.
    The token is kept in memory only: what the journal holds has none.
    """

    model_config = ConfigDict(json_schema_extra=BOTH_OR_NEITHER)

    container: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,200}$")] | None = None
    storage_url: Annotated[str, Field(max_length=2048, pattern=r"^https?://[!-?A-~]+$")] | None = (
        None
    )
    token: Token | None = None


class TaskBase(Frozen):
    version: Version = MESSAGE_VERSION
    task_id: Id

    model_config = ConfigDict(json_schema_extra=type_required)


class StoreTask(TaskBase):
    """A task about backups."""

    store: TaskStore | None = None


class CreateTask(StoreTask):
    """`retry` has it begun again where the agent's end cut it off."""

    type: Literal["backup.create"] = "backup.create"
    backup: BackupRequest
    on_broken_chain: Literal["fail", "full"] = "fail"
    limits: Limits = Limits()
    retry: bool = False


class RestoreTask(StoreTask):
    type: Literal["backup.restore"] = "backup.restore"
    backup_id: Id
    target: Annotated[str, Field(max_length=4096, pattern=r"^[^\x00-\x1f\x7f]+$")]
    retry: bool = False


class VerifyTask(StoreTask):
    type: Literal["backup.verify"] = "backup.verify"
    backup_id: Id
    level: Literal["stored", "stream", "restore"] = "stream"
    chain: bool = True


class DeleteTask(StoreTask):
    type: Literal["backup.delete"] = "backup.delete"
    backup_id: Id


class CancelTask(TaskBase):
    type: Literal["task.cancel"] = "task.cancel"
    cancels: Id


class PingTask(TaskBase):
    type: Literal["agent.ping"] = "agent.ping"


Task = Annotated[
    CreateTask | RestoreTask | VerifyTask | DeleteTask | CancelTask | PingTask,
    Field(discriminator="type"),
]
TASK: TypeAdapter[Task] = TypeAdapter(Task)


# --- records: what the store keeps -------------------------------------------------------


class Lineage(Frozen):
    """One unbroken history of one datadir.

    `inode` and `birth` (seconds since 1970, 0 where the filesystem keeps none) are those
    of `ibdata1`; `generation` changes when the agent sees the LSN go back.
    """

    server_uuid: str | None = None
    inode: int
    birth: int
    generation: str = ""


class BinlogPosition(Frozen):
    file: str
    position: int
    gtid: str = ""


class WrappedKey(Frozen):
    """A data key that the key `id` opens: `wrapped` is base64 of what `alg` made of it.

    The names of RFC 7518: `A256KW` is AES key wrap by a master key, `RSA-OAEP-256` is for a
    recovery key, whose public half alone is on the database's machine.
    """

    id: str
    alg: Literal["A256KW", "RSA-OAEP-256"] = "A256KW"
    wrapped: str


class ListRef(Frozen):
    """One segment list object: `count` segments, SHA-256 (hex) of its bytes."""

    count: Annotated[int, Field(ge=1)]
    sha256: str


class Stored(Frozen):
    """Where the bytes of a COMPLETED backup are and what they add up to.

    `longest_path` has as many bytes as the longest path that a prepare opens; None if the agent
    that made it didn't note that.
    """

    raw_bytes: int
    compressed_bytes: int
    stored_bytes: int
    segment_size: int
    segment_count: int
    lists: tuple[ListRef, ...]
    slo_etag: str
    longest_path: int | None = None


class Measured(Frozen):
    """How long the attempt took, and the stage that the others waited for."""

    seconds: float
    bottleneck: str


class BackupView(Frozen):
    """What the control plane and the operators see of a backup."""

    id: Id
    name: str
    description: str = ""
    instance_id: Id
    parent_id: Id | None = None
    datastore: Datastore
    status: BackupStatus
    size: Annotated[float, Field(allow_inf_nan=False)] | None = None
    locationRef: str | None = None  # noqa: N815 - the field's name on the wire
    created: str
    updated: str


class Record(BackupView):
    """The JSON document about one backup beside its bytes: the only truth about it."""

    format: Literal[1] = FORMAT_VERSION
    attempt: Id
    lineage: Lineage
    from_lsn: int
    to_lsn: int | None = None
    last_table_id: int | None = None
    absent_table_ids: tuple[int, ...] = ()
    listed_at: Annotated[float, Field(allow_inf_nan=False)] | None = None
    server_version: str
    engine: str
    engine_version: str
    binlog: BinlogPosition | None = None
    replica: str | None = None
    galera: str | None = None
    cipher: Literal["AES256_GCM_HKDF_1MB", "none"] = "AES256_GCM_HKDF_1MB"
    keys: tuple[WrappedKey, ...]
    stored: Stored | None = None
    measured: Measured | None = None
    error: ErrorInfo | None = None

    @property
    def sealed(self) -> bool:
        """Whether the stored bytes are encrypted."""
        return self.cipher != "none"

    def sizes(self) -> dict[str, int] | None:
        """The bytes of a COMPLETED backup, as reports carry them."""
        if self.stored is None:
            return None
        names = ("raw_bytes", "compressed_bytes", "stored_bytes")
        return {name: getattr(self.stored, name) for name in names}

    def view(self) -> BackupView:
        """The part of the record that reports and tables show."""
        return BackupView(**{name: getattr(self, name) for name in BackupView.model_fields})


# --- reports: what the agent says about a task -------------------------------------------


class Progress(Frozen):
    """How far a running task is; `percent` and `seconds_left` are estimates."""

    raw_bytes: int
    stored_bytes: int
    bytes_per_second: float
    percent: float | None = None
    seconds_left: float | None = None


class ReportDraft(Frozen):
    """What a report says; the journal adds who says it, when, and its number.

    `deleted` are the backups that a delete which is DONE has removed, children before parents:
    they have no record any more. The first 10,000 of them.
    """

    task_id: Id
    type: str
    status: TaskStatus
    backup: BackupView | None = None
    sizes: dict[str, int] | None = None
    progress: Progress | None = None
    error: ErrorInfo | None = None
    deleted: tuple[Id, ...] | None = None


class Report(ReportDraft):
    """One message about a task; `seq` grows with each of an agent's."""

    version: Literal[1] = MESSAGE_VERSION
    agent_run_id: Id
    seq: int
    at: str
    instance_id: Id
