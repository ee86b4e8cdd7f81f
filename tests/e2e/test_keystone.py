"""An agent behind a real Keystone with short tokens: backup, restore, delete, gc, self-test."""

import json
import math
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent import wiring
from agent.config.reading import load
from tests.e2e.reports import Reports
from tests.e2e.test_task_store import send
from tests.stack.agent import write_private
from tests.stack.cloud import MIB, Cloud
from tests.stack.fixtures_keystone import need_keystone
from tests.stack.keystone import KeystoneServer
from tests.stack.mariadb import MariaDB
from tests.stack.rabbitmq import RabbitMQ
from tests.stack.swift import SwiftServer

LIFETIME = 4  # seconds of a token


@pytest.fixture(scope="module")
def cloud(scratch: Path, rabbitmq: RabbitMQ, mariadb: MariaDB) -> Iterator[Cloud]:
    need_keystone()
    folder = scratch / "cloud"
    keystone = KeystoneServer(folder / "keystone", token_seconds=LIFETIME)
    swift = SwiftServer(folder / "swift", keystone=keystone)
    keystone.launch()
    swift.launch()
    keystone.wait_ready()
    swift.wait_ready()
    keystone.add_object_store(swift.address)
    made = Cloud(folder, keystone, swift, rabbitmq, mariadb)
    made.agent.start()
    yield made
    made.agent.stop()
    swift.stop()
    keystone.stop()


@pytest.fixture(scope="module")
def base(cloud: Cloud) -> str:
    """Return the id of a COMPLETED full backup."""
    return str(cloud.agent.create("base")["id"])


def without_agent_toml(
    folder: Path, tenant_id: str, environment: Mapping[str, str], *words: str
) -> "subprocess.CompletedProcess[str]":
    """Run a command for a user who has no agent.toml."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OS_")}
    own = {"HOME": str(folder), "BACKUP_AGENT_AGENT__TENANT_ID": tenant_id}
    return subprocess.run(
        [sys.executable, "-m", "agent", *words],
        env={**kept, **own, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def password_in_environment(cloud: Cloud) -> dict[str, str]:
    """Return the variables OS_* for the password of the user."""
    return {
        "OS_AUTH_URL": cloud.keystone.auth_url,
        "OS_USERNAME": cloud.owner.name,
        "OS_USER_DOMAIN_NAME": cloud.owner.domain,
        "OS_PASSWORD": cloud.owner.password,
        "OS_PROJECT_NAME": cloud.keystone.project,
        "OS_PROJECT_DOMAIN_NAME": cloud.keystone.project_domain,
        "OS_IDENTITY_API_VERSION": "3",
    }


def test_a_backup_outlives_five_tokens_with_one_renewal_for_each(cloud: Cloud, base: str) -> None:
    config = load(cloud.agent.config)
    with wiring.catalogue(config, wiring.keyring(config)) as catalogue:
        stored = catalogue.need(base).stored
    assert stored
    rate = stored.raw_bytes // round(5.5 * LIFETIME)
    cloud.agent.stop()
    cloud.agent.start({"BACKUP_AGENT_PIPELINE__BYTES_PER_SECOND": str(max(rate, MIB))})
    before, begun = len(cloud.keystone.logins(cloud.credential.id)), time.monotonic()
    made = cloud.agent.create("long")
    seconds = time.monotonic() - begun
    cloud.agent.stop()
    cloud.agent.start()
    assert made["status"] == "COMPLETED"
    assert seconds > 5 * LIFETIME
    logins = cloud.keystone.logins(cloud.credential.id)[before:]
    assert set(logins) == {"201"}
    # each is renewed when an eighth of its lifetime is left
    assert 5 <= len(logins) <= math.ceil(seconds / (LIFETIME * 7 / 8)) + 1


def test_list_show_restore_and_gc_work_the_same_way(
    cloud: Cloud, base: str, tmp_path: Path
) -> None:
    listed = json.loads(cloud.agent.cli("backup-list", "--json").stdout)
    assert base in [one["id"] for one in listed]
    shown = json.loads(cloud.agent.cli("backup-show", base, "--json").stdout)
    assert f"/v1/AUTH_{cloud.keystone.project_id}/" in shown["locationRef"]
    restored = cloud.agent.cli("restore", "--local", base, tmp_path / "back")
    assert restored.returncode == 0, restored.stderr
    assert (tmp_path / "back" / "ibdata1").exists()
    collected = cloud.agent.cli("gc", "--json")
    assert collected.returncode == 0, collected.stderr


def test_a_delete_removes_a_backup(cloud: Cloud) -> None:
    made = str(cloud.agent.create("short-lived")["id"])
    done = cloud.agent.cli("backup-delete", made, "--wait")
    assert done.returncode == 0, done.stderr
    assert made not in cloud.agent.cli("backup-list", "--json").stdout


def test_the_self_test_passes_and_names_the_login(cloud: Cloud) -> None:
    done = cloud.agent.cli("self-test", "--only", "store", "--json")
    assert done.returncode == 0, done.stdout
    assert f"application credential {cloud.credential.id}" in done.stdout


def test_the_environment_alone_is_enough_for_a_list(
    cloud: Cloud, base: str, tmp_path: Path
) -> None:
    tenant, environment = cloud.agent.tenant_id, password_in_environment(cloud)
    done = without_agent_toml(tmp_path, tenant, environment, "backup-list", "--json")
    assert done.returncode == 0, done.stderr
    assert base in [one["id"] for one in json.loads(done.stdout)]


def test_clouds_yaml_alone_is_enough_for_a_list(cloud: Cloud, base: str, tmp_path: Path) -> None:
    folder = tmp_path / ".config" / "openstack"
    folder.mkdir(parents=True)
    auth = {
        "auth_url": cloud.keystone.auth_url,
        "application_credential_id": cloud.credential.id,
    }
    main = {"clouds": {"prod": {"auth_type": "v3applicationcredential", "auth": auth}}}
    secret = {"application_credential_secret": cloud.credential.secret}
    write_private(folder / "clouds.yaml", json.dumps(main))
    write_private(folder / "secure.yaml", json.dumps({"clouds": {"prod": {"auth": secret}}}))
    tenant, environment = cloud.agent.tenant_id, {"OS_CLOUD": "prod"}
    done = without_agent_toml(tmp_path, tenant, environment, "backup-list", "--json")
    assert done.returncode == 0, done.stderr
    assert base in [one["id"] for one in json.loads(done.stdout)]


def test_a_task_brings_a_token_for_a_project_that_it_may_name(cloud: Cloud) -> None:
    cloud.agent.stop()
    cloud.agent.overrides["store"]["projects"] = [cloud.keystone.project_id]
    cloud.agent.start()
    elsewhere = cloud.keystone.add_project(cloud.owner)
    token = cloud.keystone.token(cloud.owner, elsewhere)
    with Reports(cloud.agent) as reports:

        def end(project: str) -> dict[str, Any]:
            # no backup, because a token of 4 s may be too short for it
            store, unknown = {"project_id": project, "token": token}, str(uuid.uuid4())
            return reports.end_of(send(cloud.agent, "backup.delete", store, backup_id=unknown))

        assert end(cloud.keystone.other_project_id)["error"]["code"] == "storage_refused"
        assert cloud.keystone.logins(token) == []
        assert end(cloud.keystone.project_id)["error"]["code"] == "backup_unknown"
    assert cloud.keystone.logins(token) == ["201"]
    assert token not in cloud.agent.log.read_text()


def test_a_revoked_credential_fails_a_backup_at_once(cloud: Cloud) -> None:
    own = cloud.keystone.make_application_credential(cloud.owner)
    agent = cloud.other_agent("revoked", own)
    cloud.keystone.delete_application_credential(own)
    begun = time.monotonic()
    done = agent.cli("backup-create", "--local", "refused", "--json")
    assert time.monotonic() - begun < 20
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "login_denied"
    assert own.id in error["message"]
    assert own.secret not in done.stdout + done.stderr
