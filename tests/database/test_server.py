"""Tests of queries to a real server with the least privileges."""

import os
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from pymysql.constants import COMMAND

from agent.database import flavours
from agent.database.server import Database, DatabaseSettings, Tablespace
from agent.engine.mariadb import MariadbBackup, MariadbBackupSettings
from agent.errors import DatabaseDenied, DatabaseQueryFailed, DatabaseUnreachable
from tests.conftest import need
from tests.engine.scripts import child_of
from tests.stack.mariadb import AGENT_PASSWORD, MariaDB, connection_id
from tests.stack.process import poll


def database_of(server: MariaDB, **changes: Any) -> Database:
    plain: dict[str, Any] = {
        "socket": server.socket,
        "user": server.agent_user,
        "password": AGENT_PASSWORD,
    }
    return Database(DatabaseSettings(**(plain | changes)))


def test_settings_hide_the_password() -> None:
    settings = DatabaseSettings(socket=Path("s"), user="u", password=AGENT_PASSWORD)
    assert "s#cret" not in repr(settings)


def test_the_server_says_who_it_is(mariadb: MariaDB) -> None:
    info = database_of(mariadb).server()
    assert info.type == "mariadb"
    assert [(info.version,)] == mariadb.query("SELECT VERSION()")
    assert info.datadir == mariadb.datadir
    assert info.server_uuid is None


def test_the_lsn_grows_with_what_is_written(mariadb: MariaDB) -> None:
    database = database_of(mariadb)
    before = database.lsn()
    mariadb.query("CREATE OR REPLACE TABLE shop.grows (id INT); DROP TABLE shop.grows")
    after = database.lsn()
    assert after > before
    ((_, status),) = mariadb.query("SHOW GLOBAL STATUS LIKE 'Innodb_lsn_current'")
    assert int(status) >= after


def _said(database: Database) -> list[str]:
    return [one.statement for one in database.sessions()]


def test_a_statement_that_passes_for_the_lsn_is_told_and_none_breaks_the_process_list(
    mariadb: MariaDB,
) -> None:
    """The server shows statements whole in its status, and cuts them in the process list."""
    database = database_of(mariadb)
    mariadb.query("CREATE OR REPLACE TABLE shop.held (id INT); INSERT INTO shop.held VALUES (1)")
    # In one of them a letter of two bytes is at the position at which the server cuts.
    for filling, said in (("", "7"), ("a", "99999999999999999999 or so")):
        with mariadb.connect() as holder:
            holder.begin()
            comment = f"{filling}{'é' * 60}\nLog sequence number {said}\n"
            sql = f"SELECT SLEEP(60) FROM shop.held FOR UPDATE /*{comment}*/"
            holder._execute_command(COMMAND.COM_QUERY, sql)  # type: ignore[attr-defined]
            try:
                poll("the statement runs", lambda: any("é" in text for text in _said(database)), 5)
                with pytest.raises(DatabaseQueryFailed, match="2 log sequence numbers"):
                    database.lsn()
            finally:
                mariadb.query(f"KILL {connection_id(holder)}")
        poll("it ended", lambda: not any("é" in text for text in _said(database)), 5)
    assert database.lsn() > 7
    mariadb.query("DROP TABLE shop.held")


ODD_TABLES = (
    "CREATE OR REPLACE SCHEMA `a-b`",
    "CREATE TABLE `a-b`.`tä ble.x` (id INT)",
    "CREATE TABLE `a-b`.`#sqlish 表` (id INT, t TEXT, FULLTEXT KEY (t))",
    "CREATE TABLE `a-b`.`CON` (id INT)",
    "CREATE TABLE `a-b`.part (id INT) PARTITION BY RANGE (id) SUBPARTITION BY HASH (id) "
    "SUBPARTITIONS 2 (PARTITION p0 VALUES LESS THAN (10), "
    "PARTITION `P-max` VALUES LESS THAN MAXVALUE)",
    "CREATE TABLE `a-b`.packed (id INT, t TEXT) PAGE_COMPRESSED=1",
    "CREATE TABLE `a-b`.small (id INT, t TEXT) ROW_FORMAT=COMPRESSED",
    "CREATE TABLE `a-b`.aria (id INT) ENGINE=Aria",
    "CREATE SEQUENCE `a-b`.counter",
    "CREATE TABLE `a-b`.early (id INT)",
)


@pytest.mark.parametrize("checkpointed", [True, False])
def test_tablespaces_are_named_as_in_the_stream(
    mariadb: MariaDB, tmp_path: Path, checkpointed: bool
) -> None:
    outside = mariadb.folder / "outside"
    shutil.rmtree(outside, ignore_errors=True)
    outside.mkdir()
    mariadb.execute_many(
        *ODD_TABLES,
        f"CREATE TABLE `a-b`.outside (id INT) DATA DIRECTORY='{outside}'",
        "RENAME TABLE `a-b`.early TO `a-b`.late",
    )
    if checkpointed:
        mariadb.checkpoint()
    with mariadb.connect() as holder:
        holder.cursor().execute("CREATE TEMPORARY TABLE shop.passing (id INT) ENGINE=InnoDB")
        listed = database_of(mariadb).tablespaces()
        files = _stream_files(mariadb, tmp_path)
    orders = (mariadb.datadir / "shop/orders.ibd").stat().st_size
    # A copy of this server, made by another test, would find the outside table in two places.
    mariadb.execute_many("DROP SCHEMA `a-b`")
    spaces = {name.replace(".new", ".ibd") for name in files if name.endswith((".ibd", ".new"))}
    tablespaces = {space.path: space.allocated for space in listed.values()}
    assert len(tablespaces) == len(listed)
    assert tablespaces.keys() == spaces
    if checkpointed:
        assert tablespaces.keys() == {name for name in files if name.endswith(".ibd")}
    expected = {"a@002db/late.ibd", "a@002db/outside.ibd", "a@002db/part#P#p0#SP#p0sp1.ibd"}
    assert expected < tablespaces.keys()
    assert tablespaces["shop/orders.ibd"] == pytest.approx(orders, rel=0.05)


def _stream_files(server: MariaDB, folder: Path) -> set[str]:
    """Make a full backup, extract it with mbstream, and return the paths of its files."""
    settings = MariadbBackupSettings(
        socket=server.socket, user=server.agent_user, password=AGENT_PASSWORD
    )
    engine, target = MariadbBackup(settings), folder / "target"
    target.mkdir()
    with engine.start_backup(folder, None) as run, engine.start_extract(target) as extraction:
        while block := child_of(run).stdout.read(1 << 20):
            extraction.write(block)
        run.finish()
        extraction.finish()
    return {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}


def test_half_made_tables_of_an_alter_are_told_apart(
    mariadb: MariaDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(4, "shop/#sql-alter-6d5-4.ibd", None, 8), (6, "undo001.ibd", None, 9)]
    rows += [(5, "shop/t.ibd", None, 7)]
    sizes = [(4, None, 1, None), (5, None, 2, None), (6, None, 3, None), (7, None, 4, None)]
    database = database_of(mariadb)
    plain = database._rows

    def answer(sql: str) -> list[tuple[Any, ...]]:
        return sizes if "SPACES" in sql else rows if "INNODB" in sql else plain(sql)

    monkeypatch.setattr(database, "_rows", answer)
    assert database.tablespaces() == {
        4: Tablespace("shop/#sql-alter-6d5-4.ibd", 1, 8),
        5: Tablespace("shop/t.ibd", 2, 7),
    }
    assert flavours.half_made("shop/#sql-alter-6d5-4.ibd")


def test_a_tablespace_keeps_its_number_through_renames_only(mariadb: MariaDB) -> None:
    def number() -> int:
        spaces = database_of(mariadb).tablespaces()
        return next(n for n, space in spaces.items() if space.path.startswith("numbers/"))

    mariadb.query("CREATE OR REPLACE SCHEMA numbers; CREATE TABLE numbers.t (id INT)")
    first = number()
    mariadb.query("RENAME TABLE numbers.t TO numbers.u")
    assert number() == first
    mariadb.query("TRUNCATE numbers.u")
    assert number() != first
    mariadb.query("DROP SCHEMA numbers")


def test_lineage_is_that_of_ibdata1(mariadb: MariaDB) -> None:
    database = database_of(mariadb)
    lineage = database.lineage()
    found = (mariadb.datadir / "ibdata1").stat()
    assert lineage.inode == found.st_ino
    assert lineage.birth == 0 or lineage.birth <= found.st_ctime
    assert (lineage.server_uuid, lineage.generation) == (None, "")
    assert lineage.generation == ""


def test_lineage_outlives_a_restart_and_not_a_copy(tmp_path: Path) -> None:
    need("mariadbd", "mariadb-install-db")
    options = {
        "innodb-data-home-dir": str(tmp_path / "home"),
        "innodb-data-file-path": "s:12M:autoextend",
    }
    server = MariaDB(tmp_path / "server")
    server.install()
    (tmp_path / "home").mkdir()
    shutil.move(server.datadir / "ibdata1", tmp_path / "home" / "s")
    moved = MariaDB(tmp_path / "server", options=options)
    database = database_of(moved, user=moved.admin, password="")
    try:
        moved.start()
        first = database.lineage()
        assert first.inode == (tmp_path / "home" / "s").stat().st_ino
        os.utime(tmp_path / "home" / "s", (1, 1))
        assert database.lineage() == first
        moved.kill()
        with pytest.raises(DatabaseUnreachable):
            database.lineage()
        moved.start()
        assert database.lineage() == first
        moved.stop()
        shutil.copy(tmp_path / "home" / "s", tmp_path / "home" / "copy")
        os.replace(tmp_path / "home" / "copy", tmp_path / "home" / "s")
        moved.start()
        assert database.lineage() != first
        (tmp_path / "home" / "s").rename(tmp_path / "home" / "hidden")
        with pytest.raises(DatabaseQueryFailed, match="No such file") as caught:
            database.lineage()
        assert "OS user" in caught.value.hint
    finally:
        moved.stop()


def test_privileges(mariadb: MariaDB) -> None:
    assert database_of(mariadb).missing_privileges() == []
    assert database_of(mariadb, user=mariadb.admin, password="").missing_privileges() == []
    mariadb.query("CREATE OR REPLACE USER bare@localhost IDENTIFIED BY 'p'")
    mariadb.query("GRANT RELOAD ON *.* TO bare@localhost")
    mariadb.query("GRANT PROCESS, SELECT ON *.* TO bare@localhost")
    missing = database_of(mariadb, user="bare", password="p").missing_privileges()
    assert missing == ["BINLOG MONITOR", "SLAVE MONITOR"]


def test_without_process_the_query_is_refused(mariadb: MariaDB) -> None:
    mariadb.query("CREATE OR REPLACE USER blind@localhost IDENTIFIED BY 'p'")
    database = database_of(mariadb, user="blind", password="p")
    for ask in (database.lsn, database.tablespaces):
        with pytest.raises(DatabaseDenied, match=r"refuses a statement.*PROCESS"):
            ask()


@pytest.mark.parametrize("password", ["größer", "€ 備份 😀"])
def test_a_password_of_any_letters(mariadb: MariaDB, password: str) -> None:
    mariadb.query(f"CREATE OR REPLACE USER lettered@localhost IDENTIFIED BY '{password}'")
    assert database_of(mariadb, user="lettered", password=password).server().type == "mariadb"


def test_a_wrong_password(mariadb: MariaDB) -> None:
    with pytest.raises(DatabaseDenied, match="Access denied") as caught:
        database_of(mariadb, password="hush-hush").server()
    assert "hush" not in str(caught.value)


def test_a_socket_that_nobody_answers(tmp_path: Path, mariadb: MariaDB) -> None:
    with pytest.raises(DatabaseUnreachable, match=re.escape(str(tmp_path))):
        database_of(mariadb, socket=tmp_path / "none").server()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "s"))
        with pytest.raises(DatabaseUnreachable, match="refused"):
            database_of(mariadb, socket=tmp_path / "s").server()
        silent.listen()
        with pytest.raises(DatabaseUnreachable, match="timed out"):
            database_of(mariadb, socket=tmp_path / "s", timeout_seconds=0.2).server()
