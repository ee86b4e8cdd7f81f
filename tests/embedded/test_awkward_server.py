"""A server whose global settings would change or end the sessions of the agent or its engine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.config.settings import DEFAULT_PATH
from agent.database.server import Database, DatabaseSettings
from agent.errors import DatabaseDenied, DatabaseQueryFailed, EngineFailed
from agent.operations.backup.diagnosis import diagnosed
from tests.conftest import need
from tests.embedded.user import User
from tests.stack.fixtures_mariadb import private_server
from tests.stack.mariadb import AGENT_PASSWORD, SMALL_SERVER, MariaDB

pytestmark = pytest.mark.skipif(DEFAULT_PATH.exists(), reason=f"{DEFAULT_PATH} is there")

# Each by itself ended or changed a query of the agent's, or may do so.
AWKWARD = {
    "max_statement_time": "0.0001",
    "sql_mode": "'ORACLE,ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT'",
    "wait_timeout": "1",
    "net_write_timeout": "1",
    "net_read_timeout": "1",
    "lock_wait_timeout": "1",
    "innodb_lock_wait_timeout": "1",
    "tx_read_only": "ON",
    "autocommit": "OFF",
    "completion_type": "CHAIN",
    "idle_transaction_timeout": "1",
    "lc_messages": "'ja_JP'",
    "character_set_client": "latin1",
    "character_set_results": "utf32",
    "collation_connection": "utf16_general_ci",
    "group_concat_max_len": "4",
    "init_connect": "'SET sql_select_limit = DEFAULT'",
}


@pytest.fixture(scope="module")
def server(scratch: Path) -> Iterator[MariaDB]:
    with private_server(scratch / "awkward") as started:
        started.query("CREATE SCHEMA d; CREATE TABLE d.t (id INT) AS SELECT 1 AS id")
        yield started


@pytest.fixture
def user(server: MariaDB, tmp_path: Path) -> User:
    """One whose agent has the account with the least rights."""
    user = User(tmp_path / "home", server)
    user.environment["BACKUP_AGENT_DATABASE__USER"] = server.agent_user
    user.environment["BACKUP_AGENT_DATABASE__PASSWORD_FILE"] = str(server.password_file)
    return user


@contextmanager
def settings(server: MariaDB, values: dict[str, str]) -> Iterator[None]:
    """With other global settings, which end with the block."""
    before = {
        name: server.query(f"SELECT IFNULL(QUOTE(@@global.{name}), \"''\")")[0][0]
        for name in values
    }
    numbers = {name: old.strip("'") for name, old in before.items()}
    server.query("; ".join(f"SET GLOBAL {name} = {value}" for name, value in values.items()))
    try:
        yield
    finally:
        with server.connect() as connection, connection.cursor() as cursor:
            cursor.execute("SET SESSION max_statement_time=0, sql_mode='', autocommit=1")
            for name, old in before.items():
                plain = numbers[name].replace(".", "").isdigit()
                cursor.execute(f"SET GLOBAL {name} = {numbers[name] if plain else old}")


def failure(user: User) -> str:
    done = user.run("backup-create", "--local", "x")
    assert done.returncode == 1
    return done.stderr


def test_a_backup_is_whole_whatever_the_servers_sessions_begin_with(
    server: MariaDB, user: User
) -> None:
    database = Database(DatabaseSettings(server.socket, server.agent_user, AGENT_PASSWORD))
    wanted = database.tablespaces()
    assert len(wanted) > 3
    with settings(server, AWKWARD):
        assert database.tablespaces() == wanted
        user.create("whole")


def test_a_limit_of_rows_cuts_no_list_and_is_named_if_the_engine_fails_of_it(
    server: MariaDB, user: User
) -> None:
    """mariadb-backup 10.11 dies of SIGSEGV with sql_select_limit = 1."""
    database = Database(DatabaseSettings(server.socket, server.agent_user, AGENT_PASSWORD))
    wanted = database.tablespaces()
    for name in ("sql_select_limit", "max_join_size"):
        with settings(server, {name: "1"}):
            assert database.tablespaces() == wanted
            said = failure(user)
        assert "engine_failed: mariadb-backup ended with" in said
        assert f"the server's global {name} may be too low" in said


@pytest.mark.parametrize("language", ["de_DE", "ru_RU"])
def test_a_missing_right_is_denied_in_every_language(
    server: MariaDB, user: User, language: str
) -> None:
    account = f"{server.agent_user}@localhost"
    server.query(f"REVOKE BINLOG MONITOR ON *.* FROM {account}")
    try:
        with settings(server, {"lc_messages": f"'{language}'"}):
            said = failure(user)
    finally:
        server.query(f"GRANT BINLOG MONITOR ON *.* TO {account}")
    assert "database_denied: the agent's database user lacks BINLOG MONITOR: " in said
    assert "what to do: grant BINLOG MONITOR" in said


@contextmanager
def rights_by_a_role(server: MariaDB) -> Iterator[None]:
    """Let the agent's account have its rights by its default role alone."""
    account = f"{server.agent_user}@localhost"
    rights = "RELOAD, PROCESS, LOCK TABLES, BINLOG MONITOR, REPLICA MONITOR ON *.*"
    server.query(
        f"CREATE ROLE backups; GRANT {rights} TO backups; GRANT backups TO {account};"
        f"REVOKE {rights} FROM {account}; SET DEFAULT ROLE backups FOR {account}"
    )
    try:
        yield
    finally:
        server.query(f"SET DEFAULT ROLE NONE FOR {account}; GRANT {rights} TO {account}")
        server.query("DROP ROLE backups")


def test_an_account_whose_rights_come_by_a_role(server: MariaDB, user: User) -> None:
    """Its failures keep their causes, and a right that the role lacks is named."""
    with rights_by_a_role(server):
        user.create("by a role")
        server.query("CREATE SCHEMA odd; CREATE TABLE odd.`a``b` (id INT) ENGINE=MyISAM")
        try:
            said = failure(user)
        finally:
            server.query("DROP SCHEMA odd")
        assert "database_denied" not in said
        assert "backtick" in said
        server.query("REVOKE BINLOG MONITOR ON *.* FROM backups")
        with settings(server, {"lc_messages": "'ru_RU'"}):
            assert "database_denied: the agent's database user lacks BINLOG MON" in failure(user)


def test_a_failure_without_a_refusal_is_not_the_accounts(server: MariaDB) -> None:
    """As of an account whose rights the server doesn't tell: then it is only hinted at."""
    server.query("CREATE USER bare@localhost IDENTIFIED BY 'bare'")
    try:
        database = Database(DatabaseSettings(server.socket, "bare", "bare"))
        for words, kind in (
            ("mariadb-backup ended with status 1: Errcode: 13 Permission denied", EngineFailed),
            ("xtrabackup ended with status 1: query 'SHOW': 1227 (Zugriff)", DatabaseDenied),
            ("mariadb-backup ended: Verlangt SUPER, SLAVE MONITOR", DatabaseDenied),
        ):
            found = diagnosed(EngineFailed(words, hint="x"), database, safe_slave_backup=False)
            assert type(found) is kind, words
            assert words in str(found)
            assert "PROCESS, RELOAD, SLAVE MONITOR" in found.hint
    finally:
        server.query("DROP USER bare@localhost")


def test_a_login_that_is_refused_in_another_language(server: MariaDB) -> None:
    wrong = Database(DatabaseSettings(server.socket, server.agent_user, "wrong"))
    with settings(server, {"lc_messages": "'de_DE'"}), pytest.raises(DatabaseDenied) as caught:
        wrong.server()
    assert "refuses the login" in str(caught.value)


def test_an_init_connect_that_fails_is_named(server: MariaDB, user: User) -> None:
    database = Database(DatabaseSettings(server.socket, server.agent_user, AGENT_PASSWORD))
    with settings(server, {"init_connect": "'INSERT INTO audit.logins VALUES (1)'"}):
        with pytest.raises(DatabaseQueryFailed, match="init_connect") as caught:
            database.server()
        assert "CONNECTION ADMIN" in caught.value.hint
        assert "init_connect must work" in failure(user)


def test_a_backtick_in_a_name_is_told_before_the_engine_fails_of_it(
    server: MariaDB, user: User
) -> None:
    server.query("CREATE TABLE d.`a``b` (id INT) ENGINE=InnoDB")
    user.create("innodb")
    server.query("ALTER TABLE d.`a``b` ENGINE=Aria")
    try:
        assert "datadir_unfit: the table d.a`b has a backtick in its name" in failure(user)
    finally:
        server.query("DROP TABLE d.`a``b`")


def test_a_setting_that_no_restore_takes_fails_the_backup(scratch: Path, tmp_path: Path) -> None:
    """The engine writes it into the backup, and mariadb-backup would read it at prepare."""
    need("mariadbd", "mariadb-install-db", "mariadb-backup")
    options = SMALL_SERVER | {"innodb-data-file-path": "ibdata+1:4M:autoextend"}
    odd = MariaDB(scratch / "odd", options=options)
    odd.install([f"--{name}={value}" for name, value in options.items()])
    try:
        odd.start()
        odd.create_agent_user()
        said = failure(User(tmp_path / "home", odd))
    finally:
        odd.stop()
    assert "stream_invalid: a restore would refuse this backup: " in said
    assert "sets innodb_data_file_path to 'ibdata+1:4M:autoextend'" in said
    assert "what to do: the engine copies this option from the server's settings" in said


def test_a_table_that_is_in_another_server_is_no_hindrance(
    server: MariaDB, user: User, tmp_path: Path
) -> None:
    folder = Path(server.query("SELECT @@plugin_dir")[0][0])
    if not (folder / "ha_federatedx.so").exists():
        pytest.skip("this server has no FederatedX")
    server.query("INSTALL SONAME 'ha_federatedx'; CREATE USER far IDENTIFIED BY 'p'")
    server.query("GRANT ALL ON d.* TO far")
    there = f"mysql://far:p@127.0.0.1:{server.port}/d/t"
    try:
        server.query(f"CREATE TABLE d.far (id INT) ENGINE=FEDERATED CONNECTION='{there}'")
        backup = user.create("federated")
    finally:
        server.query("DROP TABLE IF EXISTS d.far; DROP USER far; UNINSTALL SONAME 'ha_federatedx'")
    done = user.run("restore", "--local", backup["id"], tmp_path / "restored")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "restored/d/far.frm").exists()
