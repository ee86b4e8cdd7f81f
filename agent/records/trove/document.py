"""The content of the appendix of an object in Trove's layout (docs/format.md).

Line 1 is the document as JSON, with the backup's record in it. Line 2 has the MAC of line 1, like a
record of the agent's own layout, or is `{}` if the machine had no keys. The rest are the segment
lists, one after the other.
"""

from collections.abc import Sequence
from io import BytesIO
from itertools import islice
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError

from agent.errors import DataDamaged, KeyNotHere, PlaintextRefused, RecordDamaged, RecordUnsupported
from agent.keys.keyring import Keyring, RecordState, signer
from agent.model import Frozen, Record
from agent.records.reading import RECORD_LIMIT

CHECKSUM_HINT: Final = (
    "give the checksum that Trove notes of the backup, because this machine has keys, and nothing "
    "else shows that the bytes are those that were stored"
)
_UNSIGNED: Final = b"{}"


class Document(Frozen):
    """The record of a backup, and what only Trove's layout knows of it.

    `parent_location` and `parent_checksum` name the parent's object, as Trove named it.
    Sub-manifests join `group` segments each, unless there are fewer.
    """

    layout: Literal[1] = 1
    group: Annotated[int, Field(ge=1)]
    parent_location: str | None = None
    parent_checksum: str | None = None
    record: Record


def encode_document(document: Document, lists: Sequence[bytes], keyring: Keyring | None) -> bytes:
    """Return the content of the appendix, signed if there is a keyring."""
    line = document.model_dump_json().encode()
    head = b"%s\n%s\n" % (line, _UNSIGNED) if keyring is None else keyring.sign(line)
    return b"".join((head, *lists))


def decode_document(
    backup_id: str, content: bytes, keyring: Keyring | None, *, vouched: bool
) -> tuple[Document, list[bytes]]:
    """Return the document and the encoded segment lists in the content of an appendix.

    `vouched` is True if the caller knows the checksum of the whole object from Trove. A document
    without a good MAC is accepted only then, and only for a backup that isn't encrypted.

    Raises:
        RecordDamaged, RecordUnsupported, KeyNotHere, PlaintextRefused: the document can't be used.
        DataDamaged: there are more or fewer lists than the record names.
    """
    line, _, rest = content.partition(b"\n")
    seal, _, encoded = rest.partition(b"\n")
    document = _parsed(backup_id, line)
    _check_signed(document, b"%s\n%s\n" % (line, seal), keyring, vouched=vouched)
    return document, _lists(document.record, encoded)


def _parsed(backup_id: str, line: bytes) -> Document:
    if len(line) > RECORD_LIMIT:
        raise RecordDamaged(f"the record of backup {backup_id} has {len(line)} bytes")
    try:
        document = Document.model_validate_json(line)
    except ValidationError as error:
        if b'"layout":1,' not in line[:16]:
            raise RecordUnsupported(f"the record of backup {backup_id} has another form") from error
        raise RecordDamaged(
            f"the record of backup {backup_id} has missing or invalid fields"
        ) from error
    if document.record.id != backup_id:
        raise RecordDamaged(f"the object of backup {backup_id} has the record of another backup")
    return document


def _check_signed(
    document: Document, signed: bytes, keyring: Keyring | None, *, vouched: bool
) -> None:
    what = f"the record of backup {document.record.id}"
    name = signer(signed)
    if name is not None and keyring is not None:
        state, _ = keyring.check(signed)
        if state is RecordState.OK:
            return
        if state is RecordState.BAD:
            raise RecordDamaged(f"{what} fails its MAC with the key {name!r} on this machine")
    if document.record.sealed and name is None:
        raise RecordDamaged(f"{what} says that the backup is encrypted, but it is not signed")
    if document.record.sealed:
        raise KeyNotHere(
            f"{what} can't be checked: it is signed by the master key {name!r}, which is not here",
            hint="put that key as <id>.key, mode 0600, into /etc/backup-agent/keys of the image",
        )
    if not vouched and keyring is not None:
        raise PlaintextRefused(
            f"{what} is not signed, and no checksum was given for its object", hint=CHECKSUM_HINT
        )


def _lists(record: Record, encoded: bytes) -> list[bytes]:
    if record.stored is None:
        raise RecordDamaged(f"the record of backup {record.id} names no stored bytes")
    lines = BytesIO(encoded)
    lists = [b"".join(islice(lines, ref.count)) for ref in record.stored.lists]
    if lines.read(1) or not all(lists):
        raise DataDamaged(
            f"the object of backup {record.id} does not have as many segments as its record names"
        )
    return lists
