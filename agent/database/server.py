"""The agent's only SQL: what it asks the server before, during and after a backup.

Every call opens a connection of its own over the UNIX socket, with short timeouts, so
that a restart of the server between two calls needs no care.
"""

import contextlib
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import pymysql
from pymysql.converters import encoders
from pymysql.cursors import Cursor, DictCursor

from agent.database import flavours
from agent.database.flavours import Tablespace as Tablespace
from agent.errors import DatabaseQueryFailed, DatabaseUnreachable
from agent.model import Lineage

_CONNECT_SECONDS = 5
_STAT_SECONDS = 10
# The tables that CHECK TABLE makes sense for, and how many one statement takes.
_TABLES = (
    "SELECT TABLE_SCHEMA, TABLE_NAME FROM information_schema.TABLES "
    "WHERE TABLE_TYPE = 'BASE TABLE' "
    "AND TABLE_SCHEMA NOT IN ('information_schema', 'performance_schema', 'sys')"
)
_CHECKED_AT_ONCE = 100
_LSN = "Innodb_lsn_current"
_FALSE_LSN = (
    "a statement shown there has such a line in it, and an engine that believes it copies too "
    "little redo log: end that session, or change the statement, and back up again"
)


OnStop = Callable[[Callable[[], None]], AbstractContextManager[None]]


@dataclass(frozen=True)
class DatabaseSettings:
    """How to reach the server; a query that takes longer than `timeout_seconds` fails."""

    socket: Path
    user: str
    password: str = field(repr=False)
    timeout_seconds: float = 30.0


class ServerInfo(NamedTuple):
    """What the server says of itself; `type` is `mariadb` or `mysql`."""

    type: str
    version: str
    comment: str
    server_uuid: str | None
    datadir: Path

    @property
    def number(self) -> tuple[int, ...]:
        """`(8, 0, 35)` of `8.0.35-27`."""
        return flavours.numbers(self.version)


class Session(NamedTuple):
    """One line of the server's process list; what it does has lasted for `seconds`.

    `statement` is the beginning of the SQL that it runs, empty where it runs none.
    """

    id: int
    user: str
    command: str
    seconds: int
    state: str
    statement: str


class Database:
    """One database server on this machine.

    Every method raises DatabaseUnreachable, DatabaseDenied, DatabaseQueryFailed, or LockTimeout
    where a lock is not to be had within half of `timeout_seconds`.
    """

    def __init__(self, settings: DatabaseSettings, on_stop: OnStop | None = None) -> None:
        self._settings = settings
        self._on_stop: OnStop = on_stop or (lambda _action: contextlib.nullcontext())

    def bound(self, on_stop: OnStop) -> "Database":
        """The same server, whose calls fail at once when `on_stop` calls what it is given."""
        return Database(self._settings, on_stop)

    def server(self) -> ServerInfo:
        """Who the server is."""
        ((version, comment, datadir),) = self._rows(
            "SELECT @@version, @@version_comment, @@datadir"
        )
        uuids = self._rows("SHOW GLOBAL VARIABLES LIKE 'server\\_uuid'")  # MySQL only
        return ServerInfo(
            type="mariadb" if "mariadb" in f"{version} {comment}".lower() else "mysql",
            version=version,
            comment=comment,
            server_uuid=uuids[0][1] if uuids else None,
            datadir=Path(datadir),
        )

    def lsn(self) -> int:
        """The server's present log sequence number; needs PROCESS.

        DatabaseQueryFailed also where a statement holds what looks like one: engines take it so.
        """
        ((_, _, text),) = self._rows("SHOW ENGINE INNODB STATUS")
        found = re.findall(r"^Log sequence number(.*)", text, re.MULTILINE)
        if len(found) != 1:
            said = f"SHOW ENGINE INNODB STATUS states {len(found)} log sequence numbers"
            raise DatabaseQueryFailed(said, hint=_FALSE_LSN)
        # a number that no statement's text can forge; MySQL has no such counter
        return self.counters(_LSN).get(_LSN) or int(found[0])

    def tablespaces(self) -> dict[int, Tablespace]:
        """The file-per-table InnoDB tablespaces by their numbers.

        A number goes with a table through renames; one that is made again has another. Names,
        as in `a@002db/t#P#p0.ibd`, are those of a full backup's stream, also for files outside
        the datadir; but there one that was created or renamed since the server's last checkpoint
        ends in `.new`. Half-made tables of a running ALTER (`#sql...`) are there, and so are
        MySQL's general tablespaces and its data dictionary `mysql.ibd`, and MariaDB's tables
        whose tablespace is discarded. PROCESS.
        """
        info = self.server()
        found = {}
        rows = flavours.joined(
            map(self._rows, flavours.tablespaces_queries(info.type, info.number))
        )
        for space, (path, allocated, table_id) in rows.items():
            name = path and flavours.stream_name(path, general=info.type == "mysql")
            if not name:
                continue
            table = Tablespace(name, int(allocated or 0), int(table_id or 0))
            path = info.datadir / name
            if allocated is not None or os.path.isfile(path):
                found[space] = table
            elif not os.path.isfile(path.with_suffix(".isl")):
                found[space] = table._replace(discarded=True)
        return found

    def ignored_directories(self) -> frozenset[str]:
        """The names of directories in the datadir that the server takes for no schema."""
        return frozenset(",".join(self.variables("ignore_db_dirs").values()).split(",")) - {""}

    def lineage(self, generation: str = "") -> Lineage:
        """Which history the datadir has: of its `ibdata1`, the inode and the birth time."""
        info = self.server()
        ((home, files),) = self._rows("SELECT @@innodb_data_home_dir, @@innodb_data_file_path")
        # an absolute part replaces what stands before it, here as in the server
        path = info.datadir / (home or "") / files.split(":")[0]
        inode, birth = _file_identity(path)
        return Lineage(
            server_uuid=info.server_uuid, inode=inode, birth=birth, generation=generation
        )

    def missing_privileges(self, *, safe_slave_backup: bool = False) -> list[str]:
        """The privileges that a backup needs and the agent's user lacks, as GRANT names them.

        MariaDB's SHOW GRANTS tells those that the session has by a role, MySQL's does not: they
        don't count as held.
        """
        info = self.server()
        return flavours.missing_privileges(
            self._privileges(), info.type, info.number, safe_slave_backup=safe_slave_backup
        )

    def surplus_privileges(self, *, safe_slave_backup: bool = False) -> list[str]:
        """Return the global privileges that the agent's user holds and no backup needs."""
        info = self.server()
        return flavours.surplus_privileges(
            self._privileges(), info.type, info.number, safe_slave_backup=safe_slave_backup
        )

    def variables(self, *names: str) -> dict[str, str]:
        """Those of the server's global variables that it has, by their names."""
        return dict(self._rows(f"SHOW GLOBAL VARIABLES WHERE Variable_name IN {_quoted(names)}"))

    def counters(self, *names: str) -> dict[str, int]:
        """Those of the server's status counters that it has, by their names."""
        rows = self._rows(f"SHOW GLOBAL STATUS WHERE Variable_name IN {_quoted(names)}")
        return {name: int(value) for name, value in rows}

    @property
    def user(self) -> str:
        """Who the agent is there."""
        return self._settings.user

    def sessions(self) -> list[Session]:
        """All sessions but the one that asks; without PROCESS only the agent's own."""
        return [
            Session(int(row[0]), row[1] or "", row[4], int(row[5] or 0), row[6] or "", row[7] or "")
            for row in self._rows("SHOW PROCESSLIST")
            if row[7] != "SHOW PROCESSLIST"
        ]

    def check_tables(self) -> dict[str, str]:
        """CHECK TABLE of every table: what it says of each, `OK` where all is well."""
        names = [
            ".".join(f"`{part.replace('`', '``')}`" for part in row) for row in self._rows(_TABLES)
        ]
        said: dict[str, str] = {}
        for at in range(0, len(names), _CHECKED_AT_ONCE):
            batch = ", ".join(names[at : at + _CHECKED_AT_ONCE])
            for table, _, kind, text in self._rows(f"CHECK TABLE {batch}"):
                # a note is about a table that has nothing to be checked
                bad = kind not in ("status", "note")
                if bad or said.setdefault(table, "OK") == "OK":
                    said[table] = text if kind != "note" else "OK"
        return said

    def _privileges(self) -> frozenset[str]:
        """The privileges of the agent's user, as SHOW GRANTS names them."""
        return flavours.held_privileges(grant for (grant,) in self._rows("SHOW GRANTS"))

    def replica_sql_running(self) -> frozenset[str]:
        """The replication channels whose SQL thread runs; the usual one's name is empty.

        None on a server that isn't a replica. A group's own channels are left out.
        """
        info = self.server()
        words = flavours.replica_words(info.type, info.number)
        with self._cursor(DictCursor) as cursor:
            cursor.execute(words.status)
            rows = [row for row in cursor.fetchall() if row[words.running] == b"Yes"]
        running = {row.get(words.channel, b"").decode() for row in rows}
        return frozenset(name for name in running if not name.startswith("group_replication_"))

    def start_replica_sql(self, channels: Iterable[str]) -> None:
        """Start the SQL thread of each channel; one that runs stays as it is."""
        info = self.server()
        words = flavours.replica_words(info.type, info.number)
        with self._cursor() as cursor:
            for name in channels:
                if name:
                    cursor.execute(words.start, (name,))
                else:
                    cursor.execute(words.start_only)

    def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        with self._cursor() as cursor:
            cursor.execute(sql)
            return [tuple(map(_text, row)) for row in cursor.fetchall()]

    @contextlib.contextmanager
    def _cursor(self, kind: type[Cursor] = Cursor) -> Iterator[Any]:
        settings = self._settings
        patience = max(1, int(settings.timeout_seconds / 2))
        what = f"the database server at {settings.socket}"
        with (
            _translated(what),
            _connected(settings.socket) as plain,
            self._on_stop(lambda: _hang_up(plain)),
            pymysql.Connection(
                unix_socket=str(settings.socket),
                user=settings.user,
                # a str would be sent in Latin-1; the engine and the account have UTF-8
                password=settings.password.encode(),
                charset="utf8mb4",
                # all answers as bytes: the server cuts statements in the midst of a letter
                use_unicode=False,
                conv=cast(Any, encoders),
                # nobody listens in on a socket file; to load the authorities takes 26 ms a session
                ssl_disabled=True,
                read_timeout=settings.timeout_seconds,
                write_timeout=settings.timeout_seconds,
                init_command=f"SET SESSION lock_wait_timeout={patience}, {flavours.PLAIN_SESSION}",
                defer_connect=True,
            ) as connection,
        ):
            connection.connect(plain)
            with _translated(what, logged_in=True), connection.cursor(kind) as cursor:
                yield cursor


@contextlib.contextmanager
def _connected(path: Path) -> Iterator[socket.socket]:
    """A connected socket; PyMySQL's own attempt leaves one open where nobody listens."""
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(_CONNECT_SECONDS)
        plain.connect(str(path))
        yield plain


def _hang_up(connected: socket.socket) -> None:
    """Have whoever waits for an answer on it wait no longer; from any thread."""
    with contextlib.suppress(OSError):  # the server has hung up already
        connected.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _translated(what: str, *, logged_in: bool = False) -> Iterator[None]:
    """Turn the driver's errors into the agent's, by their numbers: texts come in any language."""
    try:
        yield
    except OSError as error:
        raise DatabaseUnreachable(f"{what} does not answer: {error.strerror or error}") from error
    except pymysql.MySQLError as error:
        number, reason = (error.args[0], error.args[-1]) if error.args else (None, repr(error))
        raise flavours.refusal(what, number, reason, logged_in=logged_in) from error


def _text(value: bytes | None) -> str | None:
    return value if value is None else value.decode(errors="replace")


def _quoted(names: Sequence[str]) -> str:
    """Names of our own as a list in SQL."""
    return f"({', '.join(map(repr, names))})"


def _file_identity(path: Path) -> tuple[int, int]:
    """Inode and birth time (seconds since 1970; 0 where the filesystem keeps none).

    Python's os.stat has no birth time on Linux; stat(1) has it as %W.
    """
    argv = ["stat", "--dereference", "--format=%i %W", "--", str(path)]
    try:
        done = subprocess.run(  # noqa: S603 - a list; the path comes from the server
            argv,
            capture_output=True,
            timeout=_STAT_SECONDS,
            check=True,
            stdin=subprocess.DEVNULL,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        )
    except (OSError, subprocess.SubprocessError) as error:
        stderr = getattr(error, "stderr", None) or str(error).encode()
        raise DatabaseQueryFailed(
            f"can't look at {path}: {stderr.decode(errors='replace').strip()}",
            hint="run the agent as the server's own OS user, on the server's own machine",
        ) from error
    inode, birth = done.stdout.split()
    return int(inode), max(0, int(birth))
