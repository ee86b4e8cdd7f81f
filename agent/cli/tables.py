"""The operators' tables: the columns, order and wording they know from Trove."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prettytable import PrettyTable

from agent.catalogue import Listed
from agent.keys import RecordState
from agent.model import BackupView, printable

# Longer than anything the agent writes: a record that isn't its own makes no table wider.
_WIDEST = 2048
_LIST_COLUMNS = {
    "ID": "id",
    "Instance ID": "instance_id",
    "Name": "name",
    "Status": "status",
    "Parent ID": "parent_id",
    "Updated": "updated",
}


def row(listed: Listed) -> dict[str, Any]:
    """One record for display; one that can't be trusted says so in its status."""
    if listed.record is None:
        return {"id": listed.backup_id, "status": "UNREADABLE", "record_state": listed.state.value}
    shown = view(listed.record.view())
    if listed.state is not RecordState.OK:
        shown["status"] = f"{shown['status']} ({listed.state.value})"
    return {**shown, "record_state": listed.state.value}


def view(backup: BackupView) -> dict[str, Any]:
    """A backup's properties in alphabetical order, as `backup-show` prints them."""
    plain = backup.model_dump(mode="json")
    store = plain["datastore"]
    plain["datastore"] = {key: store[key] for key in ("version", "type", "version_id")}
    return {name: plain[name] for name in sorted(plain, key=str.lower)}


def list_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The table of `backup-list`."""
    return _render(
        list(_LIST_COLUMNS),
        [[_cell(name, row.get(name)) for name in _LIST_COLUMNS.values()] for row in rows],
    )


def property_table(properties: Mapping[str, Any]) -> str:
    """The table of `backup-show` and `backup-create`."""
    return _render(
        ["Property", "Value"], [[name, _cell(name, value)] for name, value in properties.items()]
    )


def as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _render(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = PrettyTable(columns)
    table.align = "l"
    for cells in rows:
        table.add_row(list(cells))
    return str(table.get_string())


def _cell(name: str, value: Any) -> str:
    """Times lose their `Z`; what could break out of its cell is replaced."""
    text = str(value)
    if len(text) > _WIDEST:
        text = text[:_WIDEST] + "..."
    if name in ("created", "updated"):
        text = text.removesuffix("Z")
    return printable(text)


def complain(code: str, message: str, hint: str) -> None:
    """Say on standard error what failed and why, and what to do."""
    text = f"backup-agent: {code}: {printable(message)}\n  what to do: {printable(hint)}"
    print(text, file=sys.stderr)
