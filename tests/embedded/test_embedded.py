"""`backup-create --local --store file:///...` with nothing but a database and a folder."""

import base64
import json
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from agent.config.settings import DEFAULT_PATH
from agent.journal import Journal
from agent.machine.lock import only_agent
from agent.model import PingTask, ReportDraft, TaskStatus
from tests.embedded.user import User
from tests.journal.looks import unsent
from tests.stack.agent import write_private
from tests.stack.mariadb import MariaDB
from tests.stack.process import ServerProcess, poll

# slow enough to be interrupted midway, with one segment per MiB
SLOW = {
    "BACKUP_AGENT_PIPELINE__BYTES_PER_SECOND": str(8 << 20),
    "BACKUP_AGENT_PIPELINE__SEGMENT_BYTES": str(1 << 20),
}

pytestmark = pytest.mark.skipif(DEFAULT_PATH.exists(), reason=f"{DEFAULT_PATH} is there")


@pytest.fixture
def user(tmp_path: Path, mariadb: MariaDB) -> User:
    return User(tmp_path / "home", mariadb)


@pytest.fixture
def running(user: User) -> Iterator[ServerProcess]:
    """Yield the process of a running backup that has already stored some segments."""
    process = user.spawn("backup-create", "--local", "slow", **SLOW)
    segments = user.backups / "database_backups_local_segments"
    poll("segments are stored", lambda: len(list(segments.glob("*/*/0*"))) > 1, 60)
    yield process
    process.stop(signal.SIGKILL)


def only_backup(user: User) -> dict[str, object]:
    [row] = user.asked("backup-list")
    shown: dict[str, object] = user.asked("backup-show", row["id"])
    return shown


def restored_checksums(user: User, tmp_path: Path, backup_id: str) -> dict[str, int]:
    datadir = tmp_path / "restored"
    done = user.run("restore", "--local", backup_id, datadir)
    assert done.returncode == 0, done.stderr
    server = MariaDB(tmp_path / "second", datadir)
    server.start()
    try:
        return server.checksums()
    finally:
        server.stop()


def test_backups_and_restore_with_nothing_but_a_database(
    user: User, mariadb: MariaDB, tmp_path: Path
) -> None:
    full = user.run("backup-create", "--local", "base", "--wait")
    assert full.returncode == 0, full.stderr
    base = property_table(full.stdout)
    assert (base["name"], base["status"]) == ("base", "COMPLETED")
    [key] = (user.state / "keys").iterdir()
    assert f"made the master key {key}. Keep a copy of this file" in full.stderr
    mariadb.execute_many(
        "CREATE SCHEMA embedded",
        "CREATE TABLE embedded.t (id INT PRIMARY KEY, word VARCHAR(20)) ENGINE=InnoDB",
        "INSERT INTO embedded.t SELECT seq, CONCAT('word ', seq) FROM shop.seq_1_to_5000",
    )
    try:
        mariadb.checkpoint()
        wanted = mariadb.checksums()
        instance = base["instance_id"]
        inc = user.asked("backup-create", instance, "--local", "--parent", base["id"], "inc")
        assert (inc["instance_id"], inc["parent_id"]) == (instance, base["id"])
    finally:
        mariadb.query("DROP SCHEMA embedded")
    assert [key] == list((user.state / "keys").iterdir())
    assert [row["name"] for row in user.asked("backup-list")] == ["base", "inc"]
    shown = user.asked("backup-show", inc["id"])
    segments = f"{user.store}/database_backups_local_segments/{inc['id']}/"
    assert shown["locationRef"].startswith(segments)
    assert restored_checksums(user, tmp_path, inc["id"]) == wanted
    for path in (user.state, *user.state.rglob("*"), user.backups, *user.backups.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def property_table(text: str) -> dict[str, str]:
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("|")]
    return {name.strip(): value.strip() for name, value in rows}


def test_a_signal_ends_it_cleanly(user: User, running: ServerProcess) -> None:
    engines = psutil.Process(running.pid).children(recursive=True)
    running.stop(signal.SIGINT, 60)
    assert running.returncode == 1
    assert "interrupted: the backup was interrupted" in running.log.read_text()
    shown = only_backup(user)
    assert shown["status"] == "FAILED"
    assert user.segments(str(shown["id"])) == []
    assert outbox(user) == 0
    assert not any(engine.is_running() for engine in engines)


_KILLED_AT_THE_END = """
import os, sys
from agent.cli.main import main
from agent.records.manifest import Manifest
Manifest.publish = lambda *_: os._exit(9)
sys.exit(main(sys.argv[1:]))
"""


def test_the_next_run_settles_what_a_kill_left(user: User, running: ServerProcess) -> None:
    """The next run cleans up a backup killed midway, and completes a commit that had begun."""
    running.stop(signal.SIGKILL)
    midway = only_backup(user)
    assert midway["status"] == "BUILDING"
    assert user.segments(str(midway["id"]))
    assert "0 left alone; 1 touched within 24 hours" in user.run("gc").stdout
    killed = user.script(_KILLED_AT_THE_END, "backup-create", "--local", "commit")
    assert killed.returncode == 9, killed.stderr
    statuses = {row["name"]: row["status"] for row in user.asked("backup-list")}
    assert statuses == {"slow": "FAILED", "commit": "BUILDING"}
    assert user.segments(str(midway["id"])) == []
    assert "run the command again" in user.run("backup-show", str(midway["id"])).stdout
    # a run with another store doesn't touch these backups
    store, user.store = user.store, f"{user.store}-elsewhere"
    nowhere = str(user.home / "none")
    failed = user.run("backup-create", "--local", "x", BACKUP_AGENT_DATABASE__SOCKET=nowhere)
    assert "database_unreachable" in failed.stderr
    user.store = store
    user.create("next")
    statuses = {row["name"]: row["status"] for row in user.asked("backup-list")}
    assert statuses == {"slow": "FAILED", "commit": "COMPLETED", "next": "COMPLETED"}
    assert outbox(user) == 0
    assert not any(os.listdir(folder) for folder in user.backups.glob("*/%tmp"))


_STORE_IS_FULL = """
import sys
from agent.cli.main import main
from agent.errors import StoreFull
from agent.records.manifest import Manifest
def full(*_):
    raise StoreFull("no room")
Manifest.publish = full
sys.exit(main(sys.argv[1:]))
"""


def test_another_instance_is_refused(user: User) -> None:
    other = user.run("backup-create", "--local", str(uuid4()), "base")
    assert other.returncode == 2
    assert "usage_wrong: --local backs up the instance" in other.stderr
    assert not user.backups.exists()


def test_the_daemons_tasks_and_reports_are_left_to_the_daemon(user: User) -> None:
    config = user.agent_toml()
    journal = Journal(user.state / "journal.sqlite", str(uuid4()), str(uuid4()))
    waiting, cut_off = (PingTask(task_id=str(uuid4())) for _ in range(2))
    for task, status in ((waiting, TaskStatus.ACCEPTED), (cut_off, TaskStatus.RUNNING)):
        journal.accept(task, ReportDraft(task_id=task.task_id, type=task.type, status=status))
    journal.close()
    view = user.create("base", "--config", str(config))
    assert view["locationRef"].startswith(f"{user.store}/database_backups_toml_segments/")
    journal = Journal(user.state / "journal.sqlite", str(uuid4()), str(uuid4()))
    assert journal.status(waiting.task_id) is TaskStatus.ACCEPTED
    assert [one.task for one in journal.running()] == [cut_off]
    reports = [(report.task_id, report.status) for report in journal.take_reports()]
    journal.close()
    assert reports == [
        (waiting.task_id, TaskStatus.ACCEPTED),
        (cut_off.task_id, TaskStatus.RUNNING),
    ]


def outbox(user: User) -> int:
    journal = Journal(user.state / "journal.sqlite", str(uuid4()), str(uuid4()))
    try:
        return unsent(journal)
    finally:
        journal.close()


def test_beside_a_running_agent_it_says_what_to_do(user: User) -> None:
    with only_agent(user.state / "lock"):
        done = user.run("backup-create", "--local", "base")
    assert done.returncode == 1
    assert "instance_busy: another agent runs already" in done.stderr
    assert "remove the --local flag" in done.stderr
    assert not user.backups.exists()


def test_a_backup_that_fails_says_why(user: User, tmp_path: Path) -> None:
    done = user.run(
        "backup-create", "--local", "base", BACKUP_AGENT_DATABASE__SOCKET=str(tmp_path / "none")
    )
    assert done.returncode == 1
    assert "backup-agent: database_unreachable: " in done.stderr
    assert done.stderr.count("database_unreachable") == 1
    # no backup was begun, so none has an id
    assert done.stdout == ""
    nowhere = str(tmp_path / "none")
    done = user.run(
        "backup-create", "--local", "base", "--json", BACKUP_AGENT_DATABASE__SOCKET=nowhere
    )
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert sorted(said) == ["error", "task_id"]
    assert said["error"]["code"] == "database_unreachable"
    assert sorted(said["error"]) == ["code", "hint", "message"]
    assert user.asked("backup-list") == []


def test_a_backup_that_was_begun_and_fails_has_a_row_and_a_reason(user: User) -> None:
    done = user.script(_STORE_IS_FULL, "backup-create", "--local", "begun", "--json")
    assert done.returncode == 1, done.stderr
    view = json.loads(done.stdout)
    assert (view["name"], view["status"]) == ("begun", "FAILED")
    assert view["error"]["code"] == "store_full"
    shown = user.run("backup-show", view["id"])
    assert shown.returncode == 0
    assert "store_full: no room" in shown.stdout


def test_without_a_key_a_restore_says_where_to_put_it(user: User, tmp_path: Path) -> None:
    base = user.create("base")
    [key] = (user.state / "keys").iterdir()
    key.rename(tmp_path / key.name)
    [row] = user.asked("backup-list")
    assert row["record_state"] == "key-not-here"
    done = user.run("restore", "--local", base["id"], tmp_path / "restored")
    assert done.returncode == 2
    assert f"key_unusable: there is no master key in {key.parent}" in done.stderr
    # another machine has its own state and a copy of the key
    (tmp_path / "other" / "backup-agent" / "keys").mkdir(parents=True, mode=0o700)
    (tmp_path / key.name).rename(tmp_path / "other" / "backup-agent" / "keys" / key.name)
    [row] = user.asked("backup-list", XDG_STATE_HOME=str(tmp_path / "other"))
    assert row["record_state"] == "ok"


def test_a_lost_key_is_named_and_the_next_has_an_id_of_its_own(user: User, tmp_path: Path) -> None:
    base = user.create("base")
    [lost] = (user.state / "keys").iterdir()
    copy = tmp_path / lost.name
    lost.rename(copy)
    lost.parent.rmdir()
    refused = user.run("backup-create", "--local", "inc", "--parent", base["id"])
    assert refused.returncode == 1
    assert f"key_not_here: the record of backup {base['id']} can't be checked" in refused.stderr
    assert f"signed by the master key '{lost.stem}', which is not on this machine" in refused.stderr
    assert not lost.parent.exists()
    done = user.run("backup-create", "--local", "second")
    assert done.returncode == 0, done.stderr
    assert f"WARNING: the master key {lost.stem} of earlier backups (1)" in done.stderr
    assert f"put a copy of that key back as {lost}, mode 0600" in done.stderr
    [made] = lost.parent.iterdir()
    assert made.name != lost.name
    assert [row["record_state"] for row in user.asked("backup-list")] == ["key-not-here", "ok"]
    copy.rename(lost)
    assert [row["record_state"] for row in user.asked("backup-list")] == ["ok", "ok"]
    again = user.run("backup-create", "--local", "inc", "--parent", base["id"])
    assert again.returncode == 0
    assert "WARNING" not in again.stderr
    assert sorted(lost.parent.iterdir()) == sorted([lost, made])


def test_the_hint_of_another_key_with_that_id_leads_to_the_end(user: User, tmp_path: Path) -> None:
    base = user.create("base")
    [path] = (user.state / "keys").iterdir()
    escrow = tmp_path / "escrow"
    escrow.mkdir()
    path.rename(escrow / path.name)
    write_private(path, base64.b64encode(bytes(32)).decode())
    target = tmp_path / "restored"
    done = user.run("restore", "--local", base["id"], target)
    assert done.returncode == 1
    assert f"key_not_here: the record of backup {base['id']} can't be checked" in done.stderr
    named = f"BACKUP_AGENT_KEYS__FOLDER=FOLDER and BACKUP_AGENT_KEYS__ACTIVE={path.stem} "
    assert named in done.stderr
    folder = {"BACKUP_AGENT_KEYS__FOLDER": str(escrow)}
    for environment in (folder, folder | {"BACKUP_AGENT_KEYS__ACTIVE": path.stem}):
        [row] = user.asked("backup-list", **environment)
        assert row["record_state"] == "ok"


def test_hints_fit_how_the_command_was_given(user: User) -> None:
    listed = user.run("backup-list")
    assert "the first backup makes a missing container. If there was a backup" in listed.stderr
    assert "--store or [store] url" in listed.stderr
    user.backups.mkdir(parents=True)
    (user.backups / "database_backups_local").mkdir()
    (user.backups / "database_backups_local_segments").mkdir()
    shown = user.run("backup-show", str(uuid4()))
    assert "backup_unknown" in shown.stderr
    assert "backup-list, with the same --store or --config" in shown.stderr


@pytest.mark.parametrize("by_link", [False, True])
def test_a_store_in_the_datadir_is_refused(
    user: User, mariadb: MariaDB, tmp_path: Path, by_link: bool
) -> None:
    datadir = mariadb.datadir
    if by_link:
        datadir = tmp_path / "link"
        datadir.symlink_to(mariadb.datadir)
    user.store = f"file://{datadir}/bk"
    done = user.run("backup-create", "--local", "base")
    assert done.returncode == 1
    assert f"config_invalid: the store's folder {datadir}/bk is in" in done.stderr
    assert "name a folder outside of it" in done.stderr
    assert not (mariadb.datadir / "bk").exists()
    assert not (user.state / "keys").exists()


def test_a_store_in_the_datadir_is_refused_if_only_the_server_knows_it(
    user: User, mariadb: MariaDB
) -> None:
    """InnoDB's own files may be outside the datadir, so a datadir may lack `ibdata1`."""
    system = mariadb.datadir / "ibdata1"
    hidden = system.rename(system.with_name("ibdata1.hidden"))
    user.store = f"file://{mariadb.datadir}/bk"
    try:
        done = user.run("backup-create", "--local", "base")
    finally:
        hidden.rename(system)
    assert f"{mariadb.datadir}/bk is in {mariadb.datadir}, the server's own" in done.stderr
    assert not (mariadb.datadir / "bk").exists()
