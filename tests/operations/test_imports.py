"""Tables with pages that are older than the parent.

They were imported, exchanged, or put in place by hand.
"""

import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pymysql
import pytest

from agent.errors import (
    LineageChanged,
    ParentUnusable,
    StreamIncomplete,
    TargetRefused,
)
from agent.model import Record
from agent.operations.backup import preflight
from agent.operations.backup.imports import check_imports
from agent.operations.backup.proof import ProvedStream
from tests.operations.stored import place_record
from tests.operations.workshop import Workshop
from tests.stack.fixtures_mariadb import private_server
from tests.stack.mariadb import MariaDB, connection_id

TABLES = ("u", "emptied", "updated", "again", "raw", "late", "keyed", "gap", "during", "bare")


@pytest.fixture(scope="module")
def server(scratch: Path) -> Iterator[MariaDB]:
    with private_server(scratch / "imports") as server:
        server.query("CREATE SCHEMA d")
        for name in TABLES:
            server.query(
                f"CREATE TABLE d.{name} (id INT PRIMARY KEY, v CHAR(100)) STATS_PERSISTENT=0;"
                f"INSERT INTO d.{name} SELECT seq, seq FROM d.seq_1_to_5000"
            )
            export(server, name)
            server.query(f"UPDATE d.{name} SET v = v + 5")
        server.query("TRUNCATE d.emptied")
        yield server


@pytest.fixture(scope="module")
def workshop(server: MariaDB, scratch: Path) -> Workshop:
    return Workshop(server, scratch / "imports-workshop")


@pytest.fixture(scope="module")
def base(workshop: Workshop) -> Record:
    """Return a full backup of all tables before any import."""
    workshop.server.checkpoint()
    return workshop.backup()


def export(server: MariaDB, name: str) -> None:
    """Copy a table's file in its present state."""
    (server.folder / "kept").mkdir(exist_ok=True)
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute(f"FLUSH TABLES d.{name} FOR EXPORT")
        for suffix in ("ibd", "cfg"):
            shutil.copy(server.datadir / f"d/{name}.{suffix}", server.folder / "kept")


def bring_back(server: MariaDB, name: str, source: str | None = None) -> None:
    server.query(f"ALTER TABLE d.{name} DISCARD TABLESPACE")
    for suffix in ("ibd", "cfg"):
        kept = server.folder / "kept" / f"{source or name}.{suffix}"
        shutil.copy(kept, server.datadir / f"d/{name}.{suffix}")
    server.query(f"ALTER TABLE d.{name} IMPORT TABLESPACE")
    server.checkpoint()


def refused(workshop: Workshop, parent: Record, name: str) -> None:
    with pytest.raises(LineageChanged, match=rf"d/{name}\.ibd has pages that neither") as caught:
        workshop.backup(parent)
    assert "full backup" in caught.value.hint


def test_what_ddl_makes_since_the_parent_is_no_import(workshop: Workshop, base: Record) -> None:
    server = workshop.server
    server.execute_many(
        "CREATE TABLE d.made (id INT PRIMARY KEY, v CHAR(100))",
        "INSERT INTO d.made SELECT seq, seq FROM d.seq_1_to_5000",
        "CREATE TABLE d.packed (id INT PRIMARY KEY, v CHAR(100)) ROW_FORMAT=COMPRESSED "
        "KEY_BLOCK_SIZE=4 AS SELECT * FROM d.made",
        "CREATE TABLE d.holes (id INT PRIMARY KEY, v CHAR(100)) PAGE_COMPRESSED=1 "
        "AS SELECT * FROM d.made",
        "ALTER TABLE d.keyed ADD KEY (v)",
        "OPTIMIZE TABLE d.again",
        "RENAME TABLE d.made TO d.renamed",
        "DELETE FROM d.renamed WHERE id > 100",
        "CREATE TABLE d.unused (id INT)",
    )
    for checkpointed in (False, True):
        if checkpointed:
            server.checkpoint()
        child = workshop.backup(base)
    assert workshop.restored(child)[0] == server.checksums()


def test_a_name_that_is_too_long_for_an_incremental(workshop: Workshop, base: Record) -> None:
    """The server and a full backup take 255 bytes. Each letter here takes five bytes."""
    name = "中" * 50
    workshop.server.query(f"CREATE TABLE d.`{name}` (id INT)")
    with pytest.raises(ParentUnusable, match="too long for an incremental"):
        workshop.backup(base)
    workshop.server.query(f"RENAME TABLE d.`{name}` TO d.`{name[1:]}`; DROP TABLE d.`{name[1:]}`")


def test_a_target_with_a_path_that_is_too_long_is_refused(workshop: Workshop, base: Record) -> None:
    """mariadb-backup would overwrite its own memory in the prepare of the incremental."""
    name = "中" * 35
    workshop.server.query(
        f"CREATE SCHEMA `{name}`; CREATE TABLE `{name}`.`{name}` (id INT) ENGINE=MyISAM"
    )
    child = workshop.backup(base)
    deep = workshop.folder / ("x" * 200)
    with pytest.raises(TargetRefused) as caught:
        workshop.restored(child, folder=deep)
    found = re.search(r"too long by (\d+) bytes", str(caught.value))
    assert found
    assert not deep.exists()
    left = 200 - int(found[1])
    assert left > 0, "the folder of the tests has too long a path"
    fits = workshop.folder / ("x" * left)
    assert workshop.restored(child, folder=fits)[0] == workshop.server.checksums()
    workshop.server.query(f"RENAME TABLE `{name}`.`{name}` TO `{name}`.`{name}{name[:12]}`")
    with pytest.raises(ParentUnusable, match="too long for an incremental"):
        workshop.backup(base)
    assert workshop.backup(base, "full").parent_id is None
    workshop.server.query(f"DROP SCHEMA `{name}`")


def test_a_full_backup_right_after_an_import_says_what_to_do(workshop: Workshop) -> None:
    server = workshop.server
    server.query("CREATE TABLE d.fresh LIKE d.late; INSERT INTO d.fresh SELECT * FROM d.late")
    export(server, "fresh")
    server.checkpoint()
    server.query("ALTER TABLE d.fresh DISCARD TABLESPACE")
    for suffix in ("ibd", "cfg"):
        shutil.copy(server.folder / f"kept/fresh.{suffix}", server.datadir / "d")
    server.query("ALTER TABLE d.fresh IMPORT TABLESPACE")
    with pytest.raises(StreamIncomplete, match=r"d/fresh\.ibd") as caught:
        workshop.backup()
    assert "innodb_log_checkpoint_now" in caught.value.hint
    server.query("DROP TABLE d.fresh")


def test_an_import_since_the_parent_breaks_the_chain(workshop: Workshop, base: Record) -> None:
    server = workshop.server
    bring_back(server, "u")
    refused(workshop, base, "u")
    whole = workshop.backup(base, on_broken_chain="full")
    assert whole.parent_id is None
    expected = server.checksums()
    # An import that a full backup contains breaks nothing.
    server.query("INSERT INTO d.late VALUES (100001, 'new')")
    server.checkpoint()
    child = workshop.backup(whole)
    assert workshop.restored(child)[0] == server.checksums() != expected
    # An import between two incrementals breaks the chain.
    bring_back(server, "again")
    refused(workshop, child, "again")
    server.query("DROP TABLE d.u, d.again")


def test_an_import_into_a_table_that_was_empty(workshop: Workshop, base: Record) -> None:
    bring_back(workshop.server, "emptied")
    refused(workshop, base, "emptied")
    workshop.server.query("DROP TABLE d.emptied")


def test_an_import_into_a_table_without_a_file_in_the_parent(workshop: Workshop) -> None:
    """The table was discarded before the parent, and its id is below the parent's last id.

    The imported file is older than the parent too.
    """
    server = workshop.server
    server.query("ALTER TABLE d.bare DISCARD TABLESPACE; CREATE TABLE d.higher (id INT)")
    full = workshop.backup()
    for suffix in ("ibd", "cfg"):
        shutil.move(server.folder / f"kept/bare.{suffix}", server.datadir / "d")
    server.query("ALTER TABLE d.bare IMPORT TABLESPACE")
    server.checkpoint()
    refused(workshop, full, "bare")
    server.query("DROP TABLE d.bare, d.higher")


def test_an_import_that_was_updated_in_part(workshop: Workshop, base: Record) -> None:
    bring_back(workshop.server, "updated")
    workshop.server.query("UPDATE d.updated SET v = 'x' WHERE id < 4000")
    workshop.server.checkpoint()
    refused(workshop, base, "updated")
    workshop.server.query("DROP TABLE d.updated")


def test_an_import_while_the_tables_are_read_for_imports(
    workshop: Workshop, base: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    def then_import(*arguments: Any) -> None:
        check_imports(*arguments)
        bring_back(workshop.server, "gap")

    monkeypatch.setattr(preflight, "check_imports", then_import)
    with pytest.raises(StreamIncomplete, match=r"d/gap\.ibd was imported during the backup"):
        workshop.backup(base)
    workshop.server.query("DROP TABLE d.gap")


def test_an_import_while_the_engine_copies(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old file may be in the stream, but a prepare removes it.

    The redo log holds its removal.
    """
    plain = ProvedStream.read_into
    done: list[int] = []

    def import_after_the_first_bytes(stream: ProvedStream, buffer: memoryview) -> int:
        count = plain(stream, buffer)
        if not done:
            bring_back(workshop.server, "during")
            workshop.server.query("UPDATE d.during SET v = v + 7")
            done.append(count)
        return count

    monkeypatch.setattr(ProvedStream, "read_into", import_after_the_first_bytes)
    with pytest.raises(StreamIncomplete, match=r"d/during\.ibd was discarded and imported"):
        workshop.backup()
    workshop.server.query("DROP TABLE d.during")


@contextmanager
def long_alter(server: MariaDB) -> Iterator[None]:
    """Run an ALTER that copies rows, each of which takes long. Kill it at the end."""
    slow = "SHA2(CONCAT(id, REPEAT('x', 10000000)), 512)"
    server.execute_many(
        "CREATE OR REPLACE TABLE d.big (id INT PRIMARY KEY)",
        "INSERT INTO d.big SELECT seq FROM d.seq_1_to_10000",
    )
    with server.connect() as connection, ThreadPoolExecutor(1) as pool:

        def alter() -> None:
            with connection.cursor() as cursor, suppress(pymysql.err.Error):
                cursor.execute(f"ALTER TABLE d.big ADD c CHAR(128) AS ({slow}) PERSISTENT")

        ended = pool.submit(alter)
        listed = "SELECT NAME FROM information_schema.INNODB_SYS_TABLES WHERE NAME LIKE 'd/#sql%'"
        deadline = time.monotonic() + 60
        while not server.query(listed):
            assert time.monotonic() < deadline
        try:
            yield
            assert not ended.done()
        finally:
            server.query(f"KILL QUERY {connection_id(connection)}")
    server.query("DROP TABLE d.big")


def test_a_long_alter_breaks_the_chain_for_no_other_table(workshop: Workshop) -> None:
    server = workshop.server
    with long_alter(server):
        server.query("CREATE TABLE d.staging (id INT PRIMARY KEY, v CHAR(100))")
        server.query("INSERT INTO d.staging SELECT seq, seq FROM d.seq_1_to_5000")
        server.checkpoint()
        full = workshop.backup()
        assert len(full.absent_table_ids) == 1
        server.query("INSERT INTO d.staging VALUES (100000, 'new')")
        server.checkpoint()
        child = workshop.backup(full)
    expected = server.query("CHECKSUM TABLE d.staging")
    assert workshop.restored(child, "CHECKSUM TABLE d.staging")[1] == [expected]
    server.query("DROP TABLE d.staging")


def test_an_imported_table_that_became_a_partition(workshop: Workshop, base: Record) -> None:
    server = workshop.server
    server.execute_many(
        "CREATE TABLE d.parts LIKE d.late",
        "ALTER TABLE d.parts PARTITION BY RANGE (id) (PARTITION p0 VALUES LESS THAN MAXVALUE)",
        "CREATE TABLE d.way LIKE d.late",
        "INSERT INTO d.way SELECT * FROM d.late",
    )
    export(server, "way")
    bring_back(server, "way")
    server.query("ALTER TABLE d.parts EXCHANGE PARTITION p0 WITH TABLE d.way; DROP TABLE d.way")
    server.checkpoint()
    refused(workshop, base, "parts#P#p0")
    server.query("DROP TABLE d.parts")


def test_a_file_that_was_put_in_place_while_the_server_was_down(
    workshop: Workshop, base: Record
) -> None:
    server = workshop.server
    server.stop()
    kept = server.folder / "kept" / "raw.ibd"
    shutil.copy(server.datadir / "d/raw.ibd", kept)
    shutil.copy(kept, server.datadir / "d/raw.ibd.new")
    (server.datadir / "d/raw.ibd.new").replace(server.datadir / "d/raw.ibd")
    server.start()
    refused(workshop, base, "raw")
    server.query("DROP TABLE d.raw")


def test_a_parent_that_noted_no_table_ids(workshop: Workshop, base: Record) -> None:
    """A backup of an older agent can be a parent, unless a changed table was imported since."""
    server = workshop.server
    old = base.model_copy(update={"last_table_id": None})
    place_record(workshop.parts.store, workshop.parts.keyring, old)
    server.query("INSERT INTO d.late VALUES (100002, 'newer')")
    server.checkpoint()
    child = workshop.backup(old)
    assert child.last_table_id
    bring_back(server, "late")
    refused(workshop, old, "late")
