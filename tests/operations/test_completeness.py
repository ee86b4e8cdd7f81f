"""Backups of a real server that has unusual tables and files.

A backup is whole and can be restored, or it fails and names the missing files.
"""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, pairwise
from pathlib import Path

import pytest

from agent.errors import AgentError, DatadirUnfit, StreamIncomplete
from agent.model import Record
from tests.operations.workshop import Workshop
from tests.stack.fixtures_mariadb import private_server
from tests.stack.mariadb import MariaDB


@pytest.fixture(scope="module")
def server(scratch: Path) -> Iterator[MariaDB]:
    """Yield a small server of this module's own. Tests damage its datadir and repair it."""
    # An operator may set log_bin like this, with characters that end words.
    with private_server(scratch / "complete", **{"log-bin": "'a b'"}) as server:
        yield server


@pytest.fixture
def workshop(server: MariaDB, tmp_path: Path) -> Iterator[Workshop]:
    server.query("CREATE OR REPLACE SCHEMA d")
    yield Workshop(server, tmp_path)
    server.query("DROP SCHEMA IF EXISTS d")


def refused(workshop: Workshop, kind: type[AgentError] = DatadirUnfit) -> AgentError:
    """Make a backup that must fail with such an error. Return the error.

    DatadirUnfit must come before the engine is started.
    """
    with pytest.raises(kind) as caught:
        workshop.backup()
    if kind is DatadirUnfit:
        assert not workshop.parts.scratch.exists()
    return caught.value


MANY_KINDS = (
    "CREATE TABLE d.i (id INT PRIMARY KEY)",
    "CREATE TABLE d.a (id INT PRIMARY KEY) ENGINE=Aria",
    "CREATE TABLE d.a0 (id INT) ENGINE=Aria TRANSACTIONAL=0",
    "CREATE TABLE d.`odd näme.x` (id INT) ENGINE=MyISAM",
    "CREATE TABLE d.c (id INT NOT NULL) ENGINE=CSV",
    "CREATE TABLE d.m (id INT) ENGINE=MEMORY",
    "CREATE TABLE d.mg (id INT) ENGINE=MERGE UNION=(d.`odd näme.x`)",
    "CREATE TABLE d.pi (id INT) PARTITION BY HASH (id) PARTITIONS 2",
    "CREATE TABLE d.pa (id INT) ENGINE=Aria PARTITION BY HASH (id) PARTITIONS 2",
    "CREATE TABLE d.pm (id INT) ENGINE=MyISAM PARTITION BY HASH (id) PARTITIONS 2",
    "CREATE VIEW d.v AS SELECT * FROM d.i",
    "CREATE SEQUENCE d.s",
    "CREATE TRIGGER d.t BEFORE INSERT ON d.i FOR EACH ROW SET NEW.id = NEW.id + 1",
    "INSERT INTO d.a SELECT seq FROM d.seq_1_to_2000",
    "INSERT INTO d.a0 SELECT seq FROM d.seq_1_to_2000",
    "INSERT INTO d.`odd näme.x` SELECT seq FROM d.seq_1_to_2000",
    "INSERT INTO d.pa SELECT seq FROM d.seq_1_to_2000",
)


def test_all_kinds_of_tables_come_back_from_both_kinds_of_backups(workshop: Workshop) -> None:
    server = workshop.server
    server.execute_many(*MANY_KINDS)
    (server.datadir / "lost+found").mkdir()
    try:
        full = workshop.backup()
        assert full.binlog is not None
        assert full.binlog.file.startswith("a b.0")
        server.query(
            "INSERT INTO d.a SELECT seq FROM d.seq_3000_to_4000; CREATE TABLE d.n (id INT)"
        )
        child = workshop.backup(full)
        expected = server.checksums()
        checksums, (names,) = workshop.restored(child, "SHOW DATABASES")
    finally:
        (server.datadir / "lost+found").rmdir()
    assert checksums == expected
    assert ("#mysql50#lost+found",) not in names


TAKEN_NAMES = ("xtrabackup_checkpoints", "mariadb_backup_info", "ib_lru_dump", "undo100")


@pytest.mark.parametrize("name", [*TAKEN_NAMES, "innodb_corrupted_pages"])
def test_a_schema_with_the_name_of_a_file_is_refused_before_the_copy(
    workshop: Workshop, name: str
) -> None:
    workshop.server.query(f"CREATE SCHEMA {name}; CREATE TABLE {name}.t (id INT)")
    try:
        assert f"the schema {name} has the name of a file" in str(refused(workshop))
    finally:
        workshop.server.query(f"DROP SCHEMA {name}")


def test_a_hidden_directory_that_the_engine_takes_for_a_schema_is_refused(
    workshop: Workshop,
) -> None:
    """mbstream stops at such a name, and exits with 0."""
    folder = workshop.server.datadir / ".ssh"
    folder.mkdir()
    try:
        error = refused(workshop)
        assert ".ssh" in str(error)
        assert "ignore_db_dirs" in error.hint
        (folder / "config").write_text("no table's")
        assert workshop.backup().to_lsn
    finally:
        shutil.rmtree(folder)


def test_tables_outside_that_the_engine_does_not_follow_fail_the_backup(
    workshop: Workshop, scratch: Path
) -> None:
    outside = scratch / "outside"
    outside.mkdir(exist_ok=True)
    server = workshop.server
    place = f"DATA DIRECTORY='{outside}' INDEX DIRECTORY='{outside}'"
    server.query(f"CREATE TABLE d.my (id INT) ENGINE=MyISAM {place}; INSERT INTO d.my VALUES (1)")
    full = workshop.backup()
    server.query(f"CREATE TABLE d.`a-b` (id INT PRIMARY KEY) ENGINE=Aria {place}")
    for parent in (None, full):
        with pytest.raises(
            StreamIncomplete, match=r"d/a@002db\.MA[ID] of the table d\.a-b"
        ) as caught:
            workshop.backup(parent)
        assert "Error on aria table file open" in str(caught.value)
        assert "DATA DIRECTORY" in caught.value.hint


def renaming(server: MariaDB, stop: threading.Event, *names: str) -> None:
    """Rename a table from one name to the next, in a circle, until `stop` is set."""
    with server.connect() as connection, connection.cursor() as cursor:
        for old, new in pairwise(cycle(names)):
            cursor.execute(f"RENAME TABLE d.`{old}` TO d.`{new}`")
            if stop.is_set():
                return


@contextmanager
def while_renaming(server: MariaDB, *names: str) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=renaming, args=(server, stop, *names))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def whole_or_refused(workshop: Workshop) -> Record | None:
    """Make a backup. Return None if it failed for a reason that renames can cause."""
    failure = ""
    try:
        return workshop.backup()
    except StreamIncomplete as error:
        failure = str(error)
    reasons = ("in the stream", "under a wrong name", "only the definition")
    assert any(why in failure for why in reasons), failure
    return None


def test_tables_that_are_renamed_meanwhile_come_back_or_fail_the_backup(
    workshop: Workshop,
) -> None:
    """mbstream stops at the first file that ends after a rename, unless the stream was mended.

    The engine may lose a table that was renamed before the engine opened it. It reports a wrong
    name for a table that has special characters in its name.
    """
    server = workshop.server
    server.query("CREATE TABLE d.a (id INT) ENGINE=Aria; CREATE TABLE d.m (id INT) ENGINE=MyISAM")
    server.query("CREATE TABLE d.`s-t` (id INT) ENGINE=Aria")
    server.query("INSERT INTO d.a SELECT seq FROM d.seq_1_to_9; INSERT INTO d.m SELECT * FROM d.a")
    server.query("INSERT INTO d.`s-t` SELECT * FROM d.a")
    ((_, expected),) = server.query("CHECKSUM TABLE d.a")
    for one, other in (("m", "n"), ("a", "b"), ("s-t", "u")):
        with while_renaming(server, one, other):
            backup = whole_or_refused(workshop)
        if backup:
            checksums, _ = workshop.restored(backup)
            assert checksums.get(f"d.{one}", checksums.get(f"d.{other}")) == expected
