"""`backup-list`, `backup-list-instance` and `backup-show`: what the store has."""

import argparse
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from agent import wiring
from agent.cli import tables
from agent.cli.verb import Verbs, add_json, add_store, add_verb, uuid_argument
from agent.config.settings import Config
from agent.errors import BackupUnknown, StoreNotFound
from agent.keys.keyring import Keyring, RecordState
from agent.keys.master import KEY_BYTES, MasterKey
from agent.model import printable
from agent.records.ancestry import Ancestry, Unrestorable
from agent.records.catalogue import Catalogue, ListedRecord

_STATES = (
    "A status with (bad) behind it is that of a record which is not as it was signed. "
    "(key-not-here): no key on this machine can check it. "
    "(other-key): the key here of that id is not the one that signed it. "
    "UNREADABLE: its bytes make no record. "
    "NOT READ: the store gave no bytes of it, although it has it; try again."
)


def add(verbs: Verbs) -> None:
    every = add_verb(
        verbs,
        "backup-list",
        backup_list,
        "list all backups, the newest last",
        more=_STATES,
        examples=("", "--json", "--store file:///var/backups/db"),
    )
    of_one = add_verb(
        verbs,
        "backup-list-instance",
        backup_list_instance,
        "list the backups of one instance, the newest last",
        more=_STATES,
        examples=["--limit 5 INSTANCE"],
    )
    of_one.add_argument("instance", type=uuid_argument, help="the instance's id")
    of_one.add_argument(
        "--limit", type=_count, metavar="N", help="only the newest N (default: all)"
    )
    show = add_verb(
        verbs,
        "backup-show",
        backup_show,
        "show one backup",
        more=_STATES,
        examples=("BACKUP", "--store file:///var/backups/db BACKUP"),
    )
    show.add_argument("backup", type=uuid_argument, help="the backup's id")
    for verb in (every, of_one, show):
        add_store(verb)
        add_json(verb)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text[:10])):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text[:10])


def backup_list(config: Config, arguments: argparse.Namespace) -> int:
    broken = dict[str, str]()
    rows = _rows(_records(config, broken), whole=arguments.json)
    _show(rows, broken, tables.list_table, arguments.json)
    return 0


def backup_list_instance(config: Config, arguments: argparse.Namespace) -> int:
    unreadable = 0

    def of_instance(records: Iterable[ListedRecord]) -> Iterator[ListedRecord]:
        nonlocal unreadable
        for listed in records:
            unreadable += listed.record is None
            if listed.record is not None and listed.record.instance_id == arguments.instance:
                yield listed

    broken = dict[str, str]()
    rows = _rows(of_instance(_records(config, broken)), whole=arguments.json)
    rows = rows[-arguments.limit :] if arguments.limit else rows
    _show(rows, broken, tables.instance_table, arguments.json)
    if unreadable:
        print(
            f"backup-agent: note: {unreadable} of the container's records can't be read, so "
            "nobody knows of which instance; backup-list shows them",
            file=sys.stderr,
        )
    return 0


def _show(
    rows: list[dict[str, Any]],
    broken: Mapping[str, str],
    table: Callable[[list[dict[str, Any]]], str],
    as_json: bool,
) -> None:
    """Print rows; of those that can't be restored say so, without another column."""
    found = {row["id"]: broken[row["id"]] for row in rows if row["id"] in broken}
    if as_json:
        print(tables.as_json([row | _why(found, row["id"]) for row in rows]))
    else:
        print(table(rows))
    for line in tables.unrestorable(found):
        print(line, file=sys.stderr)


def _why(broken: Mapping[str, str], backup_id: str) -> dict[str, str]:
    """The field of --json that only a backup has which can't be restored."""
    return {"unrestorable": broken[backup_id]} if backup_id in broken else {}


def backup_show(config: Config, arguments: argparse.Namespace) -> int:
    with wiring.catalogue(config, _keyring(config)) as catalogue:
        listed = catalogue.look(arguments.backup)
        if listed is None:
            raise BackupUnknown(f"there is no backup {arguments.backup} in {catalogue.location}")
        why = {one.backup_id: one.why for one in _broken(listed, catalogue)}
    row = tables.row(listed)
    if arguments.json:
        record = listed.record.model_dump(mode="json") if listed.record else {}
        print(tables.as_json({**record, **row, **_why(why, listed.backup_id)}))
    else:
        print(tables.property_table({key: row[key] for key in row if key != "record_state"}))
        if listed.record and listed.record.error:
            print(tables.error_lines(listed.record.error))
    for line in tables.unrestorable(why):
        print(line, file=sys.stderr)
    return 0


def _broken(listed: ListedRecord, catalogue: Catalogue) -> list[Unrestorable]:
    """The backup itself, if an ancestor is missing; these are read one by one."""
    ancestry = Ancestry()
    ancestry.add(listed)
    return [one for one in ancestry.broken(catalogue.look) if one.backup_id == listed.backup_id]


def _records(config: Config, broken: dict[str, str]) -> Iterator[ListedRecord]:
    """All records, those that have ended from the cache where there is one.

    At the end `broken` has the backups that lack an ancestor, and why.
    None, and a note that says so, where there is no container: the first backup makes it.
    """
    try:
        with wiring.catalogue(config, _keyring(config)) as catalogue:
            ancestry = Ancestry()
            for listed in catalogue.records():
                ancestry.add(listed)
                yield listed
            broken |= {one.backup_id: one.why for one in ancestry.broken(catalogue.look)}
    except StoreNotFound as error:
        print(f"backup-agent: note: no backups there: {printable(str(error))}", file=sys.stderr)
        print(f"  what to do: {error.hint}", file=sys.stderr)


def _keyring(config: Config) -> Keyring:
    """The keys; without a section [keys] one that no record knows, so that each says so."""
    if config.keys is not None:
        return wiring.keyring(config)
    stranger = MasterKey(secrets.token_hex(16), secrets.token_bytes(KEY_BYTES))
    return Keyring({stranger.id: stranger}, stranger.id)


def _rows(records: Iterable[ListedRecord], *, whole: bool) -> list[dict[str, Any]]:
    """Rows for display, the newest last; with all of a backup's properties if `whole`.

    What fails its check comes first: it may claim any time, and must not push others out.
    """
    rows = []
    for listed in records:
        row = tables.row(listed)
        order = (listed.state is not RecordState.BAD, row.get("updated") or "", row["id"])
        rows.append((order, row if whole else tables.listed_cells(row)))
    rows.sort(key=lambda pair: pair[0])
    return [row for _, row in rows]
