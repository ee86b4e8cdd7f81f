"""The configuration that `--store` implies, with an agent.toml and without one."""

import logging
import pwd
import re
import stat
from argparse import Namespace
from os import geteuid
from pathlib import Path

import pytest

from agent import wiring
from agent.cli import embedded
from agent.cli.main import main
from agent.config.reading import load
from agent.config.settings import Config
from agent.errors import ConfigInvalid, KeyUnusable, UsageWrong
from agent.store.directory.store import DirectoryStore
from agent.store.swift.store import SwiftStore

INSTANCE = "a17461ab-6c97-4abf-8890-9f8b10886ecc"
TOML = f"""\
[agent]
instance_id = "{INSTANCE}"
tenant_id = "t"
state_folder = "state"
[store]
url = "swift:http://127.0.0.1:1/auth/v1.0"
user = "test:tester"
key_file = "store-key"
"""


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide an agent.toml of this machine from the tests, and leave logging as it is."""
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    monkeypatch.setattr(embedded, "DEFAULT_PATH", tmp_path / "etc" / "agent.toml")


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")}


def config_of(tmp_path: Path, environment: dict[str, str], url: str = "file:///b") -> Config:
    return embedded.configuration(tmp_path / "etc" / "agent.toml", url, environment)


def test_all_follows_from_the_user(tmp_path: Path, home: dict[str, str]) -> None:
    config = config_of(tmp_path, home)
    assert config.agent.state_folder == tmp_path / "state" / "backup-agent"
    assert config.agent.tenant_id == "local"
    assert config.database.user == pwd.getpwuid(geteuid()).pw_name
    assert config.database.socket == Path("/run/mysqld/mysqld.sock")
    assert config.keys is None
    assert config.broker is None
    again = config_of(tmp_path, home)
    assert again == config
    kept = config.agent.state_folder / "instance-id"
    assert kept.read_text() == f"{config.agent.instance_id}\n"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700


def test_without_xdg_it_is_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for environment in ({}, {"XDG_STATE_HOME": "relative"}):
        config = config_of(tmp_path, environment)
        assert config.agent.state_folder == tmp_path / ".local/state/backup-agent"


def test_the_environment_overrides_all_but_what_was_typed(
    tmp_path: Path, home: dict[str, str]
) -> None:
    environment = {
        **home,
        "BACKUP_AGENT_AGENT__STATE_FOLDER": str(tmp_path / "mine"),
        "BACKUP_AGENT_DATABASE__USER": "backup",
        "BACKUP_AGENT_STORE__URL": "file:///elsewhere",
        "BACKUP_AGENT_STORE__CONTAINER": "c",
    }
    config = config_of(tmp_path, environment)
    assert (tmp_path / "mine" / "instance-id").exists()
    assert config.database.user == "backup"
    assert config.store is not None
    assert (config.store.url, config.store.container) == ("file:///b", "c")


def test_the_key_is_made_once_and_found_again(
    tmp_path: Path, home: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    typed = Namespace(store="file:///b", config=tmp_path / "etc" / "agent.toml")
    bare = config_of(tmp_path, home)
    with pytest.raises(KeyUnusable, match="no master key in"):
        embedded.need_key(bare, typed)
    fresh = embedded.fresh_key(bare, typed)
    assert fresh is not None
    made = fresh.config
    assert not (made.agent.state_folder / "keys").exists()
    fresh.keep()
    [key] = (made.agent.state_folder / "keys").iterdir()
    assert re.fullmatch(rf"local-{made.agent.instance_id[:8]}-\d{{8}}-[0-9a-f]{{6}}", key.stem)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    said = capsys.readouterr().err
    assert str(key) in said
    assert key.read_text().strip() not in said
    assert config_of(tmp_path, home) == made
    assert embedded.fresh_key(made, typed) is None
    embedded.need_key(made, typed)
    assert capsys.readouterr().err == ""
    wiring.keyring(made)


def test_a_key_brought_from_another_machine_is_used(tmp_path: Path, home: dict[str, str]) -> None:
    keys = config_of(tmp_path, home).agent.state_folder / "keys"
    keys.mkdir()
    (keys / "local-other.key").write_text("x")
    config = config_of(tmp_path, home)
    assert config.keys is not None
    assert config.keys.active == "local-other"
    own = f"local-{config.agent.instance_id[:8]}"
    (keys / f"{own}.key").write_text("x")
    (keys / "zzz.key").write_text("x")
    both = config_of(tmp_path, home).keys
    assert both is not None
    assert both.active == own
    for later in (f"{own}-20261130-ffffff", f"{own}-20261201-000000"):
        (keys / f"{later}.key").write_text("x")
    several = config_of(tmp_path, home).keys
    assert several is not None
    assert several.active == f"{own}-20261201-000000"


def test_a_folder_of_keys_may_be_named_alone(tmp_path: Path, home: dict[str, str]) -> None:
    keys = tmp_path / "escrow"
    keys.mkdir()
    environment = {**home, "BACKUP_AGENT_KEYS__FOLDER": str(keys)}
    with pytest.raises(KeyUnusable, match=f"no master key in {keys}, which BACKUP_AGENT_KEYS__F"):
        config_of(tmp_path, environment)
    (keys / "one.key").write_text("x")
    config = config_of(tmp_path, environment)
    assert config.keys is not None
    assert (config.keys.folder, config.keys.active) == (keys, "one")


def test_what_is_wrong_without_a_file_is_not_corrected_in_one(
    tmp_path: Path, home: dict[str, str]
) -> None:
    with pytest.raises(ConfigInvalid, match=r"\[broker\] url: is missing") as caught:
        config_of(tmp_path, {**home, "BACKUP_AGENT_BROKER__QUEUE_TYPE": "quorum"})
    assert "BACKUP_AGENT_<SECTION>__<KEY>" in caught.value.hint
    assert "that file" not in caught.value.hint


def test_a_broken_instance_id_is_told(tmp_path: Path, home: dict[str, str]) -> None:
    kept = config_of(tmp_path, home).agent.state_folder / "instance-id"
    kept.write_text("nonsense\n")
    with pytest.raises(
        ConfigInvalid, match=r"without an agent.toml is wrong: \[agent\] instance_id"
    ):
        config_of(tmp_path, home)


def test_a_state_folder_that_can_not_be_made_is_told(tmp_path: Path, home: dict[str, str]) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(ConfigInvalid, match="can't be made") as caught:
        config_of(tmp_path, home)
    assert caught.value.code == "config_invalid"
    assert "BACKUP_AGENT_AGENT__STATE_FOLDER" in caught.value.hint


def test_an_agent_toml_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(TOML)
    config = embedded.configuration(path, "file:///b%20c", {})
    assert config.agent == load(path).agent
    store = wiring.store(config)
    assert isinstance(store, DirectoryStore)
    assert store.location == "file:///b%20c/database_backups_t"
    (tmp_path / "store-key").write_text("k")
    (tmp_path / "store-key").chmod(0o600)
    assert isinstance(wiring.store(load(path)), SwiftStore)


def test_a_named_configuration_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="can't be read: No such file"):
        embedded.configuration(tmp_path / "none.toml", "file:///b", {})


@pytest.mark.parametrize(
    "url", ["/var/backups", "http://x", "", "file://host/x", "s3://b", "swift:x/a"]
)
def test_what_is_no_store_is_refused(tmp_path: Path, home: dict[str, str], url: str) -> None:
    with pytest.raises(UsageWrong, match="is not a store that can be used here"):
        config_of(tmp_path, home, url)
    assert not (tmp_path / "state").exists()


def test_a_password_in_a_store_is_not_said_again(tmp_path: Path, home: dict[str, str]) -> None:
    with pytest.raises(UsageWrong) as raised:
        config_of(tmp_path, home, "https://user:hunter2@swift.example.com/auth")
    assert "hunter2" not in str(raised.value)
    assert "swift.example.com" in str(raised.value)


@pytest.mark.parametrize("url", ["file:///", "file:////", "file:///a/../b", "file:///a%00b"])
def test_what_names_no_folder_is_refused(tmp_path: Path, home: dict[str, str], url: str) -> None:
    with pytest.raises(ConfigInvalid, match="names no folder"):
        wiring.store(config_of(tmp_path, home, url))


@pytest.mark.parametrize(
    "verb",
    [
        ("backup-create", INSTANCE, "base"),
        ("backup-delete", INSTANCE),
        ("restore", INSTANCE, "/x"),
    ],
)
def test_a_store_is_for_this_process(
    capsys: pytest.CaptureFixture[str], verb: tuple[str, ...]
) -> None:
    assert main([*verb, "--store", "file:///b"]) == 2
    assert "usage_wrong: --store names a store for this process" in capsys.readouterr().err
