"""mariadb-backup and mbstream on a real server.

These tests back up, restore, and provoke each kind of failure.
"""

import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from agent.codec.metadata import Checkpoints
from agent.engine.checkpoints import read_checkpoints
from agent.engine.common import quote_option
from agent.engine.mariadb import MariadbBackup, MariadbBackupSettings
from agent.errors import (
    DatabaseDenied,
    DatabaseUnreachable,
    EngineFailed,
    EngineKilled,
    ExtractFailed,
    PrepareFailed,
    RedoOverwritten,
)
from tests.conftest import need
from tests.engine.scripts import child_of, known
from tests.engine.test_runs import read_all
from tests.stack.mariadb import AGENT_PASSWORD, MariaDB

MEMORY = 64 << 20


def engine_of(server: MariaDB, **changes: Any) -> MariadbBackup:
    plain: dict[str, Any] = {
        "socket": server.socket,
        "user": server.agent_user,
        "password": AGENT_PASSWORD,
    }
    return MariadbBackup(MariadbBackupSettings(**(plain | changes)))


def backup(engine: MariadbBackup, stream: Path, from_lsn: int | None = None) -> None:
    """Back up into the file `stream`."""
    with engine.start_backup(stream.parent, from_lsn) as run, stream.open("wb") as file:
        while block := child_of(run).stdout.read(1 << 20):
            file.write(block)
        run.finish()


def extract(engine: MariadbBackup, stream: Path, folder: Path) -> Checkpoints:
    folder.mkdir()
    with engine.start_extract(folder) as run:
        run.write(stream.read_bytes())
        run.finish()
    return read_checkpoints(folder)


def prepare(engine: MariadbBackup, target: Path, incremental: Path | None = None) -> None:
    with engine.start_prepare(target, incremental, MEMORY, last=True) as run:
        run.finish()


@pytest.fixture(scope="module")
def full(mariadb: MariaDB, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file with the stream of a full backup."""
    stream = tmp_path_factory.mktemp("full") / "stream"
    backup(engine_of(mariadb), stream)
    assert [path.name for path in stream.parent.iterdir()] == ["stream"]
    return stream


def test_version_is_the_programs(mariadb: MariaDB) -> None:
    ours = engine_of(mariadb).version()
    ((theirs,),) = mariadb.query("SELECT VERSION()")
    assert re.fullmatch(r"\d+\.\d+\.\d+-MariaDB", ours)
    assert theirs.startswith(ours)


def test_a_chain_restores_to_a_server_with_the_same_rows(
    mariadb: MariaDB, full: Path, tmp_path: Path
) -> None:
    engine = engine_of(mariadb)
    target, beside = tmp_path / "target", tmp_path / "beside"
    base = extract(engine, full, target)
    assert (base.backup_type, base.from_lsn) == ("full-backuped", 0)
    mariadb.query("CREATE SCHEMA IF NOT EXISTS late; CREATE OR REPLACE TABLE late.t (id INT)")
    mariadb.query("INSERT INTO late.t SELECT seq FROM late.seq_1_to_1000")
    mariadb.checkpoint()
    expected = mariadb.checksums()
    backup(engine, tmp_path / "incremental", base.to_lsn)
    added = extract(engine, tmp_path / "incremental", beside)
    assert (added.backup_type, added.from_lsn) == ("incremental", base.to_lsn)
    assert added.to_lsn > base.to_lsn
    prepare(engine, target)
    assert read_checkpoints(target).backup_type == "log-applied"
    prepare(engine, target, beside)
    assert read_checkpoints(target).to_lsn == added.to_lsn
    restored = MariaDB(tmp_path / "restored", datadir=target)
    try:
        restored.start()
        assert restored.checksums() == expected
        assert {"shop.orders", "late.t"} <= expected.keys()
    finally:
        restored.stop()


def test_a_tables_name_chooses_neither_the_error_nor_the_words(
    mariadb: MariaDB, tmp_path: Path
) -> None:
    """A backtick in a name makes the engine fail. The other names look like other failures."""
    causes = ("Failed to connect to", "Access denied; you need", "Lost connection to")
    names = [f"{words} {n}" for words in causes for n in range(3)]
    names += ["n\nFATAL ERROR: Was only able to copy log", "Too many open files", "a``b"]
    made = "".join(f"CREATE TABLE odd.`{name}` (a INT) ENGINE=MyISAM;" for name in names)
    mariadb.query("CREATE SCHEMA odd; " + made)
    try:
        with pytest.raises(EngineFailed) as caught:
            backup(engine_of(mariadb), tmp_path / "stream")
    finally:
        mariadb.query("DROP SCHEMA odd")
    assert type(caught.value) is EngineFailed
    assert "BACKUP LOCK `odd`.`a`b`: You have an error" in str(caught.value)
    assert "Copied file" not in str(caught.value)
    assert "rename the table" in caught.value.hint


def test_the_secret_is_nowhere_to_be_seen(mariadb: MariaDB, tmp_path: Path) -> None:
    settings = MariadbBackupSettings(socket=Path("s"), user="u", password=AGENT_PASSWORD)
    assert AGENT_PASSWORD not in repr(settings)
    with engine_of(mariadb).start_backup(tmp_path, None) as run:
        assert child_of(run).stdout.read(1)
        secret = AGENT_PASSWORD.encode()
        for name in ("cmdline", "environ"):
            seen = Path(f"/proc/{child_of(run).pid}/{name}").read_bytes()
            assert seen
            assert secret not in seen
            assert b"s#cret" not in seen
        (option_file,) = tmp_path.glob("*.cnf")
        assert option_file.stat().st_mode & 0o777 == 0o600
        read_all(run)
        run.finish()
        assert AGENT_PASSWORD not in "".join(child_of(run).log.lines())
    assert list(tmp_path.iterdir()) == []


def test_priority_reaches_the_engines_threads(mariadb: MariaDB, tmp_path: Path) -> None:
    with engine_of(mariadb, niceness=12).start_backup(tmp_path, None) as run:
        assert child_of(run).stdout.read(1)
        threads = [int(name) for name in os.listdir(f"/proc/{child_of(run).pid}/task")]
        assert len(threads) > 1
        assert {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads} == {12}


def test_interrupting_an_engine_that_nobody_reads(mariadb: MariaDB, tmp_path: Path) -> None:
    with engine_of(mariadb).start_backup(tmp_path, None) as run:
        assert child_of(run).stdout.read(1)
        began = time.monotonic()
        run.interrupt()
        with pytest.raises(EngineFailed, match="interrupted"):
            run.finish()
        assert time.monotonic() - began < 4
    assert not known(child_of(run).pid)


def test_interrupting_from_another_thread_ends_a_read(mariadb: MariaDB, tmp_path: Path) -> None:
    with mariadb.connect() as holder:
        holder.cursor().execute("LOCK TABLES shop.orders WRITE")
        with engine_of(mariadb).start_backup(tmp_path, None) as run:
            timer = threading.Timer(0.5, run.interrupt)
            timer.start()
            read_all(run)
            timer.join()
            with pytest.raises(EngineFailed, match="interrupted"):
                run.finish()


def test_an_engine_that_was_killed(mariadb: MariaDB, tmp_path: Path) -> None:
    with engine_of(mariadb).start_backup(tmp_path, None) as run:
        assert child_of(run).stdout.read(1)
        os.kill(child_of(run).pid, signal.SIGKILL)
        read_all(run)
        with pytest.raises(EngineKilled, match="SIGKILL") as caught:
            run.finish()
        assert "out-of-memory" in caught.value.hint


def test_a_wrong_password(mariadb: MariaDB, tmp_path: Path) -> None:
    with pytest.raises(DatabaseDenied, match="Access denied for user 'backup_agent'"):
        backup(engine_of(mariadb, password="wrong"), tmp_path / "stream")


def test_no_socket(mariadb: MariaDB, tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnreachable, match="Can't connect"):
        backup(engine_of(mariadb, socket=tmp_path / "none"), tmp_path / "stream")


@pytest.mark.parametrize("lacking", ["RELOAD", "PROCESS", "BINLOG MONITOR", "REPLICA MONITOR"])
def test_a_missing_privilege(mariadb: MariaDB, tmp_path: Path, lacking: str) -> None:
    user = "poor@localhost"
    mariadb.query(f"CREATE OR REPLACE USER {user} IDENTIFIED BY 'p'")
    held = {"RELOAD", "PROCESS", "BINLOG MONITOR", "REPLICA MONITOR"} - {lacking}
    mariadb.query(f"GRANT {', '.join(held)} ON *.* TO {user}")
    with pytest.raises(DatabaseDenied, match="privilege") as caught:
        backup(engine_of(mariadb, user="poor", password="p"), tmp_path / "stream")
    assert lacking in caught.value.hint
    ((hashed,),) = mariadb.query("SELECT PASSWORD('p')")
    assert hashed not in str(caught.value)


def test_an_lsn_of_another_age(mariadb: MariaDB, tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match="impossible"):
        backup(engine_of(mariadb), tmp_path / "stream", 1)


def test_redo_overwritten_while_the_stream_is_stalled(tmp_path: Path) -> None:
    need("mariadbd", "mariadb-install-db", "mariadb-backup")
    options = {"innodb-log-file-size": "4M", "innodb-log-buffer-size": "2M"}
    server = MariaDB(tmp_path / "small", options=options)
    server.install()
    try:
        server.start()
        server.create_agent_user()
        server.load_rows(8)
        with engine_of(server).start_backup(tmp_path, None) as run:
            assert child_of(run).stdout.read(1)
            for number in range(3):
                server.query(f"UPDATE shop.orders SET remark = REPEAT('{number}', 200)")
            read_all(run)
            with pytest.raises(RedoOverwritten, match="only able to copy log") as caught:
                run.finish()
        assert "innodb_log_file_size" in caught.value.hint
    finally:
        server.stop()


def test_a_server_that_dies_mid_way(tmp_path: Path) -> None:
    need("mariadbd", "mariadb-install-db", "mariadb-backup")
    server = MariaDB(tmp_path / "dying")
    server.install()
    try:
        server.start()
        server.create_agent_user()
        server.load_rows(10)
        with engine_of(server).start_backup(tmp_path, None) as run:
            assert child_of(run).stdout.read(1)
            server.kill()
            read_all(run)
            with pytest.raises(
                DatabaseUnreachable, match=r"status 1: .*(gone away|Lost connection)"
            ):
                run.finish()
    finally:
        server.stop()


def test_extracting_nothing(mariadb: MariaDB, tmp_path: Path) -> None:
    with (
        engine_of(mariadb).start_extract(tmp_path) as run,
        pytest.raises(ExtractFailed, match="empty stream"),
    ):
        run.finish()


def test_extracting_onto_files_that_exist(mariadb: MariaDB, full: Path, tmp_path: Path) -> None:
    engine = engine_of(mariadb)
    extract(engine, full, tmp_path / "target")
    with (
        engine.start_extract(tmp_path / "target") as run,
        pytest.raises(ExtractFailed, match="File exists"),
    ):
        _write_and_finish(run, full.read_bytes())
    assert not known(child_of(run).pid)


@pytest.mark.parametrize("cut", [100_000, -1])
def test_extracting_a_cut_stream(mariadb: MariaDB, full: Path, tmp_path: Path, cut: int) -> None:
    with engine_of(mariadb).start_extract(tmp_path) as run, pytest.raises(ExtractFailed):
        _write_and_finish(run, full.read_bytes()[:cut])


def test_extracting_what_is_no_xbstream(mariadb: MariaDB, tmp_path: Path) -> None:
    with (
        engine_of(mariadb).start_extract(tmp_path) as run,
        pytest.raises(ExtractFailed, match="status 1"),
    ):
        _write_and_finish(run, os.urandom(10 << 20))
    with pytest.raises(ExtractFailed, match="xtrabackup_checkpoints"):
        read_checkpoints(tmp_path)


def test_extracting_into_no_folder(mariadb: MariaDB, tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match="No such file"):
        engine_of(mariadb).start_extract(tmp_path / "none")


def test_preparing_what_is_no_backup(mariadb: MariaDB, tmp_path: Path) -> None:
    with pytest.raises(PrepareFailed, match="mariadb-backup ended with status 1"):
        prepare(engine_of(mariadb), tmp_path)


def test_preparing_with_an_incremental_of_another_chain(
    mariadb: MariaDB, full: Path, tmp_path: Path
) -> None:
    engine = engine_of(mariadb)
    base = extract(engine, full, tmp_path / "target")
    mariadb.query("CREATE OR REPLACE TABLE shop.gap (id INT); DROP TABLE shop.gap")
    mariadb.checkpoint()
    backup(engine, tmp_path / "first", base.to_lsn)
    first = extract(engine, tmp_path / "first", tmp_path / "one")
    mariadb.query("CREATE OR REPLACE TABLE shop.gap (id INT); DROP TABLE shop.gap")
    mariadb.checkpoint()
    backup(engine, tmp_path / "second", first.to_lsn)
    extract(engine, tmp_path / "second", tmp_path / "two")
    prepare(engine, tmp_path / "target")
    with pytest.raises(PrepareFailed):
        prepare(engine, tmp_path / "target", tmp_path / "two")


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40))
def test_any_password_is_read_back_from_the_option_file(password: str) -> None:
    assert _as_read(password) == password


@pytest.mark.parametrize(
    "password", [AGENT_PASSWORD, "#", "'\"\\", " a b ", "\\n\\s\\", "a\n\t\r;[x]"]
)
def test_nasty_passwords_are_read_back(password: str) -> None:
    assert _as_read(password) == password


def test_nasty_passwords_open_the_server(mariadb: MariaDB, tmp_path: Path) -> None:
    password = '\\\\ \'""\' # \\" ;\\s\\n= é\t[mysqld]'
    with mariadb.connect() as admin, admin.cursor() as cursor:
        cursor.execute("CREATE OR REPLACE USER nasty@localhost IDENTIFIED BY %s", (password,))
        cursor.execute(
            "GRANT RELOAD, PROCESS, BINLOG MONITOR, REPLICA MONITOR ON *.* TO nasty@localhost"
        )
    backup(engine_of(mariadb, user="nasty", password=password), tmp_path / "stream")


def _as_read(password: str) -> str:
    """Return the password as the server's own programs read it from an option file."""
    need("my_print_defaults")
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as file:
        file.write(f"[mariadb-backup]\npassword={quote_option(password)}\n".encode())
    argv = ["my_print_defaults", f"--defaults-file=/proc/self/fd/{reader}", "mariadb-backup"]
    try:
        done = subprocess.run(argv, pass_fds=[reader], capture_output=True, check=True, timeout=10)
    finally:
        os.close(reader)
    return done.stdout.decode().removeprefix("--password=").removesuffix("\n")


def _write_and_finish(run: Any, stream: bytes) -> None:
    run.write(stream)
    run.finish()
