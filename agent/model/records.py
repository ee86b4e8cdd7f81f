"""Models of the record of a backup, and of the part of it that reports and tables show.

Sizes are in bytes unless a name says otherwise. LSNs are InnoDB log sequence numbers. Times are
RFC 3339 strings in UTC with `Z`. docs/format.md describes each field.
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
    """Escape the lone surrogates in a text, which UTF-8 can't encode.

    Python represents the bytes of a file name that is not valid UTF-8 by lone surrogates. They
    would make the JSON of a report impossible.
    """
    return text.encode("utf-8", "backslashreplace").decode()


_Text = Annotated[str, AfterValidator(_encodable)]


class ErrorInfo(Frozen):
    """An error in the form that reports and records carry."""

    code: str
    message: _Text
    hint: _Text

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """Return the code, message and hint of an error, with the message cut to 4,096 characters.

        An error that is not an AgentError is a defect of the agent. Only the name of its class is
        kept, because its text may contain any data.
        """
        if not isinstance(error, AgentError):
            error = Internal(f"{type(error).__name__} inside the agent")
        return cls(code=error.code, message=str(error)[:4096], hint=error.hint)


class Lineage(Frozen):
    """The identity of one unbroken history of one datadir.

    `inode` and `birth` are the inode and the time of birth of `ibdata1`. The time is in seconds
    since 1970, or 0 if the filesystem keeps no time of birth. `generation` changes when the agent
    sees that the LSN went back.
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
    """A data key that is encrypted ("wrapped") for the key with the id `id`.

    `wrapped` is the base64 of the encrypted data key. `alg` is the algorithm, by its name in
    RFC 7518. `A256KW` is AES key wrap with a master key. `RSA-OAEP-256` is for a recovery key, of
    which the database's machine has only the public half.
    """

    id: str
    alg: Literal["A256KW", "RSA-OAEP-256"] = "A256KW"
    wrapped: str


class ListRef(Frozen):
    """A reference to one segment list object.

    `count` is its number of segments. `sha256` is the SHA-256 of its bytes, in hex.
    """

    count: Annotated[int, Field(ge=1)]
    sha256: str


class Stored(Frozen):
    """The sizes, the segments and the segment lists of a COMPLETED backup.

    `slo_etag` is the ETag of the object that joins the segments. In a store that joins nothing it
    is the ETag that Swift would give to that object. `longest_path` is the length in bytes of the
    longest path that a prepare opens. It is None in records of older agents.
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
    """The duration of the attempt in seconds, and the stage that the others waited for most."""

    seconds: float
    bottleneck: str


class BackupView(Frozen):
    """The part of a backup's record that the control plane and the operators see."""

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
    """The JSON document about one backup, which the store keeps beside the backup's bytes.

    It is the only authority on the state of the backup.
    """

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
        """Return True if the stored bytes are encrypted."""
        return self.cipher != "none"

    def sizes(self) -> dict[str, int] | None:
        """Return the sizes of a COMPLETED backup in bytes, in the form that reports carry.

        Return None for a backup that is not COMPLETED.
        """
        if self.stored is None:
            return None
        names = ("raw_bytes", "compressed_bytes", "stored_bytes")
        return {name: getattr(self.stored, name) for name in names}

    def view(self) -> BackupView:
        """Return the part of the record that reports and tables show."""
        return BackupView(**{name: getattr(self, name) for name in BackupView.model_fields})
