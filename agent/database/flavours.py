"""Differences between database servers in queries, statements, privileges and versions.

Everything about MariaDB has been tried on a server. Everything about MySQL and Percona Server
follows their manuals.
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

# The privileges that the engines' manuals require (docs/engines.md). The first name of each row is
# the current one, the others are those of older servers.
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
# Tables of performance_schema that xtrabackup reads, and the first server version that has each.
_READ: Final = {
    "log_status": (8, 0),
    "replication_group_members": (8, 0),
    "keyring_component_status": (8, 0, 24),
}
# The privileges that allow a user to stop and start a replica's SQL thread. One of each row is
# enough. MySQL before 8.0 has only SUPER.
_REPLICA_ADMIN: Final = {
    "mariadb": ("REPLICATION SLAVE ADMIN", "SUPER"),
    "mysql": ("REPLICATION_SLAVE_ADMIN", "SUPER"),
    "mysql 5": ("SUPER",),
}
# Privileges that do no harm: USAGE is no right at all, older manuals required LOCK TABLES, and a
# replica may need the lesser privilege of _REPLICA_ADMIN.
_USEFUL: Final = frozenset({"USAGE", "LOCK TABLES", *_REPLICA_ADMIN["mariadb"][:1]})
_USEFUL_MYSQL: Final = frozenset({"USAGE", *_REPLICA_ADMIN["mysql"][:1]})

# Each query returns the columns number, path, allocated bytes, table id. The first query of each
# entry lists the tablespaces. The others fill in the columns that are NULL in its answer. The
# agent joins the answers itself: the servers have no index on these tables, and a join in SQL
# takes seconds if there are thousands of tablespaces.
_TABLESPACES: Final = {
    # INNODB_SYS_TABLES, the dictionary, has all tables. INNODB_SYS_TABLESPACES may lack tables
    # that were not opened since the server started.
    "mariadb": (
        "SELECT SPACE, CONCAT(NAME, '.ibd'), NULL, TABLE_ID "
        "FROM information_schema.INNODB_SYS_TABLES WHERE SPACE > 0",
        "SELECT SPACE, NULL, ALLOCATED_SIZE, NULL FROM information_schema.INNODB_SYS_TABLESPACES",
    ),
    # NAME of INNODB_TABLESPACES is decoded. PATH of INNODB_TABLESPACES_BRIEF is not, and it is
    # missing for `mysql`, the data dictionary. A tablespace with a size of 0 bytes was discarded
    # and has no file. Undo tablespaces are left out, because a truncation during the backup gives
    # them other numbers and files.
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
    # MySQL 5.6 does not report sizes, and has no general tablespaces.
    "mysql 5.6": (
        "SELECT SPACE, PATH, 0, NULL FROM information_schema.INNODB_SYS_DATAFILES",
        "SELECT SPACE, NULL, NULL, TABLE_ID FROM information_schema.INNODB_SYS_TABLES "
        "WHERE SPACE > 0",
    ),
}
# Error numbers of the MariaDB and MySQL manuals: ER_DBACCESS_DENIED, ER_ACCESS_DENIED,
# ER_ACCESS_DENIED_NO_PASSWORD and ER_ACCOUNT_HAS_BEEN_LOCKED in both servers' numbering. MySQL
# 5.7 also answers 1045 to STOP SLAVE from a user without SUPER.
_LOGIN_REFUSED: Final = frozenset({1044, 1045, 1698, 3118, 4151})
# ER_TABLEACCESS_DENIED, ER_COLUMNACCESS_DENIED, ER_SPECIFIC_ACCESS_DENIED.
_PRIVILEGE_LACKING: Final = frozenset({1142, 1143, 1227})
# ER_CON_COUNT_ERROR, ER_SERVER_SHUTDOWN, and the client library's own connection errors.
_UNREACHABLE: Final = frozenset({1040, 1053, 2002, 2003, 2006, 2013})
_LOCK_WAIT_TIMEOUT: Final = 1205
# ER_ABORTING_CONNECTION and ER_NEW_ABORTING_CONNECTION mean that init_connect failed.
_ABORTED: Final = frozenset({1152, 1184})
_INIT_CONNECT_HINT: Final = (
    "the server's init_connect must work for the agent's database user: grant the privileges that "
    "it needs, or grant CONNECTION ADMIN (CONNECTION_ADMIN on MySQL): for a user with that "
    "privilege the server skips init_connect"
)
# Session settings for the agent's queries. The server's global settings could change or end the
# queries: by a limit of time or rows, by another meaning of quotes, or by messages in another
# language. MariaDB ignores the comment for MySQL 5.7.8.
PLAIN_SESSION: Final = (
    "sql_mode='', sql_select_limit=18446744073709551615, sql_big_selects=1, lc_messages='en_US' "
    "/*M!100101 , max_statement_time=0 */ /*!50708 , max_execution_time=0 */"
)
# The global settings of this kind that make an engine fail, with the least number of rows that each
# must allow. The agent can't change the settings of an engine's sessions.
ENGINE_LIMITS: Final = {"sql_select_limit": 10_000, "max_join_size": 1_000_000}

_GRANT: Final = re.compile(r"GRANT (.+?) ON (\S+) TO ")


class Tablespace(NamedTuple):
    """The own tablespace of one InnoDB table or partition, or a general tablespace.

    `allocated` is in bytes. `table_id` does not change when the table is renamed. A table gets an
    id higher than all before when it is created, rebuilt or truncated, or when its tablespace is
    discarded. The id is 0 for a general tablespace, which holds many tables and can't be imported.
    It is also 0 if the table was dropped between the agent's queries. A `discarded` tablespace has
    no file, and waits for IMPORT TABLESPACE.
    """

    path: str
    allocated: int
    table_id: int = 0
    discarded: bool = False

    @property
    def whole(self) -> bool:
        """Return True if the tablespace is complete, and neither discarded nor half-made."""
        return not self.discarded and not half_made(self.path)


class ReplicaWords(NamedTuple):
    """A server's statements about replication, and the columns of its answers.

    `status` is the query. `channel` and `running` are columns of its answer. `start` is a
    statement with a placeholder for the channel's name. `start_only` starts the channel with the
    empty name, which is the only one of a server without channel names.
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
    # MySQL 5.6 has no channels. Later versions start all channels by this statement.
    start_only="START SLAVE SQL_THREAD",
)


def numbers(version: str) -> Version:
    """Return `(8, 0, 35)` for `8.0.35-27`, or `()` if the version does not begin with a number."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def tablespaces_queries(server_type: str, number: Version) -> tuple[str, ...]:
    """Return the queries for the tablespaces that are in each full backup.

    If the bytes stay NULL, the table may have no file. Then its tablespace was discarded, or the
    table was not opened yet.
    """
    if server_type == "mariadb" or number >= (8, 0):
        return _TABLESPACES[server_type]
    return _TABLESPACES["mysql 5.7" if number >= (5, 7) else "mysql 5.6"]


def truncates_in_place(server_type: str, number: Version) -> bool:
    """Return True if TRUNCATE gives a table another id but keeps the number of its tablespace.

    On all other servers, the same number with another id means that the tablespace was discarded.
    It may have been imported afterwards.
    """
    return server_type == "mysql" and (5, 7) <= number < (8, 0)


def joined(answers: Iterable[Iterable[Sequence[Any]]]) -> dict[int, list[Any]]:
    """Join the answers to the tablespace queries, in the order of the queries.

    Return a list of path, bytes and table id for each tablespace number.
    """
    first, *others = answers
    rows = {int(space): row for space, *row in first}
    for answer in others:
        for space, *values in answer:
            if row := rows.get(int(space)):
                row[:] = [old if new is None else new for old, new in zip(row, values, strict=True)]
    return rows


def stream_name(path: str, *, general: bool = False) -> str | None:
    """Return `schema/table.ibd` for the path of a table's own tablespace, or None for other paths.

    With `general`, return also `name.ibd` for the path of a general tablespace.
    """
    parts = PurePosixPath(path).parts[-2:]
    if len(parts) < 2 and not general:
        return None
    return "/".join(parts) if path.endswith(".ibd") else None


def half_made(path: str) -> bool:
    """Return True if a file belongs to a table that a running or broken ALTER builds."""
    return PurePosixPath(path).name.startswith("#sql")


def replica_words(server_type: str, number: Version) -> ReplicaWords:
    if server_type == "mariadb":
        return _MARIADB_REPLICA
    return _MYSQL_REPLICA if number >= _MYSQL_REPLICA_SINCE else _OLD_MYSQL_REPLICA


def refusal(what: str, number: object, reason: object, *, logged_in: bool) -> AgentError:
    """Return the agent's error for a server's error number.

    The text of the server's error is not judged, because it comes in any language.
    """
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
    """Return the privileges in the lines of SHOW GRANTS.

    They have the form `RELOAD` or `SELECT ON performance_schema.*`. MySQL has static and dynamic
    privileges on separate lines. Its lines lack the privileges that come by a role.
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
    """Return the privileges that a backup needs and that are not held."""
    if "ALL PRIVILEGES" in held:
        return []
    required = _required(server_type, number)
    if safe_slave_backup:
        required.append(_replica_admin(server_type, number))
    return sorted(names[0] for names in required if not held.intersection(names))


def surplus_privileges(
    held: frozenset[str], server_type: str, number: Version, *, safe_slave_backup: bool = False
) -> list[str]:
    """Return the privileges that are held on all databases and that no backup needs."""
    needed = {name for names in _required(server_type, number) for name in names}
    if safe_slave_backup:
        # SUPER also allows this, but counts as surplus if the server has the lesser privilege.
        needed.add(_replica_admin(server_type, number)[0])
    useful = _USEFUL if server_type == "mariadb" else _USEFUL_MYSQL
    return sorted(name for name in held - needed - useful if " ON " not in name)


def _replica_admin(server_type: str, number: Version) -> tuple[str, ...]:
    old = server_type == "mysql" and number < (8, 0)
    return _REPLICA_ADMIN["mysql 5" if old else server_type]


def _required(server_type: str, number: Version) -> list[tuple[str, ...]]:
    """Return the privileges that a user needs, each with the names of which one is enough."""
    required = list(_REQUIRED[server_type])
    if server_type == "mysql" and number >= _BACKUP_ADMIN_SINCE:
        required.append(("BACKUP_ADMIN",))
        required += [
            (f"SELECT ON performance_schema.{table}", "SELECT ON performance_schema.*", "SELECT")
            for table, since in _READ.items()
            if number >= since
        ]
    return required
