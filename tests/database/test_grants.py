"""Tests that systemd/grants.sql gives the privileges that a backup needs.

MariaDB runs the file. For each MySQL it is only read.
"""

import re
import subprocess

import pytest

from agent.database import flavours
from tests.house.source import CHECKOUT
from tests.stack.mariadb import MariaDB

GRANTS = CHECKOUT / "systemd/grants.sql"
ACCOUNT = "'backup_agent'@'localhost'"


def seen_by_mysql(number: int) -> str:
    """Return the file as a MySQL of that number (such as 50732) reads it."""
    text = re.sub(r"/\*M!.*?\*/", "", GRANTS.read_text(), flags=re.DOTALL)
    return re.sub(
        r"/\*!(\d{5})(.*?)\*/",
        lambda found: found[2] if number >= int(found[1]) else "",
        text,
        flags=re.DOTALL,
    )


@pytest.mark.parametrize("number", [(5, 7, 32), (8, 0, 42), (8, 4, 0)])
def test_mysql_gets_what_a_backup_needs(number: tuple[int, int, int]) -> None:
    major, minor, patch = number
    text = seen_by_mysql(major * 10000 + minor * 100 + patch)
    statements = re.sub(r"^--.*", "", text, flags=re.MULTILINE).split(";")
    grants = [" ".join(one.split()) for one in statements]
    held = flavours.held_privileges(grants)
    assert flavours.missing_privileges(held, "mysql", number, safe_slave_backup=False) == []
    assert flavours.surplus_privileges(held, "mysql", number) == []


def test_mariadb_runs_it_twice_and_gives_what_a_backup_needs(mariadb: MariaDB) -> None:
    """The account gets another name, because the session's server already has `backup_agent`."""
    text = GRANTS.read_text().replace(ACCOUNT, "'granted'@'localhost'")
    argv = ["mariadb", "--no-defaults", f"--socket={mariadb.socket}", f"--user={mariadb.admin}"]
    for _ in range(2):
        subprocess.run(argv, input=text, text=True, check=True, timeout=60)
    held = flavours.held_privileges(
        grant for (grant,) in mariadb.query("SHOW GRANTS FOR granted@localhost")
    )
    assert flavours.missing_privileges(held, "mariadb", (10, 11), safe_slave_backup=False) == []
    assert flavours.surplus_privileges(held, "mariadb", (10, 11)) == []
