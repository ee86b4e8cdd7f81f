"""The tables for operators, with the columns, order and wording that they know from Trove."""

import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prettytable import PrettyTable

from agent.cli import streams
from agent.errors import AgentError
from agent.keys.keyring import RecordState
from agent.model import BackupView, ErrorInfo, printable
from agent.records.catalogue import ListedRecord

# The largest width of a cell in characters. The agent writes no text of this length. A record that
# is not the agent's own must not make a table wider.
_WIDEST = 2048
# `_KEPT` matches characters that `printable` would replace but that a text needs. Without its
# joiners (U+200D) an emoji of a family falls apart into its members. A Persian or Indian name is
# misspelt without its joiners (U+200D and U+200C). Japanese has a space of its own (U+3000). A
# joiner that joins nothing is as invisible as a control character, and is replaced like one.
_PICTURES = "\u2190-\u2bff\U0001f000-\U0001faff"
_WORDS = "\u0600-\u08ff\u0900-\u0dff\u1000-\u109f\u1780-\u18af"
_KEPT = re.compile(
    f"((?<=[{_PICTURES}\ufe0f])\u200d(?=[{_PICTURES}])"
    f"|(?<=[{_WORDS}])[\u200c\u200d](?=[{_WORDS}])"
    "|[\u00a0\u2000-\u200a\u202f\u205f\u3000])"
)
_LIST_COLUMNS = {
    "ID": "id",
    "Instance ID": "instance_id",
    "Name": "name",
    "Status": "status",
    "Parent ID": "parent_id",
    "Updated": "updated",
}
_TASK_COLUMNS = {
    "Task ID": "task_id",
    "Type": "type",
    "Status": "status",
    "Backup ID": "backup_id",
    "Updated": "updated",
}


def row(listed: ListedRecord) -> dict[str, Any]:
    """Return a record as a row for display.

    If the record can't be trusted, its status says so.
    """
    if listed.record is None:
        nothing = dict.fromkeys(sorted(BackupView.model_fields, key=str.lower))
        known = {"id": listed.backup_id, "status": "UNREADABLE"}
        state = listed.state.value
        if listed.failure is not None:
            known["status"], state = "NOT READ", listed.failure.code
        if listed.later is not None:
            known |= listed.later._asdict()
        if listed.state is RecordState.UNSUPPORTED:
            known["status"] = "UNSUPPORTED"
        elif listed.later is not None:
            known["status"] = f"UNSUPPORTED ({state})"
        return {**nothing, **known, "record_state": state}
    shown = view(listed.record.view())
    if listed.state is not RecordState.OK:
        shown["status"] = f"{shown['status']} ({listed.state.value})"
    return {**shown, "record_state": listed.state.value}


def view(backup: BackupView) -> dict[str, Any]:
    """Return a backup's properties in alphabetical order, as `backup-show` prints them."""
    plain = backup.model_dump(mode="json")
    store = plain["datastore"]
    plain["datastore"] = {key: store[key] for key in ("version", "type", "version_id")}
    return {name: plain[name] for name in sorted(plain, key=str.lower)}


def listed_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a row that the tables of lists show."""
    return {name: row.get(name) for name in _LIST_COLUMNS.values()}


def list_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the table of `backup-list`."""
    return _columns(_LIST_COLUMNS, rows)


def instance_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the table of `backup-list-instance`, which has no column for the instance."""
    columns = {head: name for head, name in _LIST_COLUMNS.items() if name != "instance_id"}
    return _columns(columns, rows)


def _columns(columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> str:
    cells = ([_cell(name, row.get(name)) for name in columns.values()] for row in rows)
    return table(list(columns), cells)


def task_table(tasks: Iterable[Mapping[str, Any]]) -> str:
    """Return the table of unfinished tasks for `status`."""
    return _columns(_TASK_COLUMNS, tasks)


def property_table(properties: Mapping[str, Any]) -> str:
    """Return the table of `backup-show` and `backup-create`."""
    return table(
        ["Property", "Value"], [[name, _cell(name, value)] for name, value in properties.items()]
    )


def as_json(value: Any) -> str:
    """Return `value` as JSON for programs, with escapes for text that could steer a terminal."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    # Only a line that is not printable is split into characters. Most lines of a long list are
    # printable.
    return "\n".join(
        line if line.isprintable() else "".join(map(_escaped, line)) for line in text.split("\n")
    )


def _escaped(char: str) -> str:
    return char if char.isprintable() else json.dumps(char)[1:-1]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows of text as a table with column heads.

    The text must have passed `printable`.
    """
    drawn = PrettyTable(columns)
    drawn.align = "l"
    for cells in rows:
        drawn.add_row(list(cells))
    return str(drawn.get_string())


def _cell(name: str, value: Any) -> str:
    """Return the text of a cell.

    A time loses its `Z`, and a text that is too long is cut. A character that could break out of
    the cell is replaced.
    """
    text = str(value)
    if len(text) > _WIDEST:
        text = text[:_WIDEST] + "..."
    if name in ("created", "updated"):
        text = text.removesuffix("Z")
    return _shown(text)


def _shown(text: str) -> str:
    """Return `text` made `printable`, but keep the spaces and joiners that a script needs."""
    pieces = _KEPT.split(text)
    return "".join(piece if odd % 2 else printable(piece) for odd, piece in enumerate(pieces))


def unrestorable(why: Mapping[str, str]) -> Iterator[str]:
    """Yield a note for each COMPLETED backup from which nothing can be restored.

    `why` maps the ids of these backups to the reasons. Only the first few get a line of their own.
    """
    few = 5
    for backup_id, reason in list(why.items())[:few]:
        yield (
            f"backup-agent: note: nothing can be restored from backup {backup_id}: "
            f"{printable(reason)}"
        )
    if len(why) > few:
        yield (
            f"backup-agent: note: nothing can be restored from {len(why) - few} more backups; "
            "--json shows the reason for each as unrestorable"
        )


def error_object(error: AgentError) -> dict[str, Any]:
    """Return the object that --json prints for a failure."""
    return {"error": ErrorInfo.of(error).model_dump()}


def fail(error: AgentError, *, for_program: bool) -> int:
    """Print an error, for a program also as JSON, and return the exit status for it."""
    if for_program:
        print(as_json(error_object(error)))
    complain(error.code, str(error), error.hint)
    return error.exit_status


def complain(code: str, message: str, hint: str) -> None:
    """Print on standard error what failed, why, and how to fix it."""
    error = ErrorInfo(code=code, message=message, hint=hint)
    mark = streams.priority(logging.ERROR)
    lines = f"backup-agent: {error_lines(error)}".splitlines()
    print("\n".join(mark + line for line in lines), file=sys.stderr)


def error_lines(error: ErrorInfo) -> str:
    """Return two lines of text, the error with its reason and then the fix."""
    code, message, hint = map(printable, (error.code, error.message, error.hint))
    return f"{code}: {message}\n  what to do: {hint}"
