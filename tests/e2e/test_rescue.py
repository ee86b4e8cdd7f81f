"""The commands of docs/restore-without-the-agent.md on a fresh chain in a real Swift."""

from pathlib import Path

import pytest

from tests.e2e.conftest import with_daemon
from tests.golden import rescue
from tests.stack.agent import KEY_ID, Agent
from tests.stack.mariadb import MariaDB, checksums_of


@pytest.fixture(scope="module")
def chain(agent_session: Agent, base: str) -> tuple[str, str]:
    """Return the ids of a full backup and of an incremental on it."""
    agent_session.mariadb.query("CREATE SCHEMA rescue; CREATE TABLE rescue.t AS SELECT 1 AS a")
    agent_session.mariadb.checkpoint()
    late = with_daemon(agent_session).create("to be rescued", "--parent", base)
    return base, str(late["id"])


@pytest.fixture
def settings(agent: Agent, chain: tuple[str, str]) -> dict[str, str | Path]:
    """Return the variables that the page asks the operator to set."""
    return {
        "ST_AUTH": agent.swift.auth_url,
        "ST_USER": agent.swift.user,
        "ST_KEY": agent.swift.key,
        "CONTAINER": f"database_backups_{agent.tenant_id}",
        "ID": chain[1],
        "KEY": agent.folder / "keys" / f"{KEY_ID}.key",
    }


def test_with_the_swift_client(
    settings: dict[str, str | Path], chain: tuple[str, str], mariadb: MariaDB, tmp_path: Path
) -> None:
    before = mariadb.checksums()
    steps = ["begin", "swift", "chain", "verify", "extract", "disarm", "prepare"]
    done = rescue.follow(steps, tmp_path, settings)
    assert done.returncode == 0, done.stderr
    datadir = tmp_path / "rescue" / f"data-{chain[0]}"
    restored = checksums_of(datadir, tmp_path / "server")
    # other tests may have added schemas since the backup was made
    assert restored == {name: before[name] for name in restored}
    assert {"rescue.t", "shop.orders", "shop.customers", "shop.events"} <= restored.keys()


def test_with_curl(settings: dict[str, str | Path], chain: tuple[str, str], tmp_path: Path) -> None:
    done = rescue.follow(["begin", "curl", "chain", "verify"], tmp_path, settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(chain)
    assert done.stderr.count("OK: all ") == 2


def test_a_failure_ends_the_commands(settings: dict[str, str | Path], tmp_path: Path) -> None:
    wrong = settings | {"KEY": "/dev/null"}
    done = rescue.follow(["begin", "curl", "chain", "verify", "extract"], tmp_path, wrong)
    assert done.returncode != 0
    assert "FAILED" in done.stderr
    assert not list((tmp_path / "rescue").glob("data-*"))


def test_a_failure_leaves_the_shell_as_it_was(
    settings: dict[str, str | Path], tmp_path: Path
) -> None:
    """An operator who types the commands keeps the shell, with its variables and functions."""
    page = rescue.blocks()
    lost = settings | {"CONTAINER": "nowhere", "RIGHT": settings["CONTAINER"]}
    steps = [page["begin"], page["curl"], page["chain"], "CONTAINER=$RIGHT\n", page["chain"]]
    done = rescue.at_a_prompt("".join(steps) + 'echo "at the end: $ID"\n', tmp_path, lost)
    assert "404" in done.stderr
    assert done.stdout.splitlines()[-1] == f"at the end: {settings['ID']}"
    assert done.stdout.split()[-5] == settings["ID"]
