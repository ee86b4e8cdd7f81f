"""The verbs `backup-list`, `backup-list-instance` and `backup-show`.

They read the records of the store.
"""

import argparse
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from agent import wiring
from agent.cli import tables
from agent.cli.streams import note
from agent.cli.verb import Verbs, add_json, add_store, add_verb, uuid_argument
from agent.config.settings import Config
from agent.errors import BackupUnknown, StoreNotFound
from agent.keys.keyring import Keyring, RecordState
from agent.keys.master import KEY_BYTES, MasterKey
from agent.model import printable
from agent.records.ancestry import Ancestry, Unrestorable
from agent.records.catalogue import Catalogue, ListedRecord

_STATES = (
    "If a record can't be trusted or read, its status says so. "
    "(bad): the record is not as it was signed. "
    "(key-not-here): no key on this machine can check the record. "
    "(other-key): another key with the same id signed the record. "
    "UNSUPPORTED: a later agent wrote the record; upgrade this agent to read it. "
    "UNREADABLE: the bytes of the record can't be parsed. "
    "NOT READ: the store has the record, but returned no bytes of it; try again."
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
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
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
            unreadable += listed.instance_id is None
            if listed.instance_id == arguments.instance:
                yield listed

    broken = dict[str, str]()
    rows = _rows(of_instance(_records(config, broken)), whole=arguments.json)
    rows = rows[-arguments.limit :] if arguments.limit else rows
    _show(rows, broken, tables.instance_table, arguments.json)
    if unreadable:
        note(
            f"backup-agent: note: {unreadable} of the container's records can't be read, so their "
            "instances are unknown; backup-list shows these records"
        )
    return 0


def _show(
    rows: list[dict[str, Any]],
    broken: Mapping[str, str],
    table: Callable[[list[dict[str, Any]]], str],
    as_json: bool,
) -> None:
    """Print rows, and a note for each backup that can't be restored.

    With --json the reason is in a field of the row. The tables get no column for it.
    """
    found = {row["id"]: broken[row["id"]] for row in rows if row["id"] in broken}
    if as_json:
        print(tables.as_json([row | _why(found, row["id"]) for row in rows]))
    else:
        print(table(rows))
    for line in tables.unrestorable(found):
        note(line)


def _why(broken: Mapping[str, str], backup_id: str) -> dict[str, str]:
    """Return the extra --json field of a backup that can't be restored, else an empty dict."""
    return {"unrestorable": broken[backup_id]} if backup_id in broken else {}


def backup_show(config: Config, arguments: argparse.Namespace) -> int:
    with wiring.catalogue(config, _keyring(config)) as catalogue:
        listed = catalogue.find(arguments.backup)
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
        note(line)
    return 0


def _broken(listed: ListedRecord, catalogue: Catalogue) -> list[Unrestorable]:
    """Return a list of the backup itself if it lacks an ancestor, else an empty list.

    The ancestors are read one by one.
    """
    ancestry = Ancestry()
    ancestry.add(listed)
    return [one for one in ancestry.broken(catalogue.find) if one.backup_id == listed.backup_id]


def _records(config: Config, broken: dict[str, str]) -> Iterator[ListedRecord]:
    """Yield all records, and fill `broken` after the last one.

    The records of backups that have ended come from the cache if there is one. `broken` gets the
    backups that lack an ancestor, with the reasons. If there is no container, yield nothing and
    print a note, because the first backup makes the container.
    """
    try:
        with wiring.catalogue(config, _keyring(config)) as catalogue:
            ancestry = Ancestry()
            for listed in catalogue.records():
                ancestry.add(listed)
                yield listed
            broken |= {one.backup_id: one.why for one in ancestry.broken(catalogue.find)}
    except StoreNotFound as error:
        note(
            f"backup-agent: note: no backups found: {printable(str(error))}",
            f"  what to do: {error.hint}",
        )


def _keyring(config: Config) -> Keyring:
    """Return the configured keys, or one random key if there is no section [keys].

    No record is signed by the random key, so each record shows as (key-not-here).
    """
    if config.keys is not None:
        return wiring.keyring(config)
    unused = MasterKey(secrets.token_hex(16), secrets.token_bytes(KEY_BYTES))
    return Keyring({unused.id: unused}, unused.id)


def _rows(records: Iterable[ListedRecord], *, whole: bool) -> list[dict[str, Any]]:
    """Return rows for display, the newest last.

    If `whole` is true, a row has all properties of its backup. A record that fails its check comes
    first: it may claim any time, and --limit must not drop a good record because of it. A record
    of a later agent, which this one can't read, comes last: it is likely to be new.
    """
    rows = []
    for listed in records:
        row = tables.row(listed)
        trust = {RecordState.BAD: 0, RecordState.UNSUPPORTED: 2}.get(listed.state, 1)
        order = (trust, row.get("updated") or "", row["id"])
        rows.append((order, row if whole else tables.listed_cells(row)))
    rows.sort(key=lambda pair: pair[0])
    return [row for _, row in rows]
