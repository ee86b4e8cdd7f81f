"""An engine that waits for a lock of a real server.

The watch notices the wait, names the holder, and ends the engine in time.
"""

import threading
import time
from pathlib import Path
from typing import Any

import pymysql
import pytest

from agent.database.server import Database, DatabaseSettings, Session
from agent.engine.mariadb import MariadbBackup, MariadbBackupSettings
from agent.errors import LockTimeout
from agent.operations.backup.lock_watch import LockWatch, _holders
from agent.pipeline.meter import every
from agent.stop import Stop
from tests.engine.test_runs import read_all
from tests.stack.mariadb import AGENT_PASSWORD, MariaDB, connection_id
from tests.stack.process import poll

SECONDS = 0.8


def database_of(server: MariaDB) -> Database:
    return Database(DatabaseSettings(server.socket, server.agent_user, AGENT_PASSWORD))


def engine_of(server: MariaDB) -> MariadbBackup:
    return MariadbBackup(
        MariadbBackupSettings(socket=server.socket, user=server.agent_user, password=AGENT_PASSWORD)
    )


def copied(server: MariaDB, folder: Path, seconds: float = SECONDS) -> Stop:
    """Run an engine under the watch. Return its Stop, which has a cause if the watch stopped it."""
    stop = Stop()
    locks = LockWatch(database_of(server), seconds, stop)
    with (
        engine_of(server).start_backup(folder, None) as run,
        stop.on_stop(run.interrupt),
        every(locks.interval, locks.check),
    ):
        read_all(run)
        if stop.cause is None:
            run.finish()
    return stop


def test_a_lock_that_is_held_too_long_ends_the_engine_and_names_the_holder(
    mariadb: MariaDB, tmp_path: Path
) -> None:
    with mariadb.connect() as holder:
        holder.cursor().execute("LOCK TABLES shop.orders WRITE")
        began = time.monotonic()
        cause = copied(mariadb, tmp_path).cause
        assert time.monotonic() - began < 8
        assert isinstance(cause, LockTimeout)
        assert "BACKUP STAGE START (Waiting for backup lock)" in str(cause)
        assert f" {connection_id(holder)} (idle for " in str(cause)
        assert "lock_wait_seconds" in cause.hint


def test_a_lock_of_the_agents_own_account_is_named(mariadb: MariaDB, tmp_path: Path) -> None:
    """The sessions of the engine have the same account, and are not named."""
    mariadb.query(f"GRANT SELECT ON shop.* TO {mariadb.agent_user}@localhost")
    with pymysql.connect(
        unix_socket=str(mariadb.socket), user=mariadb.agent_user, password=AGENT_PASSWORD
    ) as holder:
        holder.cursor().execute("LOCK TABLES shop.orders WRITE")
        cause = copied(mariadb, tmp_path).cause
        mariadb.query(f"REVOKE SELECT ON shop.* FROM {mariadb.agent_user}@localhost")
        assert isinstance(cause, LockTimeout)
        assert f"may hold the lock: {connection_id(holder)} (idle for " in str(cause)
        assert str(cause).count(" s)") == 1


def test_a_replicas_idle_threads_hold_nothing() -> None:
    """MySQL 5.7 shows threads like these. One that executes a statement may hold a lock."""
    waiting = Session(9, "a", "Query", 70, "Waiting for table flush", "FLUSH TABLES WITH READ LOCK")
    threads = [
        Session(2, "system user", "Connect", 9000, "Waiting for master to send event", ""),
        Session(3, "system user", "Connect", 9000, "Slave has read all relay log", ""),
        Session(4, "system user", "Connect", 300, "altering table", "ALTER TABLE t FORCE"),
        Session(5, "event_scheduler", "Daemon", 9000, "Waiting on empty queue", ""),
    ]
    assert _holders([waiting, *threads], 60.0) == ["4 (ALTER for 300 s)"]


def test_a_running_statement_is_blamed_by_its_first_word_only(
    mariadb: MariaDB, tmp_path: Path
) -> None:
    with mariadb.connect() as holder:
        ddl = "CREATE OR REPLACE TABLE shop.held AS SELECT SLEEP(20), 'secret' AS s"
        begun = threading.Thread(target=_swallowed, args=(holder, ddl))
        begun.start()
        poll("it runs", lambda: "secret" in str(mariadb.query("SHOW FULL PROCESSLIST")), 10)
        cause = copied(mariadb, tmp_path).cause
        mariadb.query(f"KILL QUERY {connection_id(holder)}")
        begun.join()
    assert isinstance(cause, LockTimeout)
    assert f" {connection_id(holder)} (CREATE for " in str(cause)
    assert "secret" not in str(cause)


def _swallowed(connection: "pymysql.Connection[Any]", sql: str) -> None:
    with pytest.raises(pymysql.OperationalError, match="interrupted"):
        connection.cursor().execute(sql)


def test_a_lock_that_is_given_up_in_time_only_delays(mariadb: MariaDB, tmp_path: Path) -> None:
    with mariadb.connect() as holder:
        holder.cursor().execute("LOCK TABLES shop.orders WRITE")
        release = threading.Timer(1.0, lambda: holder.cursor().execute("UNLOCK TABLES"))
        release.start()
        assert copied(mariadb, tmp_path, 10).cause is None
        release.join()


def test_a_busy_server_is_no_lock(mariadb: MariaDB, tmp_path: Path) -> None:
    """The engine's own --startup-wait-timeout waits until no query runs at all."""
    ended = threading.Event()

    def work() -> None:
        with mariadb.connect() as connection:
            while not ended.is_set():
                connection.cursor().execute("SELECT SLEEP(0.2)")

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        assert copied(mariadb, tmp_path).cause is None
    finally:
        ended.set()
        for worker in workers:
            worker.join()


def test_other_sessions_that_wait_stop_nothing(mariadb: MariaDB) -> None:
    with mariadb.connect() as holder, mariadb.connect() as other:
        holder.cursor().execute("LOCK TABLES shop.orders WRITE")
        waiter = threading.Thread(
            target=lambda: other.cursor().execute("SELECT COUNT(*) FROM shop.orders")
        )
        waiter.start()
        stop = Stop()
        locks = LockWatch(database_of(mariadb), 0.1, stop)
        poll("it waits", lambda: "metadata lock" in str(mariadb.query("SHOW PROCESSLIST")), 10)
        locks.check()
        threading.Event().wait(0.2)
        locks.check()
        assert stop.cause is None
        holder.cursor().execute("UNLOCK TABLES")
        waiter.join()


def test_a_server_that_does_not_answer_stops_nothing(tmp_path: Path) -> None:
    stop = Stop()
    settings = DatabaseSettings(tmp_path / "none", "u", "p")
    LockWatch(Database(settings), 0.1, stop).check()
    assert stop.cause is None


def test_our_own_queries_wait_for_a_lock_only_so_long(mariadb: MariaDB) -> None:
    impatient = Database(DatabaseSettings(mariadb.socket, mariadb.admin, "", 2.0))
    with mariadb.connect() as holder:
        holder.cursor().execute("LOCK TABLES shop.orders WRITE")
        began = time.monotonic()
        with pytest.raises(LockTimeout, match="waiting for a lock"):
            impatient._rows("SELECT COUNT(*) FROM shop.orders")
        assert time.monotonic() - began < 2
