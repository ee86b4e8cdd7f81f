"""A private MariaDB server that tests install, fill, stop and kill.

It listens on a socket in its directory and on a loopback port. The account with all rights is
named after the OS user and logs in over the socket without a password.
"""

import getpass
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pymysql
from pymysql.constants import CLIENT

from tests.stack.process import ServerProcess, StackError, free_port

AGENT_PASSWORD = "s#cret 'quoted\" \\and; more"
# Exactly the privileges that `mariadb-backup` and agent/database/server.py need.
AGENT_PRIVILEGES = "RELOAD, PROCESS, LOCK TABLES, BINLOG MONITOR, REPLICA MONITOR"
# Options that make a server small on disk, and therefore quick to copy.
SMALL_SERVER = {
    "innodb-log-file-size": "8M",
    "innodb-buffer-pool-size": "16M",
    "innodb-data-file-path": "ibdata1:4M:autoextend",
    "innodb-undo-tablespaces": "0",
    "innodb-autoextend-increment": "1",
}
_SYSTEM_SCHEMAS = "('mysql', 'sys', 'information_schema', 'performance_schema')"
_WORDS = "'paid','shipped to the customer','returned','waiting for stock','gift wrap','express'"


class MariaDB:
    """A server with its data in `folder/data`, or in an existing `datadir`."""

    def __init__(
        self, folder: Path, datadir: Path | None = None, options: Mapping[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.datadir = datadir or folder / "data"
        self.socket = folder / "server.sock"
        self.port = free_port()
        self.admin = getpass.getuser()
        self.agent_user = "backup_agent"
        self.password_file = folder / "agent-password"
        self.options = dict(options or {})
        self._process: ServerProcess | None = None

    def install(self, options: Sequence[str] = ()) -> None:
        """Create an empty datadir in about 1 s. `options` are arguments for the server."""
        argv = ["mariadb-install-db", "--no-defaults", f"--datadir={self.datadir}"]
        argv += ["--auth-root-authentication-method=socket", "--skip-test-db"]
        argv += [f"--auth-root-socket-user={self.admin}", f"--user={self.admin}", *options]
        # another server that starts with the same tmpdir removes all temporary tables in it
        done = subprocess.run(
            argv,
            env={**os.environ, "TMPDIR": str(self.folder)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode:
            raise StackError(f"mariadb-install-db failed:\n{done.stdout}\n{done.stderr}")

    def launch(self) -> None:
        """Start the server and return at once."""
        tmpdir = self.folder / "tmp"
        tmpdir.mkdir(exist_ok=True)
        settings = {
            "user": self.admin,
            "datadir": self.datadir,
            "socket": self.socket,
            "port": self.port,
            "bind-address": "127.0.0.1",
            "pid-file": self.folder / "server.pid",
            "tmpdir": tmpdir,
            "log-bin": "binlog",
            "server-id": 1,
            "innodb-buffer-pool-size": "192M",
            "innodb-log-file-size": "128M",
            "innodb-flush-log-at-trx-commit": 2,
            "character-set-server": "utf8mb4",
        } | self.options
        text = "[mariadbd]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items())
        option_file = self.folder / "server.cnf"
        option_file.write_text(text)
        argv = ["mariadbd", f"--defaults-file={option_file}"]
        self._process = ServerProcess(argv, self.folder / "server.log")

    def wait_ready(self) -> None:
        """Wait until the server answers a query, at most 60 s."""
        if self._process is None:
            raise StackError("wait_ready() before launch()")
        self._process.wait_ready(self._answers, 60)

    def start(self) -> None:
        self.launch()
        self.wait_ready()

    def running(self) -> bool:
        """Return True if the server was started and has not ended."""
        return self._process is not None and self._process.running()

    def stop(self) -> None:
        """Shut the server down cleanly. Do nothing if it doesn't run."""
        if self._process is not None:
            self._process.stop(seconds=60)
            self._process = None

    def kill(self) -> None:
        """End the server with SIGKILL, as a crash would."""
        if self._process is not None:
            self._process.stop(signal.SIGKILL)
            self._process = None

    def connect(self) -> "pymysql.Connection[Any]":
        """Return an autocommit connection of the account with all rights."""
        return pymysql.connect(
            unix_socket=str(self.socket),
            user=self.admin,
            charset="utf8mb4",
            autocommit=True,
            connect_timeout=5,
            read_timeout=120,
            client_flag=CLIENT.MULTI_STATEMENTS,
        )

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Run one or more statements and return the rows of the last one."""
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            rows = cursor.fetchall()
            while cursor.nextset():
                rows = cursor.fetchall()
            return list(rows)

    def execute_many(self, *statements: str) -> None:
        """Run statements one after the other on one connection."""
        with self.connect() as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    def create_agent_user(self) -> None:
        """Create the user with the agent's rights. Put its password in `password_file` (0600)."""
        self.password_file.unlink(missing_ok=True)
        descriptor = os.open(self.password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(AGENT_PASSWORD + "\n")
        with self.connect() as connection, connection.cursor() as cursor:
            account = f"'{self.agent_user}'@'localhost'"
            cursor.execute(f"CREATE OR REPLACE USER {account} IDENTIFIED BY %s", (AGENT_PASSWORD,))
            cursor.execute(f"GRANT {AGENT_PRIVILEGES} ON *.* TO {account}")

    def load_rows(self, mebibytes: int, schema: str = "shop") -> None:
        """Fill `schema` with about `mebibytes` MiB of tablespaces, in two threads.

        The rows are inserted in bulk into empty tables, without the binlog. Half of them are orders
        (text), the rest are customers and events. Deflate compresses them by a factor of about 2.5.
        """
        self.execute_many(f"CREATE SCHEMA IF NOT EXISTS `{schema}`")
        loads = [_orders(schema, mebibytes * 0.55), _customers(schema, mebibytes * 0.45)]
        errors: list[pymysql.MySQLError] = []
        threads = [threading.Thread(target=self._load, args=(load, errors)) for load in loads]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise StackError(f"loading rows failed: {errors[0]}")

    def _load(self, statements: list[str], errors: list[pymysql.MySQLError]) -> None:
        quick = "SET sql_log_bin=0, unique_checks=0, foreign_key_checks=0"
        try:
            self.execute_many(quick, *statements)
        except pymysql.MySQLError as error:
            errors.append(error)

    def checksums(self) -> dict[str, int]:
        """Return the CHECKSUM TABLE value of each non-system table, keyed by `schema.table`."""
        tables = self.query(
            "SELECT TABLE_SCHEMA, TABLE_NAME FROM information_schema.TABLES "
            f"WHERE TABLE_TYPE = 'BASE TABLE' AND TABLE_SCHEMA NOT IN {_SYSTEM_SCHEMAS}"
        )
        names = ", ".join(f"`{schema}`.`{table}`" for schema, table in tables)
        return dict(self.query(f"CHECKSUM TABLE {names}")) if names else {}

    def checkpoint(self) -> None:
        """Make the server write a checkpoint, so that an incremental's `to_lsn` advances."""
        self.query("SET GLOBAL innodb_log_checkpoint_now = ON")

    def _answers(self) -> bool:
        # PyMySQL leaves the socket open if it can't connect
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(self.socket)):
                return False
        return self.query("SELECT 1") == [(1,)]


def checksums_of(datadir: Path, folder: Path) -> dict[str, int]:
    """Start a server on a restored datadir and return the checksums of its tables.

    `folder` is for the server's other files.
    """
    server = MariaDB(folder, datadir=datadir)
    try:
        server.start()
        return server.checksums()
    finally:
        server.stop()


def connection_id(connection: "pymysql.Connection[Any]") -> int:
    """Return the process list's id of a connection that runs no query at the moment."""
    return int(connection.thread_id())  # type: ignore[no-untyped-call]


def _orders(schema: str, mebibytes: float) -> list[str]:
    """Return the statements for the wide table of orders with text, about 380 bytes a row."""
    rows = max(100, int(mebibytes * (1 << 20) / 377))
    return [
        f"CREATE TABLE `{schema}`.orders (id BIGINT PRIMARY KEY, customer INT NOT NULL, "
        "placed DATETIME NOT NULL, total DECIMAL(12,2) NOT NULL, state VARCHAR(40), "
        "remark TEXT, token CHAR(64) CHARACTER SET ascii, KEY (customer), KEY (placed))",
        f"INSERT INTO `{schema}`.orders SELECT seq, CRC32(seq) % 500000, "
        "'2015-01-01' + INTERVAL CRC32(seq + 7) % 250000000 SECOND, "
        "(CRC32(seq * 3) % 9999999) / 100, "
        f"ELT(1 + CRC32(seq + 1) % 6, {_WORDS}), "
        f"CONCAT('Order ', seq, ': ', ELT(1 + CRC32(seq + 2) % 6, {_WORDS}), ', ', "
        f"ELT(1 + CRC32(seq + 3) % 6, {_WORDS}), ', ref ', SHA1(seq), ', line ', "
        "CRC32(seq * 11), ', street ', CRC32(seq * 13), ', note ', MD5(seq * 17), "
        f"ELT(1 + CRC32(seq + 5) % 6, {_WORDS})), SHA2(seq, 256) "
        f"FROM `{schema}`.seq_1_to_{rows}",
    ]


def _customers(schema: str, mebibytes: float) -> list[str]:
    """Return the statements for two narrow tables with names, mail addresses and numbers."""
    customers = max(100, int(mebibytes * 0.6 * (1 << 20) / 235))
    events = max(100, int(mebibytes * 0.4 * (1 << 20) / 82))
    return [
        f"CREATE TABLE `{schema}`.customers (id INT PRIMARY KEY, name VARCHAR(80), "
        "mail VARCHAR(120), city VARCHAR(40), balance DECIMAL(12,2), born DATE, "
        "address VARCHAR(120), KEY (mail))",
        f"INSERT INTO `{schema}`.customers SELECT seq, CONCAT('Customer ', CRC32(seq)), "
        "CONCAT('c', seq, '.', LEFT(MD5(seq), 12), '@mail.example'), "
        "ELT(1 + CRC32(seq + 9) % 5, 'Lisbon', 'Vienna', 'Oslo', 'Łódź', 'San José'), "
        "(CRC32(seq * 5) % 9999999) / 100, '1940-01-01' + INTERVAL CRC32(seq) % 25000 DAY, "
        "CONCAT(CRC32(seq * 19), ' ', SHA1(seq + 1), ' road') "
        f"FROM `{schema}`.seq_1_to_{customers}",
        f"CREATE TABLE `{schema}`.events (id BIGINT PRIMARY KEY, at TIMESTAMP(3) NOT NULL, "
        "kind SMALLINT NOT NULL, amount DOUBLE, detail VARBINARY(48))",
        f"INSERT INTO `{schema}`.events SELECT seq, "
        "FROM_UNIXTIME(1500000000 + seq / 3), CRC32(seq) % 40, CRC32(seq * 23) / 1000, "
        f"UNHEX(SHA1(seq)) FROM `{schema}`.seq_1_to_{events}",
    ]
