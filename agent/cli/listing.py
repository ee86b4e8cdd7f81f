"""`backup-list` and `backup-show`: what the store has."""

import argparse

from agent import assembly
from agent.cli import tables
from agent.cli.verb import Verbs, add_json, add_verb, uuid_argument
from agent.config import Config
from agent.errors import BackupUnknown


def add(verbs: Verbs) -> None:
    listing = add_verb(verbs, "backup-list", backup_list, "list all backups")
    show = add_verb(verbs, "backup-show", backup_show, "show one backup")
    show.add_argument("backup", type=uuid_argument)
    for verb in (listing, show):
        add_json(verb)


def backup_list(config: Config, arguments: argparse.Namespace) -> int:
    rows = [tables.row(listed) for listed in assembly.catalogue(config).records()]
    rows.sort(key=lambda row: (row.get("updated") or "", row["id"]))
    print(tables.as_json(rows) if arguments.json else tables.list_table(rows))
    return 0


def backup_show(config: Config, arguments: argparse.Namespace) -> int:
    listed = assembly.catalogue(config).look(arguments.backup)
    if listed is None:
        raise BackupUnknown(f"there is no backup {arguments.backup}")
    row = tables.row(listed)
    if arguments.json:
        record = listed.record.model_dump(mode="json") if listed.record else {}
        print(tables.as_json({**record, **row}))
    else:
        print(tables.property_table({key: row[key] for key in row if key != "record_state"}))
    return 0
