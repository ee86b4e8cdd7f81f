"""The tokens that Trove gives, of the releases 20 to 26, with a real Keystone."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from agent.store.swift.store import SwiftSettings, SwiftStore
from agent.trove.main import _warn_of_token
from agent.trove.options import parse
from agent.wiring.trove import user_login
from tests.dropin.image import MAIN, RESULT, Image, Made
from tests.stack.keystone import REGION, KeystoneServer
from tests.stack.mariadb import MariaDB
from tests.stack.process import poll
from tests.stack.swift import SwiftServer

SLOW = {"BACKUP_AGENT_PIPELINE__BYTES_PER_SECOND": str(5 << 20)}


def image_of(
    folder: Path, small_server: MariaDB, swift: SwiftServer, keystone: KeystoneServer
) -> Image:
    return Image(folder, small_server, swift, token=keystone.token(keystone.agent))


@pytest.mark.parametrize("path", ["", "/v2.0/"])
def test_older_releases_name_keystone_and_the_project(
    tmp_path: Path,
    small_server: MariaDB,
    swift_behind_keystone: SwiftServer,
    keystone: KeystoneServer,
    path: str,
) -> None:
    image = image_of(tmp_path, small_server, swift_behind_keystone, keystone)
    login = [
        f"--os-auth-url={keystone.auth_url.removesuffix('/v3')}{path}",
        f"--os-tenant-id={keystone.project_id}",
        f"--os-region-name={REGION}",
    ]
    backup_id = str(uuid.uuid4())
    arguments = [one for one in image.arguments(backup_id) if "--swift-url" not in one]
    done = image.run(*arguments, *login)
    found = RESULT.match(done.stdout)
    assert found, done.stderr
    assert "the token is valid" not in done.stderr
    made = Made(backup_id, found["checksum"], found["location"])
    target = tmp_path / "back"
    target.mkdir()
    arguments = [one for one in image.restore_arguments(made, target) if "--swift-url" not in one]
    done = image.run(*arguments, *login)
    assert done.returncode == 0, done.stderr


def test_a_token_that_ends_during_the_copy(
    tmp_path: Path,
    small_server: MariaDB,
    swift_behind_keystone: SwiftServer,
    keystone: KeystoneServer,
) -> None:
    image = image_of(tmp_path, small_server, swift_behind_keystone, keystone)
    process = subprocess.Popen(
        [sys.executable, str(MAIN), *image.arguments(str(uuid.uuid4()))],
        env=image.variables | SLOW,
        stderr=subprocess.PIPE,
        text=True,
    )
    poll("the copy has begun", lambda: bool(image.names()), 60)
    keystone.revoke_token(image.token)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "FAILED token_expired" in errors.splitlines()[-1]


def test_a_warning_before_the_copy_if_the_token_ends_soon(
    short_swift: SwiftServer, short_keystone: KeystoneServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Trove 26 doesn't name Keystone, so Swift is asked for it."""
    token = short_keystone.token(short_keystone.agent)
    options = parse(
        [
            *("--backup", f"--backup-id={uuid.uuid4()}", "--db-user=os_admin"),
            *(f"--os-token={token}", f"--swift-url={short_swift.storage_url}"),
        ]
    )
    login = user_login(token, swift_url=short_swift.storage_url)
    store = SwiftStore(SwiftSettings(login, "backups"))
    try:
        _warn_of_token(options, store, 1 << 30)
    finally:
        store.close()
    assert "the token is valid for" in caplog.text
    assert token not in caplog.text


def test_a_service_user_makes_the_token_last(
    tmp_path: Path, small_server: MariaDB, short_swift: SwiftServer, short_keystone: KeystoneServer
) -> None:
    image = image_of(tmp_path, small_server, short_swift, short_keystone)
    password = tmp_path / "service-password"
    descriptor = os.open(password, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(descriptor, short_keystone.service.password.encode())
    os.close(descriptor)
    service = {
        "BACKUP_AGENT_STORE__URL": f"swift:{short_keystone.auth_url}",
        "BACKUP_AGENT_STORE__AUTH": "v3password",
        "BACKUP_AGENT_STORE__USER": short_keystone.service.name,
        "BACKUP_AGENT_STORE__KEY_FILE": str(password),
        "BACKUP_AGENT_STORE__PROJECT": short_keystone.service_project,
    }
    # the service token goes to the store of the catalogue only
    other = [
        one.replace("127.0.0.1", "localhost") if "--swift-url" in one else one
        for one in image.arguments(str(uuid.uuid4()))
    ]
    done = image.run(*other, **service)
    assert done.returncode == 1
    assert "the token of the service user is for" in done.stderr.splitlines()[-1]
    image.token = short_keystone.token(short_keystone.agent)
    done = image.run(*image.arguments(str(uuid.uuid4())), **SLOW, **service)
    assert done.returncode == 0, done.stderr
    assert RESULT.match(done.stdout)
    assert "the token is valid" not in done.stderr
