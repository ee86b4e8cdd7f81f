"""Schemas and tables of a real server that are dropped and recreated while a backup runs.

The test holds up the engine's stream at its first bytes until the statements are done. By then the
server has begun to list DDL for the engine, and its tablespaces are known. Nearly all files are not
copied yet.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pymysql
import pytest

from agent.engine.runs import BackupRun
from agent.errors import AgentError, EngineUnproved, StreamIncomplete
from tests.operations.workshop import Workshop
from tests.stack.fixtures_mariadb import private_server
from tests.stack.mariadb import MariaDB

ID = "(id INT)"
FILLED = (
    *("CREATE SCHEMA d", "CREATE SCHEMA e", "CREATE SCHEMA `f-g`"),
    *(f"CREATE TABLE d.i {ID}", f"CREATE TABLE e.i {ID}", f"CREATE TABLE `f-g`.i {ID}"),
    *(f"CREATE TABLE d.`a-b` {ID} ENGINE=Aria", f"CREATE TABLE e.a {ID} ENGINE=Aria"),
    *(f"CREATE TABLE d.a {ID} ENGINE=Aria", f"CREATE TABLE d.m {ID} ENGINE=MyISAM"),
    f"CREATE TABLE d.p {ID} ENGINE=Aria PARTITION BY HASH (id) PARTITIONS 2",
    *(f"INSERT INTO {name} VALUES (1), (2)" for name in ("d.i", "e.i", "d.a", "e.a", "d.m")),
)
# Statements by which the engine loses something, and the name that the error must report.
LOSING = {
    "a table of InnoDB's for one of Aria's": (
        "the table d.a ",
        ("DROP TABLE d.a", f"CREATE TABLE d.a {ID}", "INSERT INTO d.a VALUES (7)"),
    ),
    "Aria's for Aria's": ("the table d.a ", (f"CREATE OR REPLACE TABLE d.a {ID} ENGINE=Aria",)),
    "a schema with signs": (
        "the schema f-g ",
        ("CREATE OR REPLACE SCHEMA `f-g`", "CREATE VIEW `f-g`.v AS SELECT 1"),
    ),
    "a table moved out of a schema": (
        "the schema e ",
        ("RENAME TABLE e.i TO d.j", "DROP SCHEMA e"),
    ),
}
# The prepare of an incremental gets these wrong. The prepare of a full backup handles them.
CONFUSING = {
    "made again": (
        "RENAME TABLE d.i TO d.j",
        f"CREATE TABLE d.i {ID}",
        "INSERT INTO d.i VALUES (9)",
    ),
    "replaced": (f"CREATE TABLE d.k {ID}", "RENAME TABLE d.i TO d.j, d.k TO d.i"),
    "exchanged": ("RENAME TABLE d.i TO d.k, e.i TO d.i, d.k TO e.i",),
    "a cycle": ("RENAME TABLE d.i TO d.k, e.i TO d.i, `f-g`.i TO e.i, d.k TO `f-g`.i",),
}
# The prepare of an incremental handles these.
RENAMED = (
    *("RENAME TABLE d.i TO d.j, e.i TO d.i", "INSERT INTO d.i VALUES (9)"),
    *("RENAME TABLE `f-g`.i TO d.k", "RENAME TABLE d.k TO `f-g`.i"),
    *("CREATE TABLE e.n (id INT)", "RENAME TABLE e.n TO e.n2", "CREATE TABLE e.n (id INT)"),
)
HARMLESS = (
    *("DROP TABLE d.i", f"CREATE TABLE d.i {ID}", "INSERT INTO d.i VALUES (5)"),
    *("CREATE OR REPLACE TABLE d.i (id INT, more INT)", "TRUNCATE d.i"),
    *("DROP TABLE d.a", "DROP TABLE d.m", "DROP TABLE d.`a-b`", "DROP TABLE d.p"),
    *(f"CREATE TABLE d.n {ID} ENGINE=MyISAM", "INSERT INTO d.n VALUES (3)", "TRUNCATE d.n"),
    *("DROP TABLE d.n", f"CREATE TABLE d.n2 {ID}", "RENAME TABLE d.n2 TO d.n3"),
    *("ALTER TABLE d.n3 ADD COLUMN x INT, ALGORITHM=COPY", "DROP SCHEMA e", "DROP SCHEMA `f-g`"),
    *("CREATE SCHEMA `f-g`", "CREATE SCHEMA IF NOT EXISTS d"),
)


@pytest.fixture(scope="module")
def server(scratch: Path) -> Iterator[MariaDB]:
    with private_server(scratch / "again") as server:
        yield server


def empty(server: MariaDB) -> None:
    server.execute_many(*(f"DROP SCHEMA IF EXISTS `{name}`" for name in ("d", "e", "f-g")))


def fill(server: MariaDB) -> None:
    empty(server)
    server.execute_many(*FILLED)
    server.checkpoint()  # else the copied log shows them, as if they were made during the backup


@pytest.fixture
def workshop(server: MariaDB, tmp_path: Path) -> Iterator[Workshop]:
    fill(server)
    yield Workshop(server, tmp_path)
    empty(server)


@contextmanager
def meanwhile(
    server: MariaDB, statements: Sequence[str], *, refused: bool = False
) -> Iterator[None]:
    """Run the statements after the first bytes of a backup arrive, and before any others.

    With `refused` the server must refuse each of them.
    """
    left = list(statements)
    read = BackupRun.read_into

    def read_into(run: BackupRun, buffer: memoryview) -> int:
        count = read(run, buffer)
        while left:
            statement = left.pop(0)
            with pytest.raises(pymysql.Error) if refused else nullcontext():
                server.execute_many(statement)
        return count

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BackupRun, "read_into", read_into)
        yield
    assert not left


def loss(
    workshop: Workshop,
    statements: Sequence[str],
    *,
    incremental: bool = False,
    kind: type[AgentError] = StreamIncomplete,
) -> AgentError:
    """Return the error of a backup during which the statements run.

    The statements may run before the engine begins to list DDL. Then it loses nothing, and another
    backup is made.
    """
    for _ in range(10):
        parent = workshop.backup() if incremental else None
        try:
            with meanwhile(workshop.server, statements):
                made = workshop.backup(parent)
        except kind as error:
            return error
        assert workshop.restored(made)[0] == workshop.server.checksums()
        fill(workshop.server)
    pytest.fail("the engine lost nothing in ten backups")


@pytest.mark.parametrize("what", LOSING)
def test_what_the_engine_loses_fails_the_backup_and_is_named(workshop: Workshop, what: str) -> None:
    name, statements = LOSING[what]
    error = loss(workshop, statements)
    assert f"the engine treated {name}as dropped" in str(error)
    assert "back up again" in error.hint


def test_an_incremental_that_loses_a_table_fails_too(workshop: Workshop) -> None:
    statements = ["RENAME TABLE d.p TO d.q", f"CREATE TABLE d.p {ID}"]
    assert "the table d.p " in str(loss(workshop, statements, incremental=True))


def test_a_schema_that_was_made_and_dropped_ends_the_replay_of_ddl(workshop: Workshop) -> None:
    """The engine reports this and continues. A table altered meanwhile may keep its old rows."""
    brief = ["CREATE SCHEMA h", "DROP SCHEMA h", "ALTER TABLE d.a ADD COLUMN x INT DEFAULT 3"]
    assert "Failed to re-copy ./h/db.opt" in str(loss(workshop, brief, kind=EngineUnproved))


def test_other_ddl_is_held_by_both_kinds_of_backups(workshop: Workshop) -> None:
    server = workshop.server
    full = workshop.backup()
    with meanwhile(server, HARMLESS):
        child = workshop.backup(full)
    expected = server.checksums()
    assert workshop.restored(child)[0] == expected
    again = ("DROP TABLE d.i", f"CREATE TABLE d.i {ID}", "INSERT INTO d.i VALUES (9)")
    with meanwhile(server, again):
        other = workshop.backup()
    assert server.checksums() != expected
    assert workshop.restored(other)[0] == server.checksums()


@pytest.mark.parametrize("what", CONFUSING)
def test_tables_that_an_incremental_would_confuse_fail_it(workshop: Workshop, what: str) -> None:
    """The restore of such an incremental had no d.j, or its prepare ended.

    A full backup holds all the tables.
    """
    full = workshop.backup()
    with (
        meanwhile(workshop.server, CONFUSING[what]),
        pytest.raises(StreamIncomplete, match=r"the table (d|e|f-g)\.i was renamed"),
    ):
        workshop.backup(full)


@pytest.mark.parametrize("what", CONFUSING)
def test_a_full_backup_confuses_no_tables(workshop: Workshop, what: str) -> None:
    with meanwhile(workshop.server, CONFUSING[what]):
        made = workshop.backup()
    assert workshop.restored(made)[0] == workshop.server.checksums()


@pytest.mark.parametrize("kind", ["full", "incremental"])
def test_a_rename_that_the_server_refused_fails_the_backup(workshop: Workshop, kind: str) -> None:
    """The new schema is a file. The prepare failed at the rename of the table's file."""
    parent = workshop.backup() if kind == "incremental" else None
    with (
        meanwhile(workshop.server, ["RENAME TABLE d.i TO ibdata1.x"], refused=True),
        pytest.raises(StreamIncomplete, match=r"a RENAME to the table ibdata1\.x was refused"),
    ):
        workshop.backup(parent)
    workshop.server.checkpoint()
    made = workshop.backup(parent)
    assert workshop.restored(made)[0] == workshop.server.checksums()


@pytest.mark.parametrize("what", ["no schema", "a stray file", "a table"])
def test_other_renames_that_the_server_refused_do_no_harm(workshop: Workshop, what: str) -> None:
    schema = "nowhere" if what == "no schema" else "e"
    table = "i" if what == "a table" else "stray"
    stray = workshop.server.datadir / "e" / "stray.ibd"
    if what == "a stray file":
        stray.write_bytes(b"")
    parent = workshop.backup()
    with meanwhile(workshop.server, [f"RENAME TABLE d.i TO {schema}.{table}"], refused=True):
        made = workshop.backup(parent)
    stray.unlink(missing_ok=True)
    assert workshop.restored(made)[0] == workshop.server.checksums()


def test_other_renames_are_held_by_an_incremental(workshop: Workshop) -> None:
    full = workshop.backup()
    with meanwhile(workshop.server, RENAMED):
        child = workshop.backup(full)
    assert workshop.restored(child)[0] == workshop.server.checksums()
