"""The content of a server as the server reports it: definitions and rows of everything, by name.

Two servers have the same content if this is equal. The queries read only the tables. They use no
knowledge of files, of the engine or of the agent.
"""

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import pymysql
from pymysql.cursors import Cursor

from tests.faults.names.words import quoted
from tests.stack.mariadb import MariaDB

Content = Mapping[str, str]

_OWN: Final = ("information_schema", "performance_schema")
# The prefix of a directory that belongs to no schema. Nothing can be made in it.
_STRAY: Final = "#mysql50#"
# Tables in `mysql` that the server writes by itself, and the large tables of its manual.
_RESTLESS: Final = frozenset(
    {
        *("help_topic", "help_keyword", "help_relation", "help_category", "time_zone_name"),
        *("innodb_table_stats", "innodb_index_stats", "table_stats", "column_stats"),
        *("index_stats", "gtid_slave_pos", "general_log", "slow_log", "transaction_registry"),
    }
)
_PLACE: Final = re.compile(r" (DATA|INDEX) DIRECTORY ?= ?'[^']*'")
_CHECKED_AT_ONCE: Final = 100


def content(
    server: MariaDB, only: Collection[str] = (), but: Collection[str] = ()
) -> dict[str, str]:
    """Return the content by name, with rows as a digest.

    `only` limits it to some schemas, and `but` leaves some out. The rows of MEMORY tables are
    left out, because no server keeps them.
    """
    found: dict[str, str] = {}
    with server.connect() as connection, connection.cursor() as cursor:
        for [schema] in _rows(cursor, "SHOW DATABASES"):
            own = schema in _OWN or schema.startswith(_STRAY)
            if not own and schema not in but and (not only or schema in only):
                found[f"schema {schema!r}"] = _said(
                    cursor, f"SHOW CREATE DATABASE {quoted(schema)}"
                )
                found.update(_tables(cursor, schema))
    return found


def unwell(server: MariaDB, only: Content) -> list[str]:
    """Return the errors that CHECK TABLE EXTENDED finds in the tables whose rows `only` has."""
    tables = [name.removeprefix("rows ") for name, said in only.items() if said[:5] == "rows "]
    found = []
    with server.connect() as connection, connection.cursor() as cursor:
        for at in range(0, len(tables), _CHECKED_AT_ONCE):
            batch = ", ".join(tables[at : at + _CHECKED_AT_ONCE])
            for table, _, kind, said in _rows(cursor, f"CHECK TABLE {batch} EXTENDED"):
                if kind == "error" or (kind == "status" and said != "OK"):
                    found.append(f"CHECK TABLE {table}: {said}")
    return found


def differences(one: Content, two: Content) -> list[str]:
    """Return the differences, one a line. `one` is the expected content."""
    return [
        f"{name}: {one.get(name, 'missing')} became {two.get(name, 'missing')}"
        for name in sorted({*one, *two})
        if one.get(name) != two.get(name)
    ]


def _tables(cursor: Cursor, schema: str) -> Iterator[tuple[str, str]]:
    for name, kind in _rows(cursor, f"SHOW FULL TABLES FROM {quoted(schema)}"):
        if (schema == "mysql" and name in _RESTLESS) or (schema == "sys" and kind == "VIEW"):
            continue
        table = quoted(schema, name)
        made = _said(cursor, f"SHOW CREATE TABLE {table}")
        yield f"made {table}", _PLACE.sub("", made)
        if kind != "VIEW" and "ENGINE=MEMORY" not in made:
            every = " FOR SYSTEM_TIME ALL" if kind == "SYSTEM VERSIONED" else ""
            yield f"rows {table}", _digest(cursor, f"SELECT * FROM {table}{every}")
    for row in _rows(cursor, f"SHOW TRIGGERS FROM {quoted(schema)}"):
        yield f"trigger {quoted(schema, row[0])}", repr(row[1:])


def _digest(cursor: Cursor, query: str) -> str:
    """Return the number of rows and a digest of them, in which their order doesn't matter."""
    try:
        rows = sorted(map(repr, _rows(cursor, query)))
    except pymysql.MySQLError as error:
        return f"error {error.args[0]}"
    digest = hashlib.sha256("\n".join(rows).encode()).hexdigest()[:12]
    return f"rows {len(rows)} {digest}"


def _said(cursor: Cursor, query: str) -> str:
    try:
        return " ".join(str(part) for part in _rows(cursor, query)[0][1:])
    except pymysql.MySQLError as error:
        return f"error {error.args[0]}"


def _rows(cursor: Cursor, query: str) -> list[tuple[Any, ...]]:
    cursor.execute(query)
    return list(cursor.fetchall())
