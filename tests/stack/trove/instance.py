"""One database instance of Trove, seen from this machine."""

import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pymysql
from pymysql.constants import CLIENT

from tests.stack.process import StackError

_PASSWORD_FILE = "conf.d/root.cnf"
_SYSTEM_SCHEMAS = "('mysql', 'sys', 'information_schema', 'performance_schema')"


class Instance:
    """A machine that Trove made. `home` is its directory on this machine.

    `pid` is the machine's first process. The machine's files are below `root`.
    """

    def __init__(self, instance_id: str, name: str, home: Path, pid: int) -> None:
        self.id = instance_id
        self.name = name
        self.home = home
        self.pid = pid

    @property
    def guest_log(self) -> Path:
        return self.home / "log" / "trove-guestagent.log"

    @property
    def root(self) -> Path:
        """The machine's root directory, with the mounts that only it sees."""
        return Path("/proc", str(self.pid), "root")

    @property
    def datadir(self) -> Path:
        return self.root / "var/lib/mysql/data"

    @property
    def socket(self) -> Path:
        return self.home / "mysqld" / "mysqld.sock"

    def container_logs(self, name: str) -> list[Path]:
        """Return the output of each container of that name (`db_backup`, ...), oldest first."""
        found = (self.home / "containers").glob(f"{name}-*.log")
        return sorted(found, key=lambda path: path.stat().st_mtime_ns)

    def container_specifications(self, name: str) -> list[dict[str, Any]]:
        """Return what each container of that name was started with, oldest first.

        It has `command`, `directory`, `environment`, `user` and `binds` (source, target, mode).
        """
        found = (self.home / "containers").glob(f"{name}-*.json")
        ordered = sorted(found, key=lambda path: path.stat().st_mtime_ns)
        return [json.loads(path.read_text()) for path in ordered]

    def docker(self, method: str, path: str) -> Any:
        """Send a request to the machine's Docker, as in `POST /containers/db_backup/stop?t=10`.

        Return the answer's JSON, or None.

        Raises:
            StackError: the status isn't one of success.
        """
        connection = HTTPConnection("localhost", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self.root / "run/docker.sock"))
        with closing(connection):
            connection.request(method, path)
            answer = connection.getresponse()
            text = answer.read()
        if answer.status >= 300:
            raise StackError(f"{method} {path}: {answer.status} {text!r}")
        return json.loads(text) if text else None

    def container(self, name: str) -> dict[str, Any] | None:
        """Return Docker's description of a container, or None if there is none of that name."""
        try:
            return dict(self.docker("GET", f"/containers/{name}/json"))
        except StackError as error:
            if "404" not in str(error):
                raise
            return None

    def processes(self, program: str = "") -> list[psutil.Process]:
        """Return the machine's processes, or those with that word in a command line."""
        found = []
        for one in psutil.Process(self.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if program in " ".join(one.cmdline()):
                    found.append(one)
        return found

    def guest_agent(self) -> psutil.Process:
        """Return the process of the guest agent."""
        [found] = self.processes("trove-guestagent")
        return found

    def sql(self, statements: str) -> list[tuple[Any, ...]]:
        """Run one or more statements as root. Return the rows of the last one."""
        with self._cursor() as cursor:
            cursor.execute(statements)
            rows = cursor.fetchall()
            while cursor.nextset():
                rows = cursor.fetchall()
            return list(rows)

    def checksums(self) -> dict[str, int]:
        """Return the CHECKSUM TABLE value of each non-system table, keyed by `schema.table`."""
        tables = self.sql(
            "SELECT TABLE_SCHEMA, TABLE_NAME FROM information_schema.TABLES "
            f"WHERE TABLE_TYPE = 'BASE TABLE' AND TABLE_SCHEMA NOT IN {_SYSTEM_SCHEMAS}"
        )
        names = ", ".join(f"`{schema}`.`{table}`" for schema, table in tables)
        return dict(self.sql(f"CHECKSUM TABLE {names}")) if names else {}

    def _password(self) -> str:
        text = (self.root / "var/lib/mysql" / _PASSWORD_FILE).read_text()
        [line] = [one for one in text.splitlines() if one.startswith("password")]
        return line.partition("=")[2].strip()

    @contextmanager
    def _cursor(self) -> Iterator[Any]:
        connection = pymysql.connect(
            unix_socket=str(self.socket),
            user="root",
            password=self._password(),
            charset="utf8mb4",
            autocommit=True,
            connect_timeout=5,
            read_timeout=120,
            client_flag=CLIENT.MULTI_STATEMENTS,
        )
        with connection, connection.cursor() as cursor:
            yield cursor
