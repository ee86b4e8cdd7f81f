"""All SQL of the agent, for its queries to the server before, during and after a backup.

Every call opens its own connection over the UNIX socket, with short timeouts. So a restart of the
server between two calls does no harm.
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
# The tables that CHECK TABLE is useful for.
_TABLES = (
    "SELECT TABLE_SCHEMA, TABLE_NAME FROM information_schema.TABLES "
    "WHERE TABLE_TYPE = 'BASE TABLE' "
    "AND TABLE_SCHEMA NOT IN ('information_schema', 'performance_schema', 'sys')"
)
_CHECKED_AT_ONCE = 100  # tables in one CHECK TABLE statement
_LSN = "Innodb_lsn_current"
_FALSE_LSN = (
    "the status also shows the text of running statements, and one of them has a line that begins "
    "with `Log sequence number`. An engine that takes the number of that line copies too little "
    "redo log. End that session or change the statement, then back up again"
)

OnStop = Callable[[Callable[[], None]], AbstractContextManager[None]]


@dataclass(frozen=True)
class DatabaseSettings:
    """The server's socket, the login, and the deadline in seconds after which a query fails."""

    socket: Path
    user: str
    password: str = field(repr=False)
    timeout_seconds: float = 30.0


class ServerInfo(NamedTuple):
    """The server's own description of itself.

    `type` is `mariadb` or `mysql`. `server_uuid` is None on MariaDB, which has none.
    """

    type: str
    version: str
    server_uuid: str | None
    datadir: Path

    @property
    def number(self) -> tuple[int, ...]:
        """Return the version as numbers, such as `(8, 0, 35)` for `8.0.35-27`."""
        return flavours.numbers(self.version)


class Session(NamedTuple):
    """One session in the server's process list.

    It has been in its present state for `seconds`. `statement` is the beginning of the SQL
    statement that it runs, or "" if it runs none.
    """

    id: int
    user: str
    command: str
    seconds: int
    state: str
    statement: str


class Database:
    """A database server on this machine.

    Every method may raise DatabaseUnreachable, DatabaseDenied or DatabaseQueryFailed. It raises
    LockTimeout if it does not get a lock within half of `timeout_seconds`.
    """

    def __init__(self, settings: DatabaseSettings, on_stop: OnStop | None = None) -> None:
        self._settings = settings
        self._on_stop: OnStop = on_stop or (lambda _action: contextlib.nullcontext())

    def bound(self, on_stop: OnStop) -> "Database":
        """Return the same server with calls that fail at once on a stop.

        Each call registers an action by `on_stop`. When `on_stop` runs the action, the call loses
        its connection and fails.
        """
        return Database(self._settings, on_stop)

    def server(self) -> ServerInfo:
        """Return the server's type, version and datadir."""
        ((version, comment, datadir),) = self._rows(
            "SELECT @@version, @@version_comment, @@datadir"
        )
        uuids = self._rows("SHOW GLOBAL VARIABLES LIKE 'server\\_uuid'")  # MySQL only
        return ServerInfo(
            type="mariadb" if "mariadb" in f"{version} {comment}".lower() else "mysql",
            version=version,
            server_uuid=uuids[0][1] if uuids else None,
            datadir=Path(datadir),
        )

    def lsn(self) -> int:
        """Return the server's present log sequence number, for which the user needs PROCESS.

        Raises:
            DatabaseQueryFailed: the query failed, or a running statement has a line that looks like
                the log sequence number. Engines take the number from such a line.
        """
        ((_, _, text),) = self._rows("SHOW ENGINE INNODB STATUS")
        found = re.findall(r"^Log sequence number(.*)", text, re.MULTILINE)
        if len(found) != 1:
            message = f"SHOW ENGINE INNODB STATUS states {len(found)} log sequence numbers"
            raise DatabaseQueryFailed(message, hint=_FALSE_LSN)
        # The text of a statement can't forge the status counter. MySQL has no such counter.
        return self.counters(_LSN).get(_LSN) or int(found[0])

    def tablespaces(self) -> dict[int, Tablespace]:
        """Return the file-per-table InnoDB tablespaces by their numbers, which needs PROCESS.

        A tablespace keeps its number when its table is renamed. A table that is created again gets
        another number.

        The names, such as `a@002db/t#P#p0.ibd`, are the same as in the stream of a full backup,
        also for files outside the datadir. There is one exception: if a table was created or
        renamed since the server's last checkpoint, its name in the stream ends in `.new`.

        The result includes half-made tables of a running ALTER (`#sql...`), MySQL's general
        tablespaces and its data dictionary `mysql.ibd`, and MariaDB's tables with a discarded
        tablespace.
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
        """Return the names of the datadir's directories that the server does not treat as schemas.

        They come from its variable `ignore_db_dirs`.
        """
        return frozenset(",".join(self.variables("ignore_db_dirs").values()).split(",")) - {""}

    def lineage(self) -> Lineage:
        """Return the lineage of the datadir, which identifies its history.

        It holds the inode and the birth time of the first InnoDB system file, usually `ibdata1`,
        and the server's UUID. The journal knows its generation.
        """
        info = self.server()
        ((home, files),) = self._rows("SELECT @@innodb_data_home_dir, @@innodb_data_file_path")
        # An absolute path replaces the path before it, in the server as in pathlib.
        path = info.datadir / (home or "") / files.split(":")[0]
        inode, birth = _file_identity(path)
        return Lineage(server_uuid=info.server_uuid, inode=inode, birth=birth)

    def missing_privileges(self, *, safe_slave_backup: bool = False) -> list[str]:
        """Return the privileges that a backup needs and the agent's user lacks.

        The names are those of GRANT. MariaDB's SHOW GRANTS lists the privileges that the session
        has by a role. MySQL's does not, so there they do not count as held.
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
        """Return the values of global variables by name, without those that the server lacks."""
        return dict(self._rows(f"SHOW GLOBAL VARIABLES WHERE Variable_name IN {_quoted(names)}"))

    def counters(self, *names: str) -> dict[str, int]:
        """Return the values of status counters by name, without those that the server lacks."""
        rows = self._rows(f"SHOW GLOBAL STATUS WHERE Variable_name IN {_quoted(names)}")
        return {name: int(value) for name, value in rows}

    @property
    def user(self) -> str:
        """Return the name of the agent's database user."""
        return self._settings.user

    def sessions(self) -> list[Session]:
        """Return all sessions except the one of this call.

        Without PROCESS the server lists only the sessions of the agent's own user.
        """
        return [
            Session(int(row[0]), row[1] or "", row[4], int(row[5] or 0), row[6] or "", row[7] or "")
            for row in self._rows("SHOW PROCESSLIST")
            if row[7] != "SHOW PROCESSLIST"
        ]

    def check_tables(self) -> dict[str, str]:
        """Run CHECK TABLE on every table, and return the result for each table's name.

        The result is `OK` if the table is sound, and otherwise the server's complaint.
        """
        names = [
            ".".join(f"`{part.replace('`', '``')}`" for part in row) for row in self._rows(_TABLES)
        ]
        results: dict[str, str] = {}
        for at in range(0, len(names), _CHECKED_AT_ONCE):
            batch = ", ".join(names[at : at + _CHECKED_AT_ONCE])
            for table, _, kind, text in self._rows(f"CHECK TABLE {batch}"):
                # A note is about a table that has nothing to check.
                bad = kind not in ("status", "note")
                if bad or results.setdefault(table, "OK") == "OK":
                    results[table] = text if kind != "note" else "OK"
        return results

    def _privileges(self) -> frozenset[str]:
        """Return the privileges of the agent's user, by their names in SHOW GRANTS."""
        return flavours.held_privileges(grant for (grant,) in self._rows("SHOW GRANTS"))

    def replica_sql_running(self) -> frozenset[str]:
        """Return the replication channels with a running SQL thread.

        The usual channel has an empty name. The result is empty if the server isn't a replica. The
        channels of group replication itself are left out.
        """
        info = self.server()
        words = flavours.replica_words(info.type, info.number)
        with self._cursor(DictCursor) as cursor:
            cursor.execute(words.status)
            rows = [row for row in cursor.fetchall() if row[words.running] == b"Yes"]
        running = {row.get(words.channel, b"").decode() for row in rows}
        return frozenset(name for name in running if not name.startswith("group_replication_"))

    def start_replica_sql(self, channels: Iterable[str]) -> None:
        """Start the SQL thread of each channel, unless it runs already."""
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
        lock_wait = max(1, int(settings.timeout_seconds / 2))
        what = f"the database server at {settings.socket}"
        with (
            _translated(what),
            _connected(settings.socket) as plain,
            self._on_stop(lambda: _hang_up(plain)),
            pymysql.Connection(
                unix_socket=str(settings.socket),
                user=settings.user,
                # PyMySQL would send a str in Latin-1. The engine and the account use UTF-8.
                password=settings.password.encode(),
                charset="utf8mb4",
                # Take all answers as bytes, because the server cuts statements in the process
                # list, possibly in the middle of a character.
                use_unicode=False,
                conv=cast(Any, encoders),
                # Traffic on a socket file can't be intercepted, so TLS is not needed. To load the
                # certificate authorities takes 26 ms a session.
                ssl_disabled=True,
                read_timeout=settings.timeout_seconds,
                write_timeout=settings.timeout_seconds,
                init_command=f"SET SESSION lock_wait_timeout={lock_wait}, {flavours.PLAIN_SESSION}",
                defer_connect=True,
            ) as connection,
        ):
            connection.connect(plain)
            with _translated(what, logged_in=True), connection.cursor(kind) as cursor:
                yield cursor


@contextlib.contextmanager
def _connected(path: Path) -> Iterator[socket.socket]:
    """Yield a connected socket.

    PyMySQL's own attempt to connect leaves a socket open if no server listens.
    """
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(_CONNECT_SECONDS)
        plain.connect(str(path))
        yield plain


def _hang_up(connected: socket.socket) -> None:
    """Shut down a socket, so that a thread that waits for an answer on it fails at once.

    Any thread may call this.
    """
    with contextlib.suppress(OSError):  # the server has already closed the connection
        connected.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _translated(what: str, *, logged_in: bool = False) -> Iterator[None]:
    """Turn the driver's errors into the agent's errors, by their numbers.

    Their texts are not judged, because they come in any language.
    """
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
    """Return names, which must be constants of the agent, as a list in SQL."""
    return f"({', '.join(map(repr, names))})"


def _file_identity(path: Path) -> tuple[int, int]:
    """Return a file's inode and birth time.

    The birth time is in seconds since 1970. It is 0 if the filesystem keeps none. Python's os.stat
    has no birth time on Linux, but stat(1) has it as %W.
    """
    argv = ["stat", "--dereference", "--format=%i %W", "--", str(path)]
    try:
        done = subprocess.run(  # noqa: S603 - no shell; the path comes from the server
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
            f"can't read the inode of {path}: {stderr.decode(errors='replace').strip()}",
            hint="run the agent as the server's own OS user, on the server's own machine",
        ) from error
    inode, birth = done.stdout.split()
    return int(inode), max(0, int(birth))
