"""For each fault planted on this machine, exactly the right check fails and names the cure."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.selftest.check import Verdict
from tests.selftest.site import Site, another_user, fails, labels, look, warns
from tests.stack.agent import Tables, write_private
from tests.stack.mariadb import AGENT_PASSWORD

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_nothing_is_wrong(site: Site) -> None:
    """Check the condition that the other tests of this module rely on."""
    results = site.look()
    warns(results)
    assert labels(results, Verdict.SKIP) == set()


# --- configuration ----------------------------------------------------------------------------


def test_no_configuration(tmp_path: Path) -> None:
    fails(look(tmp_path / "none.toml"), "configuration: file", "--config")


@pytest.mark.parametrize("text", ["[agent\n", "[agent]\ninstance_id = 3\n", "\x00", ""])
def test_a_configuration_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    fails(look(path), "configuration: file", "correct th")


def test_a_group_alone_says_that_it_has_no_configuration(tmp_path: Path) -> None:
    fails(look(tmp_path / "none.toml", "broker"), "broker: reach", "--config")


def test_a_section_is_missing(site: Site) -> None:
    config = site.agent.config
    text = config.read_text()
    write_private(config, text[: text.index("[keys]")])
    fails(site.look(), "configuration: sections", "add [keys]")


def test_a_misspelt_variable(site: Site) -> None:
    """The agent would ignore the variable, and the setting would not be as the operator expects."""
    results = site.look("configuration", environment={"BACKUP_AGENT_STORE_USER": "x"})
    fails(results, "configuration: file", "name it BACKUP_AGENT_STORE__USER")
    results = site.look("configuration", environment={"BACKUP_AGENT_OF_OLD": "x"})
    warns(results, "configuration: environment")


def test_a_crash_point_of_the_tests_is_set(site: Site) -> None:
    results = site.look("configuration", environment={"BACKUP_AGENT_CRASH_AT": "accepted"})
    fails(results, "configuration: environment", "from the environment")


def test_a_secret_that_others_can_read(site: Site) -> None:
    path = site.agent.folder / "store-key"
    path.chmod(0o644)
    fails(site.look(), "configuration: store key", f"chmod 0600 {path}")


def test_a_secret_that_is_not_there(site: Site) -> None:
    path = site.agent.folder / "broker-password"
    path.unlink()
    fails(
        site.look("configuration", "broker"),
        "configuration: broker password",
        f"make {path}",
        "0600",
    )


# --- host -------------------------------------------------------------------------------------


@contextmanager
def tiny_filesystem(folder: Path) -> Iterator[Path]:
    """Yield the directory of a full filesystem of 256 KiB."""
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    try:
        with (folder / "full").open("wb", buffering=0) as file:
            assert file.write(bytes(1 << 20)) < 1 << 20
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@needs_root
def test_a_full_disk(site: Site, tmp_path: Path) -> None:
    with tiny_filesystem(tmp_path / "full") as folder:
        site.write({"agent": {"state_folder": folder}})
        fails(site.look(), "host: state space", "free some space", str(folder))


def test_a_budget_that_holds_no_two_segments(site: Site) -> None:
    site.write({"pipeline": {"memory_bytes": 16 << 20, "segment_bytes": 16 << 20}})
    fails(site.look("host", "data path"), "host: memory", "raise [pipeline] memory_bytes")


# --- database ---------------------------------------------------------------------------------


def test_a_database_that_does_not_run(site: Site) -> None:
    mariadb = site.agent.mariadb
    mariadb.stop()
    try:
        results = site.look()
    finally:
        mariadb.start()
    fails(results, "database: reach", "start the server", "[database] socket")


def test_a_wrong_database_password(site: Site, tmp_path: Path) -> None:
    write_private(tmp_path / "wrong", "not the password")
    site.write({"database": {"password_file": tmp_path / "wrong"}})
    fails(site.look("host", "database"), "database: login", "[database] password_file")


@contextmanager
def another_account(site: Site, privileges: str) -> Iterator[Tables]:
    """Create a database user with these privileges, and yield the settings to use it."""
    account = "'self_test'@'localhost'"
    site.agent.mariadb.execute_many(
        f"CREATE USER {account} IDENTIFIED VIA mysql_native_password",
        f"GRANT {privileges} ON *.* TO {account}",
    )
    with site.agent.mariadb.connect() as connection, connection.cursor() as cursor:
        cursor.execute(f"ALTER USER {account} IDENTIFIED BY %s", (AGENT_PASSWORD,))
    try:
        yield {"database": {"user": "self_test"}}
    finally:
        site.agent.mariadb.query(f"DROP USER {account}")


def test_a_missing_privilege(site: Site) -> None:
    with another_account(site, "RELOAD, BINLOG MONITOR, REPLICA MONITOR") as overrides:
        site.write(overrides)
        fails(site.look(), "database: privileges", "GRANT PROCESS ON *.* TO 'self_test'")


def test_more_privileges_than_needed(site: Site) -> None:
    with another_account(site, "ALL PRIVILEGES") as overrides:
        site.write(overrides)
        warns(site.look("database"), "database: surplus privileges")


def test_an_administrators_account_is_not_told_to_give_its_rights_up(site: Site) -> None:
    site.write({"database": {"user": site.agent.mariadb.admin, "password_file": None}})
    results = site.look("database")
    warns(results, "database: surplus privileges")
    (cure,) = (result.cure for result in results if result.name == "surplus privileges")
    assert "systemd/grants.sql" in cure
    assert "REVOKE" not in cure


def test_no_engine(site: Site) -> None:
    site.write({"engine": {"program": "/nowhere/mariadb-backup"}})
    fails(site.look(), "database: engine", "install", "[engine] program")


def test_an_engine_of_another_series(site: Site, tmp_path: Path) -> None:
    program = tmp_path / "mariadb-backup"
    program.write_text(
        "#!/bin/sh\necho 'mariadb-backup based on MariaDB server 10.3.39-MariaDB Linux' >&2\n"
    )
    program.chmod(0o755)
    site.write({"engine": {"program": program}})
    fails(site.look("database"), "database: engine version", "install")


def test_no_extractor(site: Site) -> None:
    site.write({"engine": {"extractor": "/nowhere/mbstream"}})
    fails(site.look("database"), "database: extractor", "[engine] extractor")


@needs_root
def test_a_datadir_that_the_agent_may_not_read(site: Site, scratch: Path, tmp_path: Path) -> None:
    """Run the self-test as another user, who owns all files of the agent but not the datadir."""
    agent = site.agent
    secret = agent.folder / "database-password"
    write_private(secret, AGENT_PASSWORD)
    site.write({"database": {"password_file": secret}})
    modes = {folder: folder.stat().st_mode for folder in (scratch, agent.mariadb.datadir)}
    owned = [agent.folder, *agent.folder.rglob("*")]
    scratch.chmod(0o711)
    agent.mariadb.datadir.chmod(0o700)
    for path in owned:
        os.chown(path, NOBODY, -1)
    try:
        with another_user(NOBODY):
            results = site.look()
    finally:
        for path in owned:
            os.chown(path, 0, -1)
        for folder, mode in modes.items():
            folder.chmod(mode)
        secret.unlink()
    fails(results, "database: datadir", f"owner of {agent.mariadb.datadir}", "User=mysql")
    assert "host: user" in labels(results, Verdict.WARN)


@needs_root
def test_root_is_no_fault_unless_the_agent_is_another_user(site: Site) -> None:
    """Under root, the engine runs as the owner of the datadir, who also gets the restored files."""
    datadir, state = site.agent.mariadb.datadir, site.agent.folder / "state"
    state.mkdir(exist_ok=True)
    owners = {folder: folder.stat().st_uid for folder in (datadir, state)}
    name = pwd.getpwuid(NOBODY).pw_name
    try:
        os.chown(datadir, NOBODY, -1)
        [user] = [one for one in site.look("host") if one.name == "user"]
        assert user.verdict is Verdict.PASS
        assert f"the engine runs as {name}" in user.found
        os.chown(state, NOBODY, -1)
        [user] = [one for one in site.look("host") if one.name == "user"]
        assert user.verdict is Verdict.WARN
        assert f"the agent here runs as {name}" in user.found
    finally:
        for folder, owner in owners.items():
            os.chown(folder, owner, -1)


def test_directories_in_the_datadir_that_are_no_schemas(site: Site) -> None:
    datadir = site.agent.mariadb.datadir
    (datadir / "lost+found").mkdir()
    (datadir / ".cache").mkdir()
    try:
        fails(site.look("database"), "database: datadir", "ignore_db_dirs")
        (datadir / ".cache").rmdir()
        results = site.look("database")
        (found,) = (one for one in results if one.label == "database: datadir")
        assert "without lost+found" in str(found)
    finally:
        (datadir / "lost+found").rmdir()
        shutil.rmtree(datadir / ".cache", ignore_errors=True)


# --- keys -------------------------------------------------------------------------------------


def test_a_key_that_others_can_read(site: Site) -> None:
    key = site.agent.folder / "keys" / "stack.key"
    key.chmod(0o644)
    try:
        fails(site.look(), "keys: files", f"chmod 0600 {key}")
    finally:
        key.chmod(0o600)


def test_no_active_key(site: Site) -> None:
    site.write({"keys": {"active": "another"}})
    fails(site.look(), "keys: active", "put it there as another.key", "keygen")


def test_no_recovery_key(site: Site) -> None:
    site.write({"keys": {"recovery": []}})
    warns(site.look("keys"), "keys: recovery")


def test_a_recovery_key_that_is_not_there(site: Site) -> None:
    site.write({"keys": {"recovery": ["lost"]}})
    fails(site.look("keys"), "keys: recovery", "lost.pub")


def test_no_encryption(site: Site) -> None:
    site.write({"keys": {"encrypt": False}})
    warns(site.look("keys"), "keys: encryption")


def test_programs_are_there() -> None:
    """The tests above prove nothing on a machine without the engine."""
    assert shutil.which("mariadb-backup")
    assert shutil.which("mbstream")
