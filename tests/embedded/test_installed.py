"""`--local` as root beside an installed agent: root owns the secrets, mysql the state folder."""

import json
import os
import pwd
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from agent.errors import TargetRefused
from agent.journal import Journal
from agent.machine.account import hand_over
from agent.machine.lock import only_agent
from agent.model import BackupRequest, CreateTask, ReportDraft, TaskStatus, TaskStore
from tests.conftest import need
from tests.embedded.user import PROGRAM
from tests.stack.agent import Agent
from tests.stack.mariadb import SMALL_SERVER, MariaDB
from tests.stack.swift import SwiftServer

USER = "mysql"  # Debian's package of the server creates this user


def _is_here() -> bool:
    try:
        return pwd.getpwnam(USER).pw_uid > 0
    except KeyError:
        return False


pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not _is_here(), reason=f"needs root, and the OS user {USER}"
)


class _NoBroker:
    """A broker of the configuration that can't be reached."""

    url = "amqp://agent@127.0.0.1:1/"
    password = "none"


@dataclass
class Machine:
    """An agent, installed as `script/provision` does it, and its server."""

    root: Path
    agent: Agent
    server: MariaDB

    @property
    def state(self) -> Path:
        return self.agent.folder / "state"

    def run(self, *arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
        home = self.root / "home-of-root"
        home.mkdir(exist_ok=True, mode=0o700)
        own = {"HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": str(home)}
        return self.agent.cli(*arguments, environment=own | environment)

    def create(self, *arguments: str) -> dict[str, str]:
        done = self.run("backup-create", "--local", "--json", *arguments)
        assert done.returncode == 0, done.stderr
        view: dict[str, str] = json.loads(done.stdout)
        return view

    def owners(self, folder: Path) -> set[str]:
        """Return the names of the users who own any file below `folder`."""
        paths = (folder, *folder.rglob("*"))
        return {pwd.getpwuid(path.lstat().st_uid).pw_name for path in paths}


@pytest.fixture(scope="module")
def machine(swift_session: SwiftServer) -> Iterator[Machine]:
    need("mariadbd", "mariadb-install-db", "mariadb-backup", "mbstream")
    root = Path(tempfile.mkdtemp(prefix="backup-agent-installed-"))
    root.chmod(0o755)
    server = MariaDB(root / "server", options={**SMALL_SERVER, "user": USER})
    server.install()
    (server.folder / "tmp").mkdir()
    for path in (server.folder, *server.folder.rglob("*")):
        shutil.chown(path, USER, USER)
    try:
        server.start()
        server.create_agent_user()
        agent = Agent(root / "agent", _NoBroker(), swift_session, server)  # type: ignore[arg-type]
        agent.write()
        shutil.chown(agent.folder / "state", USER, USER)
        yield Machine(root, agent, server)
    finally:
        server.stop()
        shutil.rmtree(root)


def test_a_backup_and_a_restore_while_the_broker_is_away(machine: Machine) -> None:
    """The engine runs as mysql, who also owns the state and the target. Root keeps the secrets."""
    full = machine.create("base")
    assert full["status"] == "COMPLETED"
    inc = machine.create("inc", "--parent", full["id"])
    assert machine.owners(machine.state) == {USER}
    target = machine.root / "srv" / "restored"
    done = machine.run("restore", "--local", inc["id"], target)
    assert done.returncode == 0, done.stderr
    assert machine.owners(target) == {USER}
    assert f"it belongs to {USER}: start a server on it as that user\n" in done.stdout
    assert (target / "ibdata1").exists()
    assert machine.owners(machine.agent.folder / "keys") == {"root"}
    for verb in (
        ("rekey", "--to", "stack"),
        ("gc",),
        ("status",),
        ("backup-list",),
        ("self-test", "--only", "host", "--only", "store"),
        ("backup-delete", "--local", full["id"]),
    ):
        done = machine.run(*verb)
        assert "Traceback" not in done.stderr
        # self-test warns about root, and status reports that no agent consumes
        assert done.returncode == 0 or verb[0] in ("self-test", "status"), done.stderr
    assert machine.owners(machine.state) == {USER}
    left = machine.run("backup-list").stdout
    assert full["id"] not in left
    assert inc["id"] not in left


def test_a_trial_leaves_nothing_of_roots(machine: Machine) -> None:
    """Root owns no file even while the trial runs.

    Otherwise a kill would leave a scratch folder that the daemon can't use.
    """
    restored = machine.agent.folder / "restore"
    shutil.chown(restored, USER, USER)
    owners: set[str] = set()
    argv = [*PROGRAM, "--config", str(machine.agent.config), "self-test", "--full", "--json"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as trial:
        while trial.poll() is None:
            with suppress(FileNotFoundError):
                owners |= machine.owners(machine.state) | machine.owners(restored)
            select.select([], [], [], 0.02)
        assert trial.stdout
        results = json.load(trial.stdout)["results"]
    verdicts = {one["name"]: one["verdict"] for one in results if one["group"] == "trial"}
    assert set(verdicts.values()) == {"PASS"}, results
    assert owners == {USER}


def test_what_the_daemon_left_is_settled_although_the_secrets_are_closed(machine: Machine) -> None:
    """A task with its own container needs the store's key again, which only root can read."""
    agent = machine.agent
    request = BackupRequest(id=str(uuid4()), name="cut-off")
    store = TaskStore(container=f"database_backups_{agent.tenant_id}_other")
    task = CreateTask(task_id=request.id, backup=request, store=store)
    journal = Journal(machine.state / "journal.sqlite", agent.instance_id, str(uuid4()))
    running = ReportDraft(task_id=task.task_id, type=task.type, status=TaskStatus.RUNNING)
    journal.accept(task, running)
    journal.close()
    for path in machine.state.iterdir():
        shutil.chown(path, USER, USER)
    done = machine.run("backup-create", "--local", "after")
    assert done.returncode == 0, done.stderr
    journal = Journal(machine.state / "journal.sqlite", agent.instance_id, str(uuid4()))
    try:
        assert journal.status(task.task_id) is TaskStatus.FAILED
    finally:
        journal.close()


def test_beside_the_daemon_it_says_how_to_go_on(machine: Machine) -> None:
    with daemon_lock(machine.state):
        done = machine.run("backup-create", "--local", "base")
    assert done.returncode == 1
    assert f"another agent runs already with the state folder {machine.state}" in done.stderr
    assert f": process {os.getpid()}" in done.stderr
    assert "remove the --local flag" in done.stderr
    assert "systemctl stop backup-agent" in done.stderr


@contextmanager
def daemon_lock(state: Path) -> Iterator[None]:
    """Hold the lock as the daemon's user does, in this process of root."""
    with ExitStack() as lock:
        os.seteuid(pwd.getpwnam(USER).pw_uid)
        try:
            lock.enter_context(only_agent(state / "lock"))
        finally:
            os.seteuid(0)
        yield


def test_a_target_of_somebody_else_stays_theirs(tmp_path: Path) -> None:
    theirs, roots, link = tmp_path / "theirs", tmp_path / "roots", tmp_path / "link"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    roots.mkdir()
    link.symlink_to(roots)
    user = pwd.getpwnam(USER).pw_uid
    assert hand_over(theirs, user) == 65534
    with pytest.raises(TargetRefused, match="can't be used"):
        hand_over(link, user)
    assert roots.stat().st_uid == 0
    assert hand_over(roots, user) == user
    assert roots.stat().st_uid == user


def test_a_refused_restore_makes_no_target(machine: Machine) -> None:
    target = machine.root / "not-made"
    done = machine.run("restore", "--local", str(uuid4()), target)
    assert done.returncode == 1
    assert "backup_unknown" in done.stderr
    assert not target.exists()
