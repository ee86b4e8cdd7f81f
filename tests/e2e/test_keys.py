"""Keys in use: another master key for existing backups, and a recovery key for emergencies."""

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.objects import Objects
from tests.stack.agent import KEY_ID, Agent
from tests.stack.mariadb import MariaDB
from tests.stack.rabbitmq import RabbitMQ
from tests.stack.swift import SwiftServer


@pytest.fixture(scope="module")
def keeper(
    scratch: Path, rabbitmq: RabbitMQ, swift_session: SwiftServer, mariadb: MariaDB
) -> Agent:
    """Return an agent without a daemon, with a recovery key."""
    agent = Agent(scratch / "keeper", rabbitmq, swift_session, mariadb)
    agent.overrides = {"keys": {"recovery": ["offline"]}}
    agent.write()
    private = agent.folder / "usb-stick.pem"
    made = agent.cli("keygen", "offline", "--recovery", "--private", private)
    assert made.returncode == 0, made.stderr
    return agent


@pytest.fixture(scope="module")
def backup(keeper: Agent) -> str:
    return _made_here(keeper, "to be re-keyed")


@pytest.fixture
def objects(keeper: Agent) -> Iterator[Objects]:
    objects = Objects(keeper)
    yield objects
    objects.close()


def _made_here(agent: Agent, name: str, *arguments: str) -> str:
    done = agent.cli("backup-create", "--local", "--json", agent.instance_id, name, *arguments)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["id"])


def _openssl(keeper: Agent, wrapped: str) -> bytes:
    """Open a recovery entry as docs/format.md says, and return its data key."""
    command = ["openssl", "pkeyutl", "-decrypt", "-inkey", "usb-stick.pem"]
    for option in ("rsa_padding_mode:oaep", "rsa_oaep_md:sha256", "rsa_mgf1_md:sha256"):
        command += ["-pkeyopt", option]
    sealed = base64.b64decode(wrapped)
    done = subprocess.run(
        command, input=sealed, cwd=keeper.folder, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_backup_is_rekeyed_and_the_old_key_retired(
    keeper: Agent, backup: str, objects: Objects, tmp_path: Path
) -> None:
    before = objects.record(backup)
    assert [key["id"] for key in before["keys"]] == [KEY_ID, "offline"]
    data_key = _openssl(keeper, before["keys"][1]["wrapped"])
    assert len(data_key) == 32
    stored = {name: objects.etag(objects.segments, name) for name in objects.segment_names(backup)}

    assert keeper.cli("keygen", "second").returncode == 0
    done = keeper.cli("rekey", "--to", "second")
    assert (done.returncode, done.stdout.count("1 re-wrapped for second")) == (0, 1), done.stderr
    after = objects.record(backup)
    assert [key["id"] for key in after["keys"]] == ["second", "offline"]
    assert _openssl(keeper, after["keys"][1]["wrapped"]) == data_key
    assert {**after, "keys": 0} == {**before, "keys": 0}
    assert {name: objects.etag(objects.segments, name) for name in stored} == stored

    keys = keeper.folder / "keys"
    old = (keys / f"{KEY_ID}.key").rename(keeper.folder / "old.key")
    second = keys / "second.key"
    keeper.overrides["keys"]["active"] = "second"
    # `write` makes the stack's key again if it is missing, but never again with this secret
    keeper.write()
    (keys / f"{KEY_ID}.key").unlink()
    restored = keeper.cli("restore", "--local", backup, tmp_path / "new")
    assert restored.returncode == 0, restored.stderr

    second.rename(keeper.folder / "second.key")
    old.rename(keys / f"{KEY_ID}.key")
    keeper.overrides["keys"]["active"] = KEY_ID
    keeper.write()
    refused = keeper.cli("restore", "--local", backup, tmp_path / "old")
    assert refused.returncode == 1
    assert "key_not_here" in refused.stderr
    assert "'second'" in refused.stderr
    assert not (tmp_path / "old").exists()
