"""An agent with the real radosgw behind the real Keystone, with tokens of 4 s."""

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from swiftclient import client

from agent.model import BackupRequest, CreateTask, Limits
from tests.faults.ledger import Ledger
from tests.faults.rig import change, told
from tests.radosgw.conftest import LIFETIME
from tests.radosgw.test_backups import end_of, ended, restored, retries
from tests.stack.cloud import MIB, Cloud
from tests.stack.keystone import KeystoneServer
from tests.stack.mariadb import MariaDB
from tests.stack.process import poll
from tests.stack.rabbitmq import RabbitMQ
from tests.stack.radosgw import Radosgw, keystone_settings


@pytest.fixture(scope="module")
def cloud(
    scratch: Path, radosgw: Radosgw, short: KeystoneServer, rabbitmq: RabbitMQ, database: MariaDB
) -> Iterator[Cloud]:
    radosgw.configure(**keystone_settings(short), rgw_swift_account_in_url="true")
    short.add_endpoint("public", f"{radosgw.storage_url}/AUTH_$(project_id)s")
    made = Cloud(scratch / "radosgw-cloud", short, radosgw, rabbitmq, database)
    made.agent.start()
    yield made
    made.agent.stop()
    radosgw.configure()


@pytest.fixture
def ledger(cloud: Cloud) -> Iterator[Ledger]:
    with Ledger(cloud.agent) as ledger:
        yield ledger


def create(parent: str | None = None, *, rate: int | None = None) -> CreateTask:
    """Return a create task, with a limit of `rate` bytes a second."""
    request = BackupRequest(id=str(uuid.uuid4()), name="behind keystone", parent_id=parent)
    limits = Limits(bytes_per_second=rate)
    return CreateTask(task_id=str(uuid.uuid4()), backup=request, limits=limits)


def segments(cloud: Cloud, backup_id: str) -> list[str]:
    """Return the names of a backup's stored segments and lists, through a token of the owner's."""
    url = f"{cloud.storage_url}/AUTH_{cloud.keystone.project_id}"
    token = cloud.keystone.token(cloud.owner)
    name = f"database_backups_{cloud.agent.tenant_id}_segments"
    _, rows = client.get_container(url, token, name, prefix=backup_id)
    return [row["name"] for row in rows]


def test_a_chain_outlives_its_tokens_and_is_restored_and_deleted(
    cloud: Cloud, ledger: Ledger, database: MariaDB
) -> None:
    change(database)
    full = create(rate=int(1.4 * MIB))
    before, begun = len(cloud.keystone.logins(cloud.credential.id)), time.monotonic()
    assert told(ended(cloud.agent, ledger, full)) == "DONE"
    seconds = time.monotonic() - begun
    logins = cloud.keystone.logins(cloud.credential.id)[before:]
    assert set(logins) == {"201"}
    assert seconds > 2 * LIFETIME
    assert 2 <= len(logins) <= seconds / (LIFETIME * 7 / 8) + 2
    child = create(full.backup.id)
    changed = change(database)
    assert told(ended(cloud.agent, ledger, child)) == "DONE"
    assert restored(cloud.agent, ledger, child.backup.id) == changed

    listed = json.loads(cloud.agent.cli("backup-list", "--json").stdout)
    assert {row["id"]: row["status"] for row in listed} == {
        task.backup.id: "COMPLETED" for task in (full, child)
    }
    shown = json.loads(cloud.agent.cli("backup-show", child.backup.id, "--json").stdout)
    assert f"/swift/v1/AUTH_{cloud.keystone.project_id}/" in shown["locationRef"]
    collected = cloud.agent.cli("gc", "--json")
    assert (collected.returncode, json.loads(collected.stdout)["orphans"]) == (0, [])

    assert segments(cloud, full.backup.id)
    for task in (child, full):
        done = cloud.agent.cli("backup-delete", task.backup.id, "--wait")
        assert done.returncode == 0, done.stderr
        assert segments(cloud, task.backup.id) == []
    assert json.loads(cloud.agent.cli("backup-list", "--json").stdout) == []


def test_the_self_test_passes_and_names_the_login(cloud: Cloud) -> None:
    done = cloud.agent.cli("self-test", "--only", "store", "--json")
    assert done.returncode == 0, done.stdout
    assert f"application credential {cloud.credential.id}" in done.stdout


def test_an_outage_of_keystone_during_a_backup_only_costs_time(
    cloud: Cloud, ledger: Ledger
) -> None:
    """The gateway answers 401 to good tokens meanwhile."""
    task = create(rate=2 * MIB)
    cloud.agent.send(task)
    poll("segments are stored", lambda: len(segments(cloud, task.backup.id)) > 1, 30)
    before = retries(cloud.agent)
    try:
        cloud.keystone.inject([{"match": "/auth/tokens", "action": "cut", "times": 9999}])
        poll("the agent tries again", lambda: retries(cloud.agent) > before + 2, 30)
    finally:
        cloud.keystone.clear_faults()
    assert told(end_of(ledger, task)) == "DONE"


def test_a_revoked_credential_fails_a_backup_at_once(cloud: Cloud) -> None:
    own = cloud.keystone.make_application_credential(cloud.owner)
    agent = cloud.other_agent("revoked", own)
    assert agent.cli("self-test", "--only", "store").returncode == 0
    cloud.keystone.delete_application_credential(own)
    begun = time.monotonic()
    done = agent.cli("backup-create", "--local", "refused", "--json")
    assert time.monotonic() - begun < 20
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "login_denied"
    assert own.id in error["message"]
    assert own.secret not in done.stdout + done.stderr
