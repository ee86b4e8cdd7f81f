"""`backup-agent restore --local --trove`: an operator restores a backup in Trove's layout."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

import pytest

from tests.codec.test_openssl_enc import FORMS
from tests.dropin.foreign import KEY, Stream, TroveStorage, encrypted
from tests.dropin.image import Image, Made
from tests.dropin.test_restore import change
from tests.stack.agent import write_private
from tests.stack.keystone import KeystoneServer
from tests.stack.mariadb import MariaDB, checksums_of
from tests.stack.swift import SwiftServer


@pytest.fixture
def image(tmp_path: Path, small_server: MariaDB, swift: SwiftServer) -> Image:
    return Image(tmp_path, small_server, swift)


def run(
    *arguments: str | Path, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run `backup-agent restore`."""
    return subprocess.run(
        [sys.executable, "-m", "agent", "restore", *map(str, arguments)],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def agent_toml(image: Image, folder: Path) -> Path:
    """Write a configuration with the login of the Swift, and the keys of the image if it has any.

    There is no broker and no database.
    """
    write_private(folder / "store-key", image.swift.key)
    text = (
        f'[agent]\ninstance_id = "{uuid4()}"\ntenant_id = "t"\n'
        f'state_folder = "{folder / "agent"}"\n'
        f'[store]\nurl = "swift:{image.swift.auth_url}"\nuser = "{image.swift.user}"\n'
        f'key_file = "{folder / "store-key"}"\n'
    )
    if image.environment:
        text += f'[keys]\nfolder = "{folder / "keys"}"\nactive = "trove"\n'
    write_private(folder / "agent.toml", text)
    return folder / "agent.toml"


def words(image: Image, made: Made, folder: Path) -> list[str | Path]:
    """Return the arguments of a restore into `folder / "back"`."""
    config = agent_toml(image, folder)
    return ["--config", config, "--local", "--trove", made.location, folder / "back"]


def test_a_sealed_chain_with_its_checksum(sealing: Image, tmp_path: Path) -> None:
    full = sealing.backup()
    change(sealing)
    last = sealing.backup(full)
    done = run(*words(sealing, last, tmp_path), "--checksum", last.checksum, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["chain"] == [full.id, last.id]
    assert "note:" not in done.stderr
    assert checksums_of(tmp_path / "back", tmp_path / "server") == sealing.mariadb.checksums()


def test_a_sealed_backup_needs_its_key(sealing: Image, tmp_path: Path) -> None:
    made = sealing.backup()
    sealing.environment.clear()
    done = run(*words(sealing, made, tmp_path), "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "key_not_here"
    assert not (tmp_path / "back").exists()


def test_what_trove_and_openssl_made(image: Image, full: Stream, tmp_path: Path) -> None:
    made = TroveStorage(image).joined(encrypted(full, FORMS[1]), suffix=".enc")
    arguments = words(image, made, tmp_path)
    assert "key_not_here" in run(*arguments).stderr
    key_file = tmp_path / "openssl-key"
    write_private(key_file, f"{KEY}\n")
    done = run(*arguments, "--openssl-key-file", key_file)
    assert done.returncode == 0, done.stderr
    assert "no --checksum was given" in done.stderr
    assert f"restored {made.id} into" in done.stdout
    assert "it belongs to" in done.stdout
    assert checksums_of(tmp_path / "back", tmp_path / "server") == full.tables


def test_a_key_that_others_can_read(image: Image, full: Stream, tmp_path: Path) -> None:
    made = TroveStorage(image).plain(full)
    key_file = tmp_path / "openssl-key"
    key_file.write_text(KEY)
    key_file.chmod(0o644)
    done = run(*words(image, made, tmp_path), "--openssl-key-file", key_file)
    assert done.returncode == 2
    assert "can be read by others" in done.stderr


def test_a_wrong_checksum_leaves_no_target(image: Image, full: Stream, tmp_path: Path) -> None:
    made = TroveStorage(image).plain(full)
    done = run(*words(image, made, tmp_path), "--checksum", "0" * 32)
    assert done.returncode == 1
    assert "data_damaged" in done.stderr
    assert not (tmp_path / "back").exists()


def test_the_engine_is_not_known(image: Image, full: Stream, tmp_path: Path) -> None:
    made = TroveStorage(image).joined(full, headers=False)
    arguments = words(image, made, tmp_path)
    done = run(*arguments)
    assert done.returncode == 2
    assert "BACKUP_AGENT_ENGINE__KIND" in done.stderr
    kind = {"BACKUP_AGENT_ENGINE__KIND": "mariadb-backup"}
    done = run(*arguments, environment=kind)
    assert done.returncode == 0, done.stderr
    assert checksums_of(tmp_path / "back", tmp_path / "server") == full.tables


def test_the_login_of_the_environment(
    full: Stream,
    small_server: MariaDB,
    swift_behind_keystone: SwiftServer,
    keystone: KeystoneServer,
    tmp_path: Path,
) -> None:
    token = keystone.token(keystone.agent, keystone.project_id)
    image = Image(tmp_path, small_server, swift_behind_keystone, token=token)
    made = TroveStorage(image).joined(full)
    environment = {
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "OS_AUTH_URL": keystone.auth_url,
        "OS_USERNAME": keystone.agent.name,
        "OS_USER_DOMAIN_NAME": keystone.agent.domain,
        "OS_PASSWORD": keystone.agent.password,
        "OS_PROJECT_NAME": keystone.project,
        "OS_PROJECT_DOMAIN_NAME": keystone.project_domain,
    }
    back = tmp_path / "back"
    done = run("--local", "--trove", made.location, back, environment=environment)
    assert done.returncode == 0, done.stderr
    assert checksums_of(back, tmp_path / "server") == full.tables


LOCATION = "http://127.0.0.1:1/v1/AUTH_a/c/a17461ab-6c97-4abf-8890-9f8b10886ecc.xbstream.gz"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--trove", LOCATION], "add the --local flag"),
        (["--local", LOCATION], "add the --trove flag"),
        (["--local", str(uuid4()), "--checksum", "0"], "are for a backup of OpenStack Trove"),
        (["--local", "--trove", str(uuid4())], "is not the location of a backup"),
    ],
)
def test_options_that_do_not_fit(
    image: Image, tmp_path: Path, arguments: Sequence[str], says: str
) -> None:
    done = run("--config", agent_toml(image, tmp_path), *arguments, tmp_path / "back")
    assert done.returncode == 2
    assert says in done.stderr


def test_a_directory_has_no_backups_of_trove(image: Image, tmp_path: Path) -> None:
    config = agent_toml(image, tmp_path)
    store = f"file://{tmp_path}"
    arguments = ["--store", store, "--local", "--trove", LOCATION]
    done = run("--config", config, *arguments, tmp_path / "back")
    assert done.returncode == 2
    assert "are in Swift" in done.stderr
