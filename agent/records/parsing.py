"""The JSON of a record as a model, and as much as can be read of a later agent's record."""

from typing import Final

from pydantic import BaseModel, ValidationError

from agent.errors import RecordDamaged, RecordUnsupported
from agent.keys.keyring import RecordState
from agent.model import FORMAT_VERSION, Record, printable
from agent.model.values import Id
from agent.records.reading import LaterRecord, ListedRecord

# Validation errors are listed only up to this number.
_LISTED_ERRORS: Final = 1000
# Errors of pydantic about fields and values that only a later agent can have written.
_NOVELTIES: Final = ("extra_forbidden", "literal_error", "enum")


class _Head(BaseModel):
    """The fields that records of every format have (docs/format.md)."""

    id: Id
    instance_id: Id
    parent_id: Id | None


def parse_record(backup_id: str, line: bytes) -> Record:
    """Return the record in line 1 of the object of a backup's record.

    Raises:
        RecordUnsupported: only a later agent can have written it.
        RecordDamaged: it is no record, or that of another backup.
    """
    try:
        record = Record.model_validate_json(line)
    except ValidationError as error:
        if novelty := _novelty(error):
            raise RecordUnsupported(f"the record of backup {backup_id} {novelty}") from error
        raise RecordDamaged(
            f"the record of backup {backup_id} has missing or invalid fields"
        ) from error
    if record.id != backup_id:
        raise RecordDamaged(
            f"the record of backup {backup_id} has the id of another backup, {record.id}"
        )
    return record


def later_record(backup_id: str, state: RecordState, line: bytes) -> ListedRecord:
    """Return the row of a record that a later agent wrote."""
    bad = ListedRecord(backup_id, RecordState.BAD, None)
    try:
        head = _Head.model_validate_json(line)
    except ValidationError:
        return bad._replace(state=RecordState.UNSUPPORTED) if state is RecordState.OK else bad
    if head.id != backup_id or state is RecordState.BAD:
        return bad
    later = LaterRecord(head.instance_id, head.parent_id)
    state = RecordState.UNSUPPORTED if state is RecordState.OK else state
    return bad._replace(state=state, later=later)


def _novelty(error: ValidationError) -> str:
    """Return what only a later agent can have written, or "" if there is nothing like that."""
    # Hostile bytes can be wrong in 100,000 places. A list of these takes seconds.
    if error.error_count() > _LISTED_ERRORS:
        return "has more than a thousand fields that this agent doesn't know"
    found = error.errors(include_url=False)
    if any(problem["loc"] == ("format",) for problem in found):
        return f"is not of format version {FORMAT_VERSION}"
    for problem in found:
        if problem["type"] in _NOVELTIES:
            where = printable(".".join(map(str, problem["loc"])))[:80]
            return f"has a field or a value that this agent doesn't know: {where}"
    return ""
