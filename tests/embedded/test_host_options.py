"""No option file and no variable of the machine changes a backup or a restore."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.config.settings import DEFAULT_PATH
from tests.embedded.test_embedded import restored_checksums
from tests.embedded.user import User
from tests.stack.fixtures_mariadb import private_server
from tests.stack.mariadb import MariaDB

pytestmark = pytest.mark.skipif(DEFAULT_PATH.exists(), reason=f"{DEFAULT_PATH} is there")

# Each of these options alone made a COMPLETED backup that lacked tables or could not be restored,
# or it made no backup.
_LEAVES_OUT = {
    "databases-exclude": "d_aria",
    "tables-exclude": "^e[.]",
    "databases": "d",
    "tables": "^d[.]",
    "compress": "quicklz",
    "no-lock": "1",
    "incremental-force-scan": "1",
    "log-innodb-page-corruption": "1",
    "extra-lsndir": "/nonexistent/lsn",
    "throttle": "1",
    "parallel": "0",
}
_OWN = {"datadir": "/nonexistent", "plugin-dir": "/nonexistent", "tmpdir": "/nonexistent"}
_OWN |= {"innodb-data-home-dir": "/nonexistent", "innodb-log-group-home-dir": "/nonexistent"}
_OWN |= {"innodb-page-size": "64K", "innodb-data-file-path": "other:99M", "aria-log-dir-path": "/x"}
_CLIENT = {"user": "nobody", "password": "wrong", "host": "192.0.2.1", "socket": "/nonexistent"}


def _group(name: str, options: dict[str, str]) -> str:
    return f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in options.items())


HOSTILE = "".join(
    (
        *(_group(name, _OWN) for name in ("mysqld", "mariadbd", "server", "mariadb")),
        *(_group(name, _CLIENT) for name in ("client", "client-server", "client-mariadb")),
        *(_group(name, _LEAVES_OUT | _OWN | _CLIENT) for name in ("mariadb-backup", "xtrabackup")),
    )
)


@pytest.fixture(scope="module")
def server(scratch: Path) -> Iterator[MariaDB]:
    with private_server(scratch / "host-options") as started:
        for schema, engine in (("d", "InnoDB"), ("e", "InnoDB"), ("d_aria", "Aria")):
            started.query(
                f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.t (id INT PRIMARY KEY, word TEXT) "
                f"ENGINE={engine};"
                f"INSERT INTO {schema}.t SELECT seq, seq FROM {schema}.seq_1_to_99;"
                f"CREATE TABLE {schema}.m (id INT) ENGINE=MyISAM; INSERT INTO {schema}.m VALUES (1)"
            )
        yield started


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a home directory with a hostile option file under each possible name."""
    folder = tmp_path / "user"
    folder.mkdir()
    for name in (".my.cnf", "my.cnf", ".mylogin.cnf"):
        (folder / name).write_text(HOSTILE)
        (folder / name).chmod(0o600)
    return folder


def hostile_environment(home: Path) -> dict[str, str]:
    folders = ("HOME", "MYSQL_HOME", "MARIADB_HOME", "MYSQL_TEST_LOGIN_FILE")
    values = dict.fromkeys(folders, str(home))
    values |= {"MYSQL_TCP_PORT": "1", "MYSQL_UNIX_PORT": "/none", "MYSQL_HOST": "192.0.2.1"}
    values |= {"MYSQL_PWD": "wrong", "MYSQL_GROUP_SUFFIX": "-backup", "LC_ALL": "tr_TR.UTF-8"}
    values |= {"TMPDIR": str(home / "none"), "TZ": "Asia/Tokyo", "LIBMYSQL_PLUGINS": "x"}
    return values


def change(server: MariaDB, number: int) -> dict[str, int]:
    """Change every table, and return the checksums that a backup made after it must restore."""
    for schema in ("d", "e", "d_aria"):
        server.query(f"UPDATE {schema}.t SET word = 'change {number}'")
    server.checkpoint()
    return server.checksums()


def test_of_the_users_home_and_environment(server: MariaDB, home: Path, tmp_path: Path) -> None:
    user = User(tmp_path / "home", server)
    change(server, 1)
    plain = user.create("plain")
    environment = hostile_environment(home)
    # an option that only the incremental met lost the tables of the full backup, too
    wanted = change(server, 2)
    late = user.create("late", "--parent", plain["id"], **environment)
    user.environment |= environment
    assert restored_checksums(user, tmp_path, late["id"]) == wanted


_PRIVATE_ETC = """
import ctypes, os, subprocess, sys
etc, *argv = sys.argv[1:]
for place in ("/etc/mysql", "/etc/my.cnf.d"):
    if os.path.isdir(place):
        subprocess.run(["mount", "--bind", etc, place], check=True)
os.execv(argv[0], argv)
"""


class PrivateEtc(User):
    """A user in a separate mount namespace, in which /etc/mysql is the directory `etc`."""

    etc: Path

    def _argv(self, verb: str, *arguments: str | Path) -> list[str]:
        inside = [sys.executable, "-c", _PRIVATE_ETC, str(self.etc)]
        return ["unshare", "--mount", *inside, *super()._argv(verb, *arguments)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
@pytest.mark.skipif(not Path("/etc/mysql").is_dir(), reason="Debian's place of option files")
def test_of_the_machine(server: MariaDB, tmp_path: Path) -> None:
    probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True)
    if probe.returncode:
        pytest.skip("no mount namespace can be made here")
    user = PrivateEtc(tmp_path / "home", server)
    user.etc = tmp_path / "etc"
    user.etc.mkdir()
    for name in ("my.cnf", "mariadb.cnf"):
        (user.etc / name).write_text(HOSTILE)
    seen = _told(user)
    assert "--databases-exclude=d_aria" in seen
    full = user.create("full")
    wanted = change(server, 4)
    late = user.create("late", "--parent", full["id"])
    assert restored_checksums(user, tmp_path, late["id"]) == wanted


def _told(user: PrivateEtc) -> str:
    """Return the options that MariaDB's own programs read in the namespace.

    With them the test proves that the hostile options are in effect there.
    """
    argv = ["unshare", "--mount", sys.executable, "-c", _PRIVATE_ETC, str(user.etc)]
    argv += ["/usr/bin/my_print_defaults", "mariadb-backup"]
    done: Any = subprocess.run(argv, capture_output=True, text=True, check=True)
    return str(done.stdout)
