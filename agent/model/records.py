"""Records: what the store keeps about each backup, and what reports and tables show of it.

Sizes are bytes unless a name says otherwise. LSNs are InnoDB log sequence numbers. Times are
RFC 3339 strings in UTC with `Z`.
"""

from enum import StrEnum
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field

from agent.errors import AgentError, Internal
from agent.model.values import Frozen, Id

FORMAT_VERSION: Final = 1


class BackupStatus(StrEnum):
    NEW = "NEW"
    BUILDING = "BUILDING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    DELETING = "DELETING"


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
    """Where the bytes of a COMPLETED backup are and what they add up to."""

    raw_bytes: int
    compressed_bytes: int
    stored_bytes: int
    segment_size: int
    segment_count: int
    lists: tuple[ListRef, ...]
    slo_etag: str


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
