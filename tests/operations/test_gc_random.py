"""Random stores. A collection removes exactly what a plain reading of the rules removes."""

import os
import random
import uuid
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.model import BackupStatus, Record
from agent.records.catalogue import Catalogue
from agent.records.object_names import new_attempt, record_name
from agent.store.directory.paths import place
from agent.store.directory.store import DirectoryStore
from tests.operations.collecting import GIVEN_UP, KEYS, OTHER, collected, names
from tests.records.made import INSTANCE, keyring, record, stored

ROUNDS = 40
BACKUPS = 8
FORGER = keyring(fill=9)
STRANGER = keyring("winter")
AGES = (1.0, 23.5, 24.5, 100.0, 167.0, 169.0)


class Made(NamedTuple):
    """The objects of one backup, with their ages in hours by name.

    The oracle also needs the record, and whether its signature can be trusted.
    """

    id: str
    record: Record | None
    trusted: bool
    ages: dict[str, float]

    def under(self, attempt: str) -> set[str]:
        return {name for name in self.ages if name.startswith(f"{self.id}/{attempt}/")}


def an_attempt(dice: random.Random) -> str:
    return dice.choice(
        [new_attempt(INSTANCE), new_attempt(INSTANCE), new_attempt(OTHER), str(uuid.uuid4())]
    )


def a_record(dice: random.Random, backup_id: str, attempt: str) -> Record | None:
    status = dice.choice([None, *(one for one in BackupStatus if one is not BackupStatus.NEW)])
    if status is None:
        return None
    return record(
        id=backup_id,
        status=status,
        attempt=attempt,
        instance_id=dice.choice([INSTANCE, INSTANCE, OTHER]),
        error=GIVEN_UP if dice.random() < 0.5 else None,
        stored=stored() if status is BackupStatus.COMPLETED else None,
    )


def make(dice: random.Random, folder: Path) -> Made:
    """Write the files of one backup with their ages."""
    backup_id = dice.choice([str(uuid.uuid4())] * 4 + [new_attempt(INSTANCE), new_attempt(OTHER)])
    attempts = [an_attempt(dice) for _ in range(dice.randrange(4))]
    there = a_record(dice, backup_id, dice.choice([*attempts, an_attempt(dice)]))
    keys = dice.choice([KEYS, KEYS, KEYS, KEYS, FORGER, STRANGER])
    files: dict[str, bytes] = {}
    parts = ["00000000", "00000001", "list-0000", "slo-0000"]
    for attempt in [*attempts, *(["self-test"] if dice.random() < 0.3 else [])]:
        for part in parts[: dice.randrange(1, 5)]:
            files[f"{backup_id}/{attempt}/{part}"] = b"bytes"
        if dice.random() < 0.1:
            files[f"{backup_id}/{attempt}/notes"] = b"mine"
    for suffix in ("xbstream.gz.enc", "xbstream.gz", "checks.json", "self-test", "txt"):
        if dice.random() < (0.1 if suffix == "txt" else 0.4):
            files[f"{backup_id}.{suffix}"] = b"bytes"
    if there is not None:
        files[record_name(backup_id)] = keys.sign(there.model_dump_json().encode())
    lowest = dice.choice([0, 2, 2, 2, 4, 5])
    ages = {name: dice.choice(AGES[lowest:]) for name in files}
    for name, body in files.items():
        container = "database_backups_x_segments" if "/" in name else "database_backups_x"
        on_disk = place(name)
        path = folder.joinpath(container, *on_disk.folders, on_disk.file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        then = path.stat().st_mtime - ages[name] * 3600
        os.utime(path, (then, then))
    return Made(backup_id, there, keys is KEYS, ages)


def ours(made: Made) -> set[str]:
    """Return the attempts that carry this instance's mark."""
    mark = new_attempt(INSTANCE)[:13]
    found = {name.split("/")[1] for name in made.ages if "/" in name}
    return {one for one in found if one.startswith(mark) and uuid.UUID(one).version == 8}


def known(made: Made, attempts: set[str]) -> set[str]:
    return {name for one in attempts for name in made.under(one) if not name.endswith("notes")}


def joined(made: Made, attempts: set[str], *suffixes: str) -> set[str]:
    """Return the objects that go with these attempts.

    They stay if the backup has other attempts or unknown names.
    """
    strange = {name for name in made.ages if name.endswith((".txt", "/notes"))}
    others = {name for name in made.ages if "/" in name and name.split("/")[1] not in attempts}
    wanted = {f"{made.id}.{suffix}" for suffix in suffixes}
    return set() if strange or others else wanted & made.ages.keys()


def goes(made: Made, busy: set[str] | None) -> set[str]:
    """Return the names that a collection must remove, by a plain reading of the rules."""
    youngest = min(
        (hours for name, hours in made.ages.items() if not name.endswith(".checks.json")),
        default=0.0,
    )
    there, mine = made.record, ours(made)
    if youngest < 24:
        return set()
    if there is None:
        if mine:
            of_it = joined(made, mine, "xbstream.gz.enc", "xbstream.gz", "checks.json")
            return known(made, mine) | of_it
        if made.id.startswith(new_attempt(INSTANCE)[:13]):
            return known(made, {"self-test"}) | ({f"{made.id}.self-test"} & made.ages.keys())
        return set()
    if not made.trusted:
        return set()
    if there.instance_id != INSTANCE or there.status is BackupStatus.COMPLETED:
        return known(made, mine - {there.attempt})
    if busy is not None and made.id in busy:
        return set()
    if there.status is BackupStatus.DELETING:
        stays = {f"{made.id}.txt", f"{made.id}.self-test"}
        return made.ages.keys() - stays
    if there.status is BackupStatus.BUILDING and busy is None and youngest < 168:
        return set()
    mine |= {there.attempt}
    return known(made, mine) | joined(made, mine, "xbstream.gz.enc", "xbstream.gz")


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_a_random_store(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    store = DirectoryStore(tmp_path, "database_backups_x")
    store.open()
    made = [make(dice, tmp_path) for _ in range(BACKUPS)]
    busy = None if dice.random() < 0.3 else {one.id for one in made if dice.random() < 0.2}
    before = names(store)
    going = {name for one in made for name in goes(one, busy)}
    told = collected(store, busy=None if busy is None else frozenset(busy))
    assert before - names(store) == going
    assert names(store) <= before
    failed = {one.backup_id for one in told if one.what == "interrupted"}
    for one in made:
        if one.record is None or record_name(one.id) in going:
            continue
        now = Catalogue(store, KEYS).find(one.id)
        assert now is not None
        if one.id in failed:
            assert now.record is not None
            assert (now.record.status, now.record.attempt) == (
                BackupStatus.FAILED,
                one.record.attempt,
            )
        elif one.trusted:
            assert now.record == one.record
    # If an id belongs to both a backup and a self-test, the second run removes the self-test.
    again = collected(store, busy=None if busy is None else frozenset(busy))
    assert {one.what for one in again} <= {"left alone", "self-test"}


def test_the_random_stores_have_all_of_it(tmp_path: Path) -> None:
    """Otherwise the test above proves less than it seems to."""
    seen = set[str]()
    for seed in range(ROUNDS):
        dice = random.Random(seed)
        folder = tmp_path / str(seed)
        store = DirectoryStore(folder, "database_backups_x")
        store.open()
        for _ in range(BACKUPS):
            make(dice, folder)
        seen |= {one.what for one in collected(store, dry_run=True)}
    assert len(seen) == 7
