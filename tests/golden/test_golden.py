"""A stored backup can be restored for ever, by the agent and by the commands of the docs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.cli.embedded import TENANT
from agent.config.secrets import load_keyring
from agent.config.settings import KeysSection
from agent.keys.keyring import RecordState
from agent.model import FORMAT_VERSION
from agent.operations.backup.preflight import series
from agent.records.catalogue import Catalogue
from agent.store.directory.store import DirectoryStore
from tests.conftest import need
from tests.golden import make, places, rescue
from tests.stack.mariadb import MariaDB

_MOST_BYTES = 3 << 19  # 1.5 MiB in the repository


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return a copy of the store, because an agent writes a note into the store that it uses."""
    copied = tmp_path / "store"
    subprocess.run(["cp", "-r", make.STORE, copied], check=True)
    return copied


def checksums_of(datadir: Path, folder: Path) -> dict[str, int]:
    """Return the checksums of a server on a restored datadir. It lets every user in."""
    server = MariaDB(folder, datadir, {"skip-grant-tables": "ON"})
    try:
        server.start()
        return server.checksums()
    finally:
        server.stop()


def configure(folder: Path, store: Path) -> Path:
    places.private_keys(folder / "keys")
    config = folder / "agent.toml"
    config.write_text(
        f"""
        [agent]
        instance_id = "a17461ab-6c97-4abf-8890-9f8b10886ecc"
        tenant_id = "{make.TENANT}"
        state_folder = "{folder}/state"
        [store]
        url = "file://{store}"
        [keys]
        folder = "{folder}/keys"
        active = "{make.KEY_ID}"
        """
    )
    return config


def engine_here() -> str:
    """Return the engine's version text. Only an engine of the same series prepares a backup."""
    argv = ["mariadb-backup", "--version"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_it_is_the_one_that_was_made() -> None:
    assert make.SUMS.read_text() == make.sums(), "the golden files have changed"
    sizes = [file.stat().st_size for file in make.STORE.rglob("*") if file.is_file()]
    assert sum(sizes) < _MOST_BYTES


def test_its_records_and_lists_are_whole(store: Path, tmp_path: Path) -> None:
    keys = places.private_keys(tmp_path / "keys")
    keyring = load_keyring(KeysSection(folder=keys, active=make.KEY_ID))
    catalogue = Catalogue(DirectoryStore(store, make.CONTAINER), keyring)
    expected = places.expected()
    assert {row.backup_id: row.state for row in catalogue.records()} == {
        expected.full: RecordState.OK,
        expected.incremental: RecordState.OK,
    }
    chain = catalogue.chain(expected.incremental)
    assert [record.id for record in chain] == [expected.full, expected.incremental]
    assert [len(list(catalogue.segments(record))) for record in chain] == [2, 1]
    for record in chain:
        assert record.format == FORMAT_VERSION, "there is no golden backup of this format"
        assert {entry.alg for entry in record.keys} == {"A256KW", "RSA-OAEP-256"}


@pytest.mark.parametrize("which", ["full", "incremental"])
def test_the_agent_restores_it(store: Path, tmp_path: Path, which: str) -> None:
    need("mariadbd", "mariadb-backup", "mbstream")
    expected = places.expected()
    argv = [sys.executable, "-m", "agent", "--config", str(configure(tmp_path, store))]
    argv += ["restore", "--local", getattr(expected, which), str(tmp_path / "back")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    made_by = series(places.record(expected.full)["engine_version"])
    if made_by not in engine_here():
        assert "engine_unsupported" in done.stderr
        assert f"install mariadb-backup {made_by}" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert checksums_of(tmp_path / "back", tmp_path / "server") == expected.checksums[which]


@pytest.mark.parametrize("key", [places.MASTER, places.RECOVERY], ids=["master", "recovery"])
def test_the_commands_of_the_page_restore_it(tmp_path: Path, key: Path) -> None:
    need("mariadbd", "mariadb-backup", "mbstream")
    expected = places.expected()
    settings: dict[str, str | Path] = {
        "FOLDER": make.STORE,
        "CONTAINER": make.CONTAINER,
        "ID": expected.incremental,
        "KEY": key,
    }
    steps = ["begin", "folder", "chain", "verify", "extract", "disarm", "prepare"]
    done = rescue.follow(steps, tmp_path, settings)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("OK: all ") == 4
    assert ("RECORD NOT CHECKED" in done.stderr) is (key == places.RECOVERY)
    assert done.stdout.splitlines()[:2] == [expected.full, expected.incremental]
    datadir = tmp_path / "rescue" / f"data-{expected.full}"
    assert done.stdout.splitlines()[-1] == f"RESTORED={datadir}"
    # A later engine uses another name for this file, and keeps the file that it found.
    prepared = [file.read_text() for file in datadir.glob("*_checkpoints")]
    assert any("backup_type = log-applied\n" in text for text in prepared)
    assert checksums_of(datadir, tmp_path / "server") == expected.checksums["incremental"]


_SYSTEMCTL = """#!/bin/sh
{ echo "$*"; ls "$ROOM"; } >> "$ROOM.told"
"""


@pytest.fixture
def installing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str | Path]:
    """Return the variables for the `install` commands, with a datadir that they replace.

    A `systemctl` in the PATH records its arguments, and the files that exist when it is called.
    """
    need("mariadbd")
    if os.geteuid() != 0:
        pytest.skip("only root gives files to the user mysql")
    programs, room = tmp_path / "bin", tmp_path / "lib"
    programs.mkdir()
    (programs / "systemctl").write_text(_SYSTEMCTL)
    (programs / "systemctl").chmod(0o755)
    (room / "mysql").mkdir(parents=True)
    (room / "mysql" / "before").touch()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return {"DATADIR": room / "mysql", "ROOM": room, "RESTORED": tmp_path / "data-x"}


def _prepared(folder: Path) -> None:
    folder.mkdir()
    (folder / "xtrabackup_checkpoints").write_text("backup_type = log-applied\n")


def test_the_datadir_is_replaced_while_the_server_is_stopped(
    installing: dict[str, str | Path], tmp_path: Path
) -> None:
    _prepared(tmp_path / "data-x")
    done = rescue.follow(["install"], tmp_path, installing)
    assert done.returncode == 0, done.stderr
    told = (tmp_path / "lib.told").read_text().split()
    assert told == [
        *("stop", "mariadb", "mysql", "mysql.new"),
        *("start", "mariadb", "mysql", "mysql.old"),
    ]
    there = tmp_path / "lib" / "mysql" / "xtrabackup_checkpoints"
    assert (there.owner(), there.parent.owner()) == ("mysql", "mysql")
    assert (tmp_path / "lib" / "mysql.old" / "before").exists()


@pytest.mark.parametrize("wrong", ["unset", "no folder", "not prepared", "link", "second time"])
def test_nothing_is_moved_before_the_new_data_is_known_to_be_there(
    installing: dict[str, str | Path], tmp_path: Path, wrong: str
) -> None:
    restored, room = tmp_path / "data-x", tmp_path / "lib"
    if wrong != "no folder":
        _prepared(restored)
    if wrong == "not prepared":
        (restored / "xtrabackup_checkpoints").write_text("backup_type = full-backuped\n")
    if wrong == "link":
        (restored / "shop").symlink_to(tmp_path)
    if wrong == "second time":
        (room / "mysql.old").mkdir()
    before = {*tmp_path.rglob("*")}
    settings = installing | ({"RESTORED": ""} if wrong == "unset" else {})
    done = rescue.follow(["install"], tmp_path, settings)
    assert done.returncode != 0
    assert {*tmp_path.rglob("*")} == before
    named = {"unset": "step 4", "second time": str(room / "mysql.old")}
    assert named.get(wrong, str(restored)) in done.stderr


@pytest.mark.parametrize("what", ["parent", "substitute"])
def test_the_commands_of_the_page_do_not_go_where_a_forged_record_says(
    store: Path, tmp_path: Path, what: str
) -> None:
    full, incremental = places.expected().full, places.expected().incremental
    file = store / make.CONTAINER / f"{incremental}.json"
    segments = store / f"{make.CONTAINER}_segments"
    if what == "substitute":
        forged = places.record(full)
        (segments / full).rename(segments / "moved")
        (segments / incremental).rename(segments / full)
        (segments / "moved").rename(segments / incremental)
    else:
        forged = places.record(incremental) | {"parent_id": "../away/../$(touch ran)"}
    file.write_text(json.dumps(forged) + "\n")
    settings: dict[str, str | Path] = {
        "FOLDER": store,
        "CONTAINER": make.CONTAINER,
        "ID": incremental,
    }
    done = rescue.follow(["begin", "folder", "chain"], tmp_path, settings)
    assert done.returncode == 1
    told = {"parent": "no id of a backup: '../away", "substitute": "is of another one"}
    assert told[what] in done.stderr
    assert {path.name for path in (tmp_path / "rescue").iterdir()} <= {
        *(incremental, f"{incremental}.json", "chain", "open_backup.py")
    }


def test_the_page_names_the_container_of_a_store_without_a_configuration() -> None:
    assert f"`database_backups_{TENANT}`" in rescue.PAGE.read_text()


def test_every_command_of_the_page_is_run_by_a_test() -> None:
    """A test here runs it, or tests/e2e/test_rescue.py or tests/dropin does on a real Swift."""
    ran_here = {"begin", "folder", "chain", "verify", "extract", "disarm", "prepare"}
    ran_here |= {"install"}
    assert set(rescue.blocks()) == ran_here | {"swift", "curl", "trove"}
    assert rescue.PAGE.read_text().count("```sh") == len(rescue.blocks())
