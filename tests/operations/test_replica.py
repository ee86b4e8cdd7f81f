"""A replica's SQL thread runs again after each end of an engine that stopped it.

The source and the replica are real servers.
"""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.database.server import Database, DatabaseSettings
from agent.engine.mariadb import MariadbBackup, MariadbBackupSettings
from agent.engine.runs import BackupRun
from agent.errors import DatabaseError, EngineKilled, LockTimeout
from agent.operations.backup.replica import restart_sql_thread, sql_thread_restarted
from agent.operations.resources import BackupResources
from tests.conftest import need
from tests.engine.scripts import child_of
from tests.stack.agent import Agent, Tables
from tests.stack.mariadb import AGENT_PASSWORD, MariaDB
from tests.stack.process import poll
from tests.stack.rabbitmq import RabbitMQ
from tests.stack.swift import SwiftServer

BOTH = {"", "second"}


@pytest.fixture(scope="module")
def replica(mariadb: MariaDB, scratch: Path) -> Iterator[MariaDB]:
    """Yield a replica of the session's server, with a second channel that has no source."""
    need("mariadbd", "mariadb-install-db", "mariadb-backup")
    server = MariaDB(scratch / "replica", options={"server-id": "2"})
    server.install()
    try:
        server.start()
        server.create_agent_user()
        server.load_rows(4)
        mariadb.query("CREATE OR REPLACE USER repl@'127.0.0.1' IDENTIFIED BY 'p'")
        mariadb.query("GRANT REPLICATION SLAVE ON *.* TO repl@'127.0.0.1'")
        ((file, position, *_),) = mariadb.query("SHOW MASTER STATUS")
        server.query(
            f"CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT={mariadb.port}, "
            f"MASTER_USER='repl', MASTER_PASSWORD='p', MASTER_LOG_FILE='{file}', "
            f"MASTER_LOG_POS={position}; START SLAVE;"
            "CHANGE MASTER 'second' TO MASTER_HOST='127.0.0.1', MASTER_PORT=1, MASTER_USER='x'"
        )
        yield server
    finally:
        server.stop()


@pytest.fixture
def parts(replica: MariaDB, tmp_path: Path) -> BackupResources:
    """Return the resources that these operations need, with the right to start a replica."""
    replica.query(f"GRANT REPLICATION SLAVE ADMIN ON *.* TO {replica.agent_user}@localhost")
    replica.query("START SLAVE SQL_THREAD; START SLAVE 'second' SQL_THREAD")
    database = database_of(replica)
    assert database.replica_sql_running() == BOTH
    scratch = tmp_path / "state" / "scratch"
    scratch.mkdir(parents=True)
    return cast(
        BackupResources,
        SimpleNamespace(database=database, scratch=scratch, safe_slave_backup=True),
    )


def database_of(server: MariaDB) -> Database:
    return Database(DatabaseSettings(server.socket, server.agent_user, AGENT_PASSWORD))


def engine_of(server: MariaDB, **changes: Any) -> MariadbBackup:
    return MariadbBackup(
        MariadbBackupSettings(
            socket=server.socket,
            user=server.agent_user,
            password=AGENT_PASSWORD,
            safe_slave_backup=True,
            **changes,
        )
    )


def note_of(parts: BackupResources) -> Path:
    return parts.scratch.parent / "replica-sql-thread.json"


def test_the_server_tells_and_starts_its_threads(mariadb: MariaDB, parts: BackupResources) -> None:
    assert database_of(mariadb).replica_sql_running() == frozenset()
    database = parts.database
    database.start_replica_sql(BOTH)  # they run already
    assert database.replica_sql_running() == BOTH


def killed_mid_way(replica: MariaDB, parts: BackupResources, workdir: Path) -> None:
    """Run a backup. Kill its engine when it has stopped the thread and waits for a lock."""
    with replica.connect() as holder, sql_thread_restarted(parts):
        holder.cursor().execute("LOCK TABLES shop.orders WRITE")
        kill_when_stopped(parts, engine_of(replica).start_backup(workdir, None))


def kill_when_stopped(parts: BackupResources, run: BackupRun) -> None:
    with run:
        assert note_of(parts).exists()
        reader = threading.Thread(target=child_of(run).stdout.readall)
        reader.start()
        # With several channels the engine stops only the default one.
        poll("it stopped", lambda: parts.database.replica_sql_running() == {"second"}, 20)
        os.killpg(child_of(run).pid, signal.SIGKILL)
        reader.join()
        run.finish(20)


def test_it_runs_again_after_an_engine_that_was_killed(
    replica: MariaDB, parts: BackupResources, tmp_path: Path
) -> None:
    with pytest.raises(EngineKilled, match="SIGKILL"):
        killed_mid_way(replica, parts, tmp_path)
    assert parts.database.replica_sql_running() == BOTH
    assert not note_of(parts).exists()


def test_it_runs_again_after_an_agent_that_was_killed(
    replica: MariaDB, parts: BackupResources
) -> None:
    cut_off = sql_thread_restarted(parts)
    cut_off.__enter__()
    replica.query("STOP ALL SLAVES SQL_THREAD")
    restart_sql_thread(parts)
    assert parts.database.replica_sql_running() == BOTH
    assert not note_of(parts).exists()
    restart_sql_thread(parts)


def test_one_that_did_not_run_stays_as_it_was(replica: MariaDB, parts: BackupResources) -> None:
    replica.query("STOP SLAVE 'second' SQL_THREAD")
    with sql_thread_restarted(parts):
        replica.query("STOP ALL SLAVES SQL_THREAD")
    assert parts.database.replica_sql_running() == {""}


def test_without_the_privilege_it_is_a_warning_and_is_tried_again(
    replica: MariaDB, parts: BackupResources, caplog: pytest.LogCaptureFixture
) -> None:
    replica.query(f"REVOKE REPLICATION SLAVE ADMIN ON *.* FROM {replica.agent_user}@localhost")
    assert parts.database.missing_privileges() == []
    missing = parts.database.missing_privileges(safe_slave_backup=True)
    assert missing == ["REPLICATION SLAVE ADMIN"]
    with caplog.at_level(logging.WARNING), sql_thread_restarted(parts):
        replica.query("STOP ALL SLAVES SQL_THREAD")
    assert "can't start the replica's SQL thread" in caplog.text
    assert "REPLICATION SLAVE ADMIN" in caplog.text
    replica.query(f"GRANT REPLICATION SLAVE ADMIN ON *.* TO {replica.agent_user}@localhost")
    restart_sql_thread(parts)
    assert parts.database.replica_sql_running() == BOTH


class _Locked:
    """A server that keeps each statement waiting for a lock."""

    def start_replica_sql(self, _channels: frozenset[str]) -> None:
        raise LockTimeout("the server kept a query waiting for a lock")


def test_a_failed_start_ends_no_backup(
    replica: MariaDB,
    parts: BackupResources,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut_off = sql_thread_restarted(parts)
    cut_off.__enter__()
    locked = SimpleNamespace(**vars(parts) | {"database": _Locked()})
    with caplog.at_level(logging.WARNING):
        restart_sql_thread(cast(BackupResources, locked))
    assert "can't start the replica's SQL thread" in caplog.text
    assert note_of(parts).exists()

    def refuse(path: Path, **_options: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(Path, "unlink", refuse)
        restart_sql_thread(parts)
    assert f"can't remove {note_of(parts)}: Permission denied" in caplog.text
    restart_sql_thread(parts)
    assert not note_of(parts).exists()
    assert parts.database.replica_sql_running() == BOTH


def test_a_replica_that_can_not_be_asked_is_not_stopped(
    replica: MariaDB, parts: BackupResources
) -> None:
    nobody = Database(DatabaseSettings(replica.socket, "nobody", "wrong"))
    blind = SimpleNamespace(**vars(parts) | {"database": nobody})
    with pytest.raises(DatabaseError), sql_thread_restarted(cast(BackupResources, blind)):
        pytest.fail("the engine was started")
    assert not note_of(parts).exists()


def test_it_runs_again_after_the_start_of_an_agent_that_was_killed(
    replica: MariaDB,
    parts: BackupResources,
    rabbitmq: RabbitMQ,
    swift_session: SwiftServer,
    tmp_path: Path,
) -> None:
    overrides: Tables = {"engine": {"safe_slave_backup": True}}
    agent = Agent(tmp_path / "agent", rabbitmq, swift_session, replica, overrides)
    agent.start()
    try:
        with replica.connect() as holder:
            holder.cursor().execute("LOCK TABLES shop.orders WRITE")
            asked = agent.cli("backup-create", agent.instance_id, "cut-off")
            assert asked.returncode == 0, asked.stderr
            poll("it stopped", lambda: parts.database.replica_sql_running() == {"second"}, 30)
            agent.kill()
        agent.start()
        poll("it runs", lambda: parts.database.replica_sql_running() == BOTH, 30)
    finally:
        agent.stop()
