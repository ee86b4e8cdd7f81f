"""An agent that runs as root does not run the database's programs as root."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.config.settings import DEFAULT_PATH
from agent.engine.mariadb import MariadbBackup
from agent.engine.process import Child
from agent.errors import DatabaseUnreachable, EngineFailed, PrepareFailed
from agent.machine.os_user import OsUser, os_user, owner_of
from tests.conftest import need
from tests.embedded.user import User
from tests.engine.scripts import child_of, held, nothing_left_since
from tests.engine.test_mariadb import backup, engine_of, extract, prepare
from tests.engine.test_runs import read_all
from tests.stack.mariadb import SMALL_SERVER, MariaDB
from tests.stack.process import poll

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
PLUGIN = "file_key_management.so"
KEY = "1;" + "ab" * 32 + "\n"


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """Yield a directory that every user may pass through, like /var/lib."""
    folder = Path(tempfile.mkdtemp(prefix="backup-agent-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def mysql(place: Path) -> OsUser:
    try:
        return os_user(pwd.getpwnam("mysql").pw_uid, 0)
    except KeyError:
        pytest.skip("the package of MariaDB's server makes the user mysql")


@pytest.fixture(scope="module")
def server(place: Path, mysql: OsUser) -> Iterator[MariaDB]:
    """Yield a server of the OS user mysql, with encrypted tables and a plugin that mysql owns."""
    need("mariadbd", "mariadb-install-db", "mariadb-backup")
    plugins = place / "plugins"
    plugins.mkdir()
    installed = subprocess.run(
        ["mariadbd", "--no-defaults", "--verbose", "--help"], capture_output=True, text=True
    ).stdout
    (line,) = (one for one in installed.splitlines() if one.startswith("plugin-dir "))
    shutil.copy(Path(line.split()[1]) / PLUGIN, plugins)
    keys = place / "keys"
    keys.write_text(KEY)
    keys.chmod(0o600)
    started = MariaDB(
        place / "server",
        options=SMALL_SERVER
        | {
            "user": "mysql",
            "plugin-dir": str(plugins),
            "plugin-load-add": PLUGIN,
            "loose-file-key-management-filename": str(keys),
            "innodb-encrypt-tables": "ON",
        },
    )
    started.install()
    (started.folder / "tmp").mkdir()
    subprocess.run(["chown", "-R", "mysql:", plugins, keys, started.folder], check=True)
    try:
        started.start()
        started.create_agent_user()
        started.load_rows(4)
        yield started
    finally:
        started.stop()


@contextmanager
def private(name: str) -> Iterator[Path]:
    """Yield a scratch directory of root's in a state directory of root's."""
    with tempfile.TemporaryDirectory(prefix="backup-agent-state-") as state:
        folder = Path(state) / "scratch" / name
        folder.mkdir(mode=0o700, parents=True)
        yield folder


def status(pid: int) -> dict[str, list[str]]:
    """Return the lines of /proc/<pid>/status by their names."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


def engine(server: MariaDB) -> MariadbBackup:
    return engine_of(server).for_datadir(server.datadir)


def test_a_plugin_of_the_servers_user_does_not_run_as_root(
    server: MariaDB, mysql: OsUser, place: Path
) -> None:
    with private("run") as workdir:
        with engine(server).start_backup(workdir, None) as run:
            assert child_of(run).stdout.read(1)
            loaded = Path(f"/proc/{child_of(run).pid}/maps").read_text()
            assert f"{place}/plugins/{PLUGIN}" in loaded
            shown = status(child_of(run).pid)
            assert shown["Uid"] == [str(mysql.uid)] * 4
            assert shown["Gid"] == [str(mysql.gid)] * 4
            assert set(map(int, shown["Groups"])) == set(mysql.groups)
            assert {int(shown[name][0], 16) for name in ("CapEff", "CapPrm", "CapInh")} == {0}
            for path, mode in ((workdir, 0o700), (workdir / "engine.cnf", 0o600)):
                assert path.stat().st_mode & 0o777 == mode
                assert path.stat().st_uid == mysql.uid
            read_all(run)
            run.finish()
        assert list(workdir.iterdir()) == []


@pytest.mark.skipif(DEFAULT_PATH.exists(), reason=f"{DEFAULT_PATH} is there")
def test_root_backs_up_the_servers_user_and_restores_it(
    server: MariaDB, place: Path, mysql: OsUser
) -> None:
    """This runs the commands on encrypted tables. Only root can enter the state directory."""
    user = User(place / "home", server)
    full = user.create("full")
    server.query("UPDATE shop.events SET kind = 7")
    server.checkpoint()
    wanted = server.checksums()
    late = user.create("late", "--parent", full["id"])
    assert user.state.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in (user.state / "scratch").iterdir()] == []
    target = place / "restored"
    done = user.run("restore", "--local", late["id"], target)
    assert done.returncode == 0, done.stderr
    assert {path.stat().st_uid for path in (target, *target.rglob("*"))} == {mysql.uid}
    assert "plugin_dir" not in (target / "backup-my.cnf").read_text()
    second = place / "second"
    (second / "tmp").mkdir(parents=True)
    shutil.chown(second / "tmp", "mysql")
    second.chmod(0o777)
    restored = MariaDB(second, target, server.options)
    restored.start()
    try:
        assert restored.checksums() == wanted
    finally:
        restored.stop()


@pytest.fixture
def closed(place: Path) -> Iterator[Path]:
    """Yield a directory below one that is closed to all users except root."""
    (place / "closed").mkdir(mode=0o700)
    (place / "closed" / "below").mkdir()
    yield place / "closed" / "below"
    shutil.rmtree(place / "closed")


@pytest.fixture(scope="module")
def logged(server: MariaDB, place: Path) -> tuple[User, str, str]:
    """Return a user, and the ids of a full and an incremental backup of Aria tables.

    The rows that the files of these tables lack are in Aria's log.
    """
    server.query(
        "CREATE SCHEMA aria; CREATE TABLE aria.`t t` (id INT PRIMARY KEY, word TEXT) ENGINE=Aria;"
        "INSERT INTO aria.`t t` SELECT seq, 'old' FROM aria.seq_1_to_9; FLUSH TABLES;"
        # Aria's recovery prints `***WARNING: ... may be crashed` about this table. No data is lost.
        "CREATE TABLE aria.unlogged ENGINE=Aria AS SELECT 1 AS id;"
        "UPDATE aria.unlogged SET id = 2;"
        "ALTER TABLE aria.unlogged TRANSACTIONAL=0; UPDATE aria.unlogged SET id = 3"
    )
    user = User(place / "logged", server)
    server.query("CREATE OR REPLACE USER `late one`; UPDATE aria.`t t` SET word = 'of the full'")
    full = user.create("full")["id"]
    server.query("CREATE OR REPLACE USER `later`; UPDATE aria.`t t` SET word = 'late'")
    return user, full, user.create("late", "--parent", full)["id"]


def words(server: MariaDB, target: Path, scratch: Path) -> tuple[str, str]:
    """Return the accounts and the table's words that a server on the restored datadir has."""
    restored = MariaDB(scratch, target, server.options | {"user": "root"})
    try:
        restored.start()
        ((accounts,),) = restored.query(
            "SELECT GROUP_CONCAT(User ORDER BY User) FROM mysql.global_priv WHERE User LIKE 'late%'"
        )
        ((word,),) = restored.query("SELECT GROUP_CONCAT(DISTINCT word) FROM aria.`t t`")
        assert restored.query("SELECT id FROM aria.unlogged") == [(3,)]
    finally:
        restored.stop()
    return accounts, word


@pytest.mark.skipif(DEFAULT_PATH.exists(), reason=f"{DEFAULT_PATH} is there")
def test_the_rows_of_arias_log_are_restored_below_a_closed_directory(
    logged: tuple[User, str, str], server: MariaDB, closed: Path, tmp_path: Path
) -> None:
    user, full, late = logged
    done = user.run("restore", "--local", full, closed / "target")
    assert done.returncode == 0, done.stderr
    assert words(server, closed / "target", tmp_path / "one") == ("late one", "of the full")
    # An empty directory of root's. The link to it is in a closed directory itself.
    (closed / "mine").mkdir(mode=0o700)
    (closed / "link").symlink_to(closed)
    done = user.run("restore", "--local", late, closed / "link" / "mine")
    assert done.returncode == 0, done.stderr
    assert words(server, closed / "mine", tmp_path / "two") == ("late one,later", "late")


def test_a_table_that_arias_recovery_can_not_open_is_named(
    logged: tuple[User, str, str], server: MariaDB, place: Path, mysql: OsUser
) -> None:
    """The engine continues without it, and reports success."""
    assert logged
    server.query("UPDATE aria.`t t` SET word = 'lost'")
    target = place / "unreadable"
    with private("run") as workdir:
        backup(engine(server), workdir / "stream")
        extract(engine_of(server), workdir / "stream", target)
    subprocess.run(["chown", "-R", "mysql:", target], check=True)
    os.chown(target / "aria" / "t@0020t.MAI", 0, 0)
    with pytest.raises(PrepareFailed) as caught:
        prepare(engine_of(server).run_as(mysql), target)
    assert "./aria/t@0020t could not be opened: Error: 13" in str(caught.value)


def with_truncated(server: MariaDB, stream: Path, targets: Sequence[Path]) -> None:
    """Truncate a table whose file is outside the datadir, and extract a backup to each target."""
    server.query("TRUNCATE ext.t")
    backup(engine(server), stream)
    for target in targets:
        extract(engine_of(server), stream, target)
        (target / "ext" / "t.isl").unlink()
        subprocess.run(["chown", "-R", "mysql:", target], check=True)


def refusal(server: MariaDB, mysql: OsUser, target: Path) -> PrepareFailed | None:
    try:
        prepare(engine_of(server).run_as(mysql), target)
    except PrepareFailed as error:
        return error
    return None


def test_a_former_file_that_may_not_be_looked_for_is_explained(
    server: MariaDB, place: Path, closed: Path, mysql: OsUser
) -> None:
    """The prepare looks for the tablespace that TRUNCATE replaced, by its path on the server.

    It does not if the server makes a checkpoint between the TRUNCATE and the backup.
    """
    os.chown(closed, mysql.uid, mysql.gid)
    closed.parent.chmod(0o711)
    server.query(f"CREATE SCHEMA ext; CREATE TABLE ext.t (id INT) DATA DIRECTORY='{closed}'")
    try:
        for attempt in range(10):
            targets = [place / f"{name}-{attempt}" for name in ("looked-for", "found")]
            with private("run") as workdir:
                with_truncated(server, workdir / "stream", targets)
            assert refusal(server, mysql, targets[0]) is None
            closed.parent.chmod(0o700)
            error = refusal(server, mysql, targets[1])
            closed.parent.chmod(0o711)
            if error:
                break
        assert error is not None
        assert "chmod o+x" in error.hint
    finally:
        server.query("DROP SCHEMA ext")


class Bound(User):
    """Root without the right to mount, as in most containers."""

    def _argv(self, verb: str, *arguments: str | Path) -> list[str]:
        return ["setpriv", "--bounding-set", "-sys_admin", *super()._argv(verb, *arguments)]


@pytest.mark.skipif(DEFAULT_PATH.exists(), reason=f"{DEFAULT_PATH} is there")
def test_without_the_right_to_mount_the_closed_directory_is_named(
    logged: tuple[User, str, str], server: MariaDB, place: Path, closed: Path
) -> None:
    need("setpriv")
    user = Bound(place / "logged", server)
    done = user.run("restore", "--local", logged[1], closed / "target")
    assert done.returncode == 1
    assert f"target_refused: the directory {closed.parent} is closed to mysql" in done.stderr
    assert f"chmod o+x {closed.parent}" in done.stderr
    assert list(closed.iterdir()) == []
    closed.parent.chmod(0o711)
    closed.chmod(0o711)
    done = user.run("restore", "--local", logged[1], closed / "target")
    assert done.returncode == 0, done.stderr


def test_an_account_without_a_password_is_logged_in_to_as_root(server: MariaDB) -> None:
    """The account is `root` over the socket. The server knows it by the OS user that connects."""
    ours = engine_of(server, user="root", password="").for_datadir(server.datadir)
    with private("run") as workdir:
        with ours.start_backup(workdir, None) as run:
            assert child_of(run).stdout.read(1)
            ((who,),) = server.query(
                "SELECT GROUP_CONCAT(DISTINCT user) FROM information_schema.PROCESSLIST "
                "WHERE user NOT IN ('system user', 'event_scheduler')"
            )
            assert who == "root"
            assert {path.name for path in workdir.iterdir()} == {"engine.cnf", "server.sock"}
            assert status(child_of(run).pid)["Uid"][0] == str(server.datadir.stat().st_uid)
            read_all(run)
            run.finish()
        assert list(workdir.iterdir()) == []


def test_such_an_engine_ends_and_leaves_nothing_if_the_server_is_not_there(
    server: MariaDB, place: Path
) -> None:
    settings = {"user": "root", "password": "", "socket": place / "none"}
    ours = engine_of(server, **settings).for_datadir(server.datadir)
    before = held()
    with private("run") as workdir:
        with ours.start_backup(workdir, None) as run:
            read_all(run)
            with pytest.raises(DatabaseUnreachable):
                run.finish()
        assert list(workdir.iterdir()) == []
    poll("threads and descriptors are gone", lambda: nothing_left_since(before), 10)


def test_so_does_not_the_program_that_tells_its_version(server: MariaDB, place: Path) -> None:
    (place / "who").touch()
    (place / "who").chmod(0o666)
    # The user must be able to read a script's interpreter, so this is a shell script.
    program = place / "teller"
    program.write_text(
        f"#!/bin/sh\nid -u > {place}/who\necho based on MariaDB server 1-MariaDB >&2\n"
    )
    program.chmod(0o755)
    told = engine_of(server, program=str(program)).for_datadir(server.datadir).version()
    assert told == "1-MariaDB"
    assert int((place / "who").read_text()) == server.datadir.stat().st_uid


def test_a_datadir_of_roots_leaves_the_engine_to_root(tmp_path: Path) -> None:
    assert owner_of(tmp_path) is None


def test_an_owner_without_a_name_is_its_numbers_alone(tmp_path: Path) -> None:
    os.chown(tmp_path, 54321, 54322)
    assert owner_of(tmp_path) == OsUser(54321, 54322, ())


def test_a_datadir_that_is_not_here_is_an_engine_error(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match="none: No such file") as caught:
        owner_of(tmp_path / "none")
    assert "the server's own machine" in caught.value.hint


def test_nothing_of_root_is_left_to_such_a_child(place: Path) -> None:
    """It has no group, no capability, no descriptor except its own three, and a low umask."""
    program = place / "shows"
    program.write_text("#!/bin/sh\ncat /proc/self/status\nls /proc/self/fd\numask\n")
    program.chmod(0o755)
    user = OsUser(54321, 54322, ())
    with Child([str(program)], setting="", stdout=True, user=user) as child:
        shown = child.stdout.readall().decode()
        assert child.wait(10) == 0
    assert "Uid:\t54321\t54321\t54321\t54321" in shown
    assert "Gid:\t54322\t54322\t54322\t54322" in shown
    assert "Groups:\t \n" in shown
    # The fourth is the directory that ls reads.
    assert shown.rpartition("\n0\n")[2] == "1\n2\n3\n0077\n"
