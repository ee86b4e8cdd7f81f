"""Tests of queries, words and privileges for each kind of server.

Those of MySQL are taken from its manual.
"""

from pathlib import Path
from typing import Any

import pytest

from agent.database import flavours
from agent.database.server import Database, DatabaseSettings, ServerInfo, Tablespace
from agent.errors import (
    DatabaseDenied,
    DatabaseQueryFailed,
    DatabaseUnreachable,
    LockTimeout,
)

MYSQL_8_GRANTS = (
    "GRANT RELOAD, PROCESS, LOCK TABLES, REPLICATION CLIENT ON *.* TO `agent`@`localhost`",
    "GRANT BACKUP_ADMIN ON *.* TO `agent`@`localhost`",
    "GRANT SELECT ON `performance_schema`.`keyring_component_status` TO `agent`@`localhost`",
    "GRANT SELECT ON `performance_schema`.`log_status` TO `agent`@`localhost`",
    "GRANT SELECT ON `performance_schema`.`replication_group_members` TO `agent`@`localhost`",
)
OLD_GRANT = "GRANT RELOAD, PROCESS, LOCK TABLES, REPLICATION CLIENT ON *.* TO 'a'@'localhost'"


def missing(
    grants: tuple[str, ...], number: tuple[int, ...], *, safe: bool = False, kind: str = "mysql"
) -> list[str]:
    held = flavours.held_privileges(grants)
    return flavours.missing_privileges(held, kind, number, safe_slave_backup=safe)


def test_the_grants_of_the_document_are_enough() -> None:
    assert missing(MYSQL_8_GRANTS, (8, 0, 35)) == []
    assert missing(MYSQL_8_GRANTS, (8, 4, 0)) == []
    assert missing((OLD_GRANT,), (5, 7, 44)) == []


@pytest.mark.parametrize("number", range(len(MYSQL_8_GRANTS)))
def test_each_line_of_grants_is_needed(number: int) -> None:
    fewer = MYSQL_8_GRANTS[:number] + MYSQL_8_GRANTS[number + 1 :]
    lacking = missing(fewer, (8, 0, 35))
    assert lacking
    assert len(lacking) == (4 if number == 0 else 1)


def test_a_table_that_the_server_does_not_have_yet_needs_no_grant() -> None:
    fewer = tuple(grant for grant in MYSQL_8_GRANTS if "keyring" not in grant)
    assert missing(fewer, (8, 0, 23)) == []
    lacking = missing(fewer, (8, 0, 24))
    assert lacking == ["SELECT ON performance_schema.keyring_component_status"]


def test_wider_grants_do() -> None:
    for wide in ("SELECT ON `performance_schema`.*", "SELECT ON *.*"):
        assert missing((*MYSQL_8_GRANTS[:2], f"GRANT {wide} TO `a`@`b`"), (8, 4, 0)) == []
    assert missing(("GRANT ALL PRIVILEGES ON *.* TO 'root'@'localhost'",), (5, 7, 1)) == []
    elsewhere = ("GRANT ALL PRIVILEGES ON `shop`.* TO 'a'@'localhost'",)
    assert "RELOAD" in missing(elsewhere, (5, 7, 1))


def test_a_replica_takes_one_more() -> None:
    assert missing(MYSQL_8_GRANTS, (8, 4, 0), safe=True) == ["REPLICATION_SLAVE_ADMIN"]
    more = "GRANT BACKUP_ADMIN,REPLICATION_SLAVE_ADMIN ON *.* TO `a`@`b`"
    assert missing((*MYSQL_8_GRANTS, more), (8, 4, 0), safe=True) == []
    assert missing((OLD_GRANT.replace("RELOAD", "RELOAD, SUPER"),), (5, 7, 1), safe=True) == []


def test_mariadb_before_10_5_has_one_privilege_for_both_monitors() -> None:
    old = ("GRANT RELOAD, PROCESS, REPLICATION CLIENT ON *.* TO `a`@`b`",)
    assert missing(old, (10, 4, 30), kind="mariadb") == []


def test_surplus_is_what_no_backup_needs() -> None:
    held = flavours.held_privileges((*MYSQL_8_GRANTS, "GRANT DROP ON *.* TO `a`@`b`"))
    assert flavours.surplus_privileges(held, "mysql", (8, 4, 0)) == ["DROP"]
    held = flavours.held_privileges(("GRANT USAGE ON *.* TO `a`@`b` WITH GRANT OPTION",))
    assert flavours.surplus_privileges(held, "mariadb", (10, 11)) == ["GRANT OPTION"]


def test_mysql_5_7_stops_a_replica_by_super_alone() -> None:
    assert missing((OLD_GRANT,), (5, 7, 32), safe=True) == ["SUPER"]
    held = flavours.held_privileges((OLD_GRANT.replace("RELOAD", "RELOAD, SUPER"),))

    def surplus(*number: int, safe: bool) -> list[str]:
        return flavours.surplus_privileges(held, "mysql", number, safe_slave_backup=safe)

    assert surplus(5, 7, 32, safe=True) == []
    assert surplus(5, 7, 32, safe=False) == ["SUPER"]
    # MySQL 8 has a lesser privilege for this.
    assert surplus(8, 0, 40, safe=True) == ["SUPER"]


@pytest.mark.parametrize(
    ("number", "logged_in", "kind", "words"),
    [
        (1045, False, DatabaseDenied, "refuses the login"),
        # MySQL 5.7 answers this to STOP SLAVE without SUPER.
        (1045, True, DatabaseDenied, "refuses a statement"),
        (1227, True, DatabaseDenied, "refuses a statement"),
        (1142, True, DatabaseDenied, "refuses a statement"),
        (1143, True, DatabaseDenied, "refuses a statement"),
        (1205, True, LockTimeout, "waiting for a lock"),
        (2013, True, DatabaseUnreachable, "does not answer"),
        (1184, True, DatabaseQueryFailed, "refuses a query"),
        (1064, True, DatabaseQueryFailed, "refuses a query"),
    ],
)
def test_errors_are_known_by_their_numbers_in_any_language(
    number: int, logged_in: bool, kind: type[Exception], words: str
) -> None:
    error = flavours.refusal("it", number, "Kein Zugriff", logged_in=logged_in)
    assert type(error) is kind
    assert words in str(error)
    assert ("init_connect" in error.hint) == (number == 1184)


@pytest.mark.parametrize(
    ("number", "status", "start"),
    [
        ((5, 7, 44), "SHOW SLAVE STATUS", "START SLAVE SQL_THREAD FOR CHANNEL %s"),
        ((8, 0, 21), "SHOW SLAVE STATUS", "START SLAVE SQL_THREAD FOR CHANNEL %s"),
        ((8, 0, 22), "SHOW REPLICA STATUS", "START REPLICA SQL_THREAD FOR CHANNEL %s"),
        ((8, 4, 0), "SHOW REPLICA STATUS", "START REPLICA SQL_THREAD FOR CHANNEL %s"),
    ],
)
def test_words_about_replicas(number: tuple[int, ...], status: str, start: str) -> None:
    words = flavours.replica_words("mysql", number)
    assert (words.status, words.start) == (status, start)


class _Mysql(Database):
    """A MySQL that answers as its manual says, for each table of information_schema."""

    def __init__(self, version: str, answers: dict[str, list[tuple[Any, ...]]]) -> None:
        super().__init__(DatabaseSettings(Path("s"), "u", "p"))
        self._info = ServerInfo("mysql", version, None, Path("/data"))
        self._answers = answers

    def server(self) -> ServerInfo:
        return self._info

    def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self._answers[sql.partition("information_schema.")[2].split()[0]]


def test_mysqls_tablespaces_are_named_as_in_the_stream() -> None:
    answers: dict[str, list[tuple[Any, ...]]] = {
        "INNODB_TABLESPACES": [
            (4294967294, "mysql.ibd", 1, None),
            (2, "shop/part.ibd", 2, None),
            (3, "ts1.ibd", 3, None),
            (4, "shop/t.ibd", 4, None),
            (5, "shop/#sql-ib77-1.ibd", 5, None),
        ],
        "INNODB_TABLESPACES_BRIEF": [
            (0, "./ibdata1", None, None),
            (2, "./shop/part#p#p0.ibd", None, None),
            (3, "./ts1.ibd", None, None),
            (4, "/elsewhere/shop/t.ibd", None, None),
        ],
        "INNODB_TABLES": [(2, None, None, 71)],
    }
    for version in ("8.0.35-27", "8.4.0"):
        assert _Mysql(version, answers).tablespaces() == {
            4294967294: Tablespace("mysql.ibd", 1),
            2: Tablespace("shop/part#p#p0.ibd", 2, 71),
            3: Tablespace("ts1.ibd", 3),
            4: Tablespace("shop/t.ibd", 4),
            5: Tablespace("shop/#sql-ib77-1.ibd", 5),
        }


@pytest.mark.parametrize("number", [(8, 0, 35), (8, 4), (5, 7, 44)])
def test_only_a_table_with_a_tablespace_of_its_own_gives_it_an_id(number: flavours.Version) -> None:
    asked = [sql for sql in flavours.tablespaces_queries("mysql", number) if "TABLE_ID" in sql]
    assert len(asked) == 1
    assert asked[0].endswith("WHERE SPACE_TYPE = 'Single'")


def test_older_mysqls_tell_less() -> None:
    answers: dict[str, list[tuple[Any, ...]]] = {
        "INNODB_SYS_TABLESPACES": [(4, None, 1 << 20, None), (5, None, 1, None)],
        "INNODB_SYS_DATAFILES": [(4, "./shop/t.ibd", None, None)],
        "INNODB_SYS_TABLES": [(4, None, None, 40)],
    }
    assert _Mysql("5.7.44", answers).tablespaces() == {4: Tablespace("shop/t.ibd", 1 << 20, 40)}
    answers["INNODB_SYS_DATAFILES"] = [(4, "./shop/t.ibd", 0, None)]
    assert _Mysql("5.6.51", answers).tablespaces() == {4: Tablespace("shop/t.ibd", 0, 40)}
