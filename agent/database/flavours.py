"""What differs from one database server to the next: queries, words, privileges, versions.

Of MariaDB everything here is tried; of MySQL and Percona Server it is as their manuals have it.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any, Final, NamedTuple

from agent.errors import (
    AgentError,
    DatabaseDenied,
    DatabaseQueryFailed,
    DatabaseUnreachable,
    LockTimeout,
)

Version = tuple[int, ...]

# What the engines' manuals ask for (docs/engines.md); the first of each row's names is the
# present one, the others are those of older servers.
_REQUIRED: Final = {
    "mariadb": (
        ("RELOAD",),
        ("PROCESS",),
        ("BINLOG MONITOR", "REPLICATION CLIENT"),
        ("SLAVE MONITOR", "REPLICATION CLIENT"),
    ),
    "mysql": (("RELOAD",), ("PROCESS",), ("LOCK TABLES",), ("REPLICATION CLIENT",)),
}
_BACKUP_ADMIN_SINCE: Final = (8, 0)
# Tables of performance_schema that xtrabackup reads, and since when the server has them.
_READ: Final = {
    "log_status": (8, 0),
    "replication_group_members": (8, 0),
    "keyring_component_status": (8, 0, 24),
}
# What stopping and starting a replica's SQL thread takes. MySQL before 8.0 has SUPER alone.
_REPLICA_ADMIN: Final = {
    "mariadb": ("REPLICATION SLAVE ADMIN", "SUPER"),
    "mysql": ("REPLICATION_SLAVE_ADMIN", "SUPER"),
    "mysql 5": ("SUPER",),
}
# Held without harm: no right at all, what older manuals asked for, what a replica may need.
_USEFUL: Final = frozenset({"USAGE", "LOCK TABLES", *_REPLICA_ADMIN["mariadb"][:1]})
_USEFUL_MYSQL: Final = frozenset({"USAGE", *_REPLICA_ADMIN["mysql"][:1]})

# Rows of number, path, allocated bytes, table id. The first query of each row tells
# which tablespaces there are; the others fill in what it doesn't know. They are joined here: the
# servers have no index on these tables, and take seconds where there are thousands.
_TABLESPACES: Final = {
    # The dictionary has all tables; INNODB_SYS_TABLESPACES may lack those that were not opened
    # since the server began.
    "mariadb": (
        "SELECT SPACE, CONCAT(NAME, '.ibd'), NULL, TABLE_ID "
        "FROM information_schema.INNODB_SYS_TABLES WHERE SPACE > 0",
        "SELECT SPACE, NULL, ALLOCATED_SIZE, NULL FROM information_schema.INNODB_SYS_TABLESPACES",
    ),
    # NAME is decoded there, PATH is not and is missing for `mysql`, the data dictionary. What
    # has no bytes was discarded and has no file. Undo tablespaces are left out: a truncation
    # gives them other numbers and files meanwhile.
    "mysql": (
        "SELECT SPACE, CONCAT(NAME, '.ibd'), ALLOCATED_SIZE, NULL "
        "FROM information_schema.INNODB_TABLESPACES "
        "WHERE SPACE_TYPE IN ('Single', 'General') AND FILE_SIZE > 0",
        "SELECT SPACE, PATH, NULL, NULL FROM information_schema.INNODB_TABLESPACES_BRIEF",
        "SELECT SPACE, NULL, NULL, TABLE_ID FROM information_schema.INNODB_TABLES "
        "WHERE SPACE_TYPE = 'Single'",
    ),
    "mysql 5.7": (
        "SELECT SPACE, NULL, ALLOCATED_SIZE, NULL "
        "FROM information_schema.INNODB_SYS_TABLESPACES WHERE FILE_SIZE > 0",
        "SELECT SPACE, PATH, NULL, NULL FROM information_schema.INNODB_SYS_DATAFILES",
        "SELECT SPACE, NULL, NULL, TABLE_ID FROM information_schema.INNODB_SYS_TABLES "
        "WHERE SPACE_TYPE = 'Single'",
    ),
    # which doesn't tell sizes, and has no general tablespaces
    "mysql 5.6": (
        "SELECT SPACE, PATH, 0, NULL FROM information_schema.INNODB_SYS_DATAFILES",
        "SELECT SPACE, NULL, NULL, TABLE_ID FROM information_schema.INNODB_SYS_TABLES "
        "WHERE SPACE > 0",
    ),
}
# Error numbers of the MariaDB and MySQL manuals: ER_DBACCESS_DENIED, ER_ACCESS_DENIED,
# ER_ACCESS_DENIED_NO_PASSWORD and ER_ACCOUNT_HAS_BEEN_LOCKED in both servers' numbering. MySQL
# 5.7 answers STOP SLAVE without SUPER with 1045, too.
_LOGIN_REFUSED: Final = frozenset({1044, 1045, 1698, 3118, 4151})
# ER_TABLEACCESS_DENIED, ER_COLUMNACCESS_DENIED, ER_SPECIFIC_ACCESS_DENIED.
_PRIVILEGE_LACKING: Final = frozenset({1142, 1143, 1227})
# ER_CON_COUNT_ERROR, ER_SERVER_SHUTDOWN, and the client's own errors of the connection.
_UNREACHABLE: Final = frozenset({1040, 1053, 2002, 2003, 2006, 2013})
_LOCK_WAIT_TIMEOUT: Final = 1205
# ER_ABORTING_CONNECTION, ER_NEW_ABORTING_CONNECTION: init_connect failed.
_ABORTED: Final = frozenset({1152, 1184})
_INIT_CONNECT_HINT: Final = (
    "the server's init_connect must work for the agent's database user: grant what it needs, or "
    "grant CONNECTION ADMIN (CONNECTION_ADMIN on MySQL), for which the server leaves it out"
)
# What a server's global settings may hold that would change or end the agent's queries: a limit
# of time or rows, quotes with another meaning, words of another language. MariaDB ignores the
# comment for MySQL 5.7.8.
PLAIN_SESSION: Final = (
    "sql_mode='', sql_select_limit=18446744073709551615, sql_big_selects=1, lc_messages='en_US' "
    "/*M!100101 , max_statement_time=0 */ /*!50708 , max_execution_time=0 */"
)
# What of such settings ends an engine, whose sessions nobody else can change: rows at least.
ENGINE_LIMITS: Final = {"sql_select_limit": 10_000, "max_join_size": 1_000_000}

_GRANT: Final = re.compile(r"GRANT (.+?) ON (\S+) TO ")


class Tablespace(NamedTuple):
    """One InnoDB table's or partition's own file, or a general tablespace; `allocated` in bytes.

    `table_id` outlives a rename. A table that is made, rebuilt, truncated, or whose tablespace
    is discarded gets one higher than all before. A general tablespace, which holds many tables
    and can't be imported, has 0; so has a table that was dropped while the server was asked.
    A `discarded` one has no file, and waits for IMPORT TABLESPACE.
    """

    path: str
    allocated: int
    table_id: int = 0
    discarded: bool = False

    @property
    def whole(self) -> bool:
        """Whether it is a table with all its data: neither discarded nor half-made."""
        return not self.discarded and not half_made(self.path)


class ReplicaWords(NamedTuple):
    """How a server is asked about its replication, and how it answers.

    `start` takes the channel's name, `start_only` starts the only one of a server that knows
    no names.
    """

    status: str
    channel: str
    running: str
    start: str
    start_only: str


_MARIADB_REPLICA: Final = ReplicaWords(
    status="SHOW ALL SLAVES STATUS",
    channel="Connection_name",
    running="Slave_SQL_Running",
    start="START SLAVE %s SQL_THREAD",
    start_only="START SLAVE '' SQL_THREAD",
)
_MYSQL_REPLICA: Final = ReplicaWords(
    status="SHOW REPLICA STATUS",
    channel="Channel_Name",
    running="Replica_SQL_Running",
    start="START REPLICA SQL_THREAD FOR CHANNEL %s",
    start_only="START REPLICA SQL_THREAD FOR CHANNEL ''",
)
_MYSQL_REPLICA_SINCE: Final = (8, 0, 22)
_OLD_MYSQL_REPLICA: Final = ReplicaWords(
    status="SHOW SLAVE STATUS",
    channel="Channel_Name",
    running="Slave_SQL_Running",
    start="START SLAVE SQL_THREAD FOR CHANNEL %s",
    # 5.6 knows no channels; later it starts all of them
    start_only="START SLAVE SQL_THREAD",
)


def numbers(version: str) -> Version:
    """`(8, 0, 35)` of `8.0.35-27`; empty where it begins with no number."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def tablespaces_queries(server_type: str, number: Version) -> tuple[str, ...]:
    """Return what asks for the tablespaces that are in each full backup.

    Bytes that stay NULL are those of a table that may have no file: it was discarded, or not
    opened yet.
    """
    if server_type == "mariadb" or number >= (8, 0):
        return _TABLESPACES[server_type]
    return _TABLESPACES["mysql 5.7" if number >= (5, 7) else "mysql 5.6"]


def truncates_in_place(server_type: str, number: Version) -> bool:
    """Return True if TRUNCATE gives a table another id and leaves its tablespace the number.

    On all other servers the same number with another id was discarded, and imported or not.
    """
    return server_type == "mysql" and (5, 7) <= number < (8, 0)


def joined(answers: Iterable[Iterable[Sequence[Any]]]) -> dict[int, list[Any]]:
    """Return path, bytes and table id by number, from the answers to those queries in order."""
    first, *others = answers
    rows = {int(space): row for space, *row in first}
    for answer in others:
        for space, *values in answer:
            if row := rows.get(int(space)):
                row[:] = [old if new is None else new for old, new in zip(row, values, strict=True)]
    return rows


def stream_name(path: str, *, general: bool = False) -> str | None:
    """`schema/table.ibd` of a tablespace's path; None for what isn't one table's own file.

    With `general`, also `name.ibd`.
    """
    parts = PurePosixPath(path).parts[-2:]
    if len(parts) < 2 and not general:
        return None
    return "/".join(parts) if path.endswith(".ibd") else None


def half_made(path: str) -> bool:
    """Whether a file is of a table that a running or broken ALTER builds."""
    return PurePosixPath(path).name.startswith("#sql")


def replica_words(server_type: str, number: Version) -> ReplicaWords:
    if server_type == "mariadb":
        return _MARIADB_REPLICA
    return _MYSQL_REPLICA if number >= _MYSQL_REPLICA_SINCE else _OLD_MYSQL_REPLICA


def refusal(what: str, number: object, reason: object, *, logged_in: bool) -> AgentError:
    """Return the error that a server's error number stands for; texts come in any language."""
    if number in _LOGIN_REFUSED and not logged_in:
        return DatabaseDenied(f"{what} refuses the login: {reason}")
    if number in _LOGIN_REFUSED | _PRIVILEGE_LACKING:
        hint = "grant the privileges that `backup-agent self-test` names (docs/engines.md)"
        return DatabaseDenied(f"{what} refuses a statement: {reason}", hint=hint)
    if number == _LOCK_WAIT_TIMEOUT:
        return LockTimeout(f"{what} kept a query waiting for a lock: {reason}")
    if number in _UNREACHABLE:
        return DatabaseUnreachable(f"{what} does not answer: {reason}")
    return DatabaseQueryFailed(
        f"{what} refuses a query: {reason}",
        hint=_INIT_CONNECT_HINT if number in _ABORTED else None,
    )


def held_privileges(grants: Iterable[str]) -> frozenset[str]:
    """What the lines of SHOW GRANTS give: `RELOAD`, `SELECT ON performance_schema.*`.

    MySQL has static and dynamic privileges on lines of their own. Those that come by a role
    aren't there.
    """
    held: set[str] = set()
    for grant in grants:
        if found := _GRANT.match(grant):
            scope = found[2].replace("`", "")
            suffix = "" if scope == "*.*" else f" ON {scope}"
            held |= {name.strip() + suffix for name in found[1].split(",")}
            held |= {"GRANT OPTION" + suffix} if grant.endswith("WITH GRANT OPTION") else set()
    return frozenset(held)


def missing_privileges(
    held: frozenset[str], server_type: str, number: Version, *, safe_slave_backup: bool
) -> list[str]:
    """What a backup needs beyond what is held."""
    if "ALL PRIVILEGES" in held:
        return []
    required = _required(server_type, number)
    if safe_slave_backup:
        required.append(_replica_admin(server_type, number))
    return sorted(names[0] for names in required if not held.intersection(names))


def surplus_privileges(
    held: frozenset[str], server_type: str, number: Version, *, safe_slave_backup: bool = False
) -> list[str]:
    """Return what is held on all databases, and no backup needs."""
    needed = {name for names in _required(server_type, number) for name in names}
    if safe_slave_backup:
        # not what would do as well, where there is a lesser right
        needed.add(_replica_admin(server_type, number)[0])
    useful = _USEFUL if server_type == "mariadb" else _USEFUL_MYSQL
    return sorted(name for name in held - needed - useful if " ON " not in name)


def _replica_admin(server_type: str, number: Version) -> tuple[str, ...]:
    old = server_type == "mysql" and number < (8, 0)
    return _REPLICA_ADMIN["mysql 5" if old else server_type]


def _required(server_type: str, number: Version) -> list[tuple[str, ...]]:
    """What a user needs, each with the names that do as well."""
    required = list(_REQUIRED[server_type])
    if server_type == "mysql" and number >= _BACKUP_ADMIN_SINCE:
        required.append(("BACKUP_ADMIN",))
        required += [
            (f"SELECT ON performance_schema.{table}", "SELECT ON performance_schema.*", "SELECT")
            for table, since in _READ.items()
            if number >= since
        ]
    return required
