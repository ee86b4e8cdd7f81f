"""Encryption switched off: warned about, read only if allowed, and damage still noticed."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.objects import Objects
from tests.e2e.test_damage import Damage, cut_the_tail, flip_one_bit, lose_one, swap_two
from tests.stack.agent import Agent, Tables
from tests.stack.mariadb import MariaDB
from tests.stack.rabbitmq import RabbitMQ
from tests.stack.swift import SwiftServer

OPENLY: Tables = {
    "keys": {"encrypt": False},
    "pipeline": {"segment_bytes": 1 << 20},
    "store": {"attempts": 2},
}


@pytest.fixture(scope="module")
def careless(
    scratch: Path, rabbitmq: RabbitMQ, swift_session: SwiftServer, mariadb: MariaDB
) -> Agent:
    """Return an agent without a daemon that doesn't encrypt."""
    agent = Agent(scratch / "careless", rabbitmq, swift_session, mariadb, dict(OPENLY))
    agent.write()
    return agent


def _made_here(agent: Agent, name: str, *arguments: str) -> tuple[str, str]:
    """Make a backup, and return its id and the standard error of the command."""
    done = agent.cli("backup-create", "--local", "--json", agent.instance_id, name, *arguments)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["id"]), done.stderr


@pytest.fixture(scope="module")
def open_backup(careless: Agent) -> str:
    backup_id, said = _made_here(careless, "for all to read")
    assert f"backup {backup_id} is stored without encryption" in said
    return backup_id


@pytest.fixture
def objects(careless: Agent) -> Iterator[Objects]:
    objects = Objects(careless)
    yield objects
    objects.close()


def test_the_stored_object_is_gzip_and_says_so(
    careless: Agent, open_backup: str, objects: Objects
) -> None:
    record = objects.record(open_backup)
    assert (record["cipher"], record["keys"]) == ("none", [])
    assert record["locationRef"].endswith(f"/{open_backup}.xbstream.gz")
    stored = objects.get(objects.container, f"{open_backup}.xbstream.gz")
    assert len(stored) == record["stored"]["stored_bytes"] == record["stored"]["compressed_bytes"]
    raw = gzip.decompress(stored)
    assert raw.startswith(b"XBSTCK01")
    assert len(raw) == record["stored"]["raw_bytes"]
    assert f"{open_backup}.xbstream.gz.enc" not in objects.names(objects.container)


def test_it_is_restored_only_where_that_is_allowed(
    careless: Agent, open_backup: str, tmp_path: Path
) -> None:
    _configure(careless, encrypt=True)
    refused = careless.cli("restore", "--local", open_backup, tmp_path / "back")
    assert refused.returncode == 1
    assert f"plaintext_refused: backup {open_backup} is not encrypted" in refused.stderr
    assert "allow_plaintext" in refused.stderr
    assert not (tmp_path / "back").exists()
    _configure(careless, encrypt=True, allow_plaintext=True)
    sealed, said = _made_here(careless, "sealed again", "--parent", open_backup)
    assert "without encryption" not in said
    _configure(careless, encrypt=False)
    done = careless.cli("restore", "--local", "--json", sealed, tmp_path / "back")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["chain"] == [open_backup, sealed]
    assert (tmp_path / "back" / "ibdata1").exists()


def _configure(agent: Agent, **keys: bool) -> None:
    agent.overrides = {**OPENLY, "keys": dict(keys)}
    agent.write()


@pytest.mark.parametrize("damage", [flip_one_bit, cut_the_tail, swap_two, lose_one])
def test_damage_is_found_by_the_signed_lists(
    careless: Agent, open_backup: str, objects: Objects, tmp_path: Path, damage: Damage
) -> None:
    names = objects.segment_names(open_backup)
    assert len(names) > 8
    whole = {name: objects.get(objects.segments, name) for name in names}
    changed = damage(objects, names)
    done = careless.cli("restore", "--local", open_backup, tmp_path / "back")
    for name in changed:
        objects.put(objects.segments, name, whole[name])
    assert done.returncode == 1
    assert "data_damaged: segment " in done.stderr
    assert f"of backup {open_backup} is not as it was stored" in done.stderr
    assert not (tmp_path / "back").exists()


def test_the_daemon_says_it_when_it_starts(careless: Agent) -> None:
    careless.start()
    careless.stop()
    assert "backups are made without encryption" in careless.log.read_text()
