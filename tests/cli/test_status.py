"""`status` reports whether an agent runs here, and whether it takes tasks."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.cli.main import main
from agent.daemon import Supervision
from agent.machine.lock import only_agent
from agent.machine.systemd import Notifier
from tests.conftest import need
from tests.stack.agent import Agent
from tests.stack.process import free_port, poll

INSTANCE = "a17461ab-6c97-4abf-8890-9f8b10886ecc"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(
        f'[agent]\ninstance_id = "{INSTANCE}"\ntenant_id = "t"\nstate_folder = "state"\n'
    )
    return path


def status(config: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], str]:
    """Return the exit status, the JSON output and the first line of the plain output."""
    code = main(["--config", str(config), "status", "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert main(["--config", str(config), "status"]) == code
    return code, shown, capsys.readouterr().out.splitlines()[0]


def test_no_agent(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, said = status(config, capsys)
    assert (code, shown["running"], shown["consuming"], shown["since"]) == (1, False, False, None)
    assert said == f"no agent runs for instance {INSTANCE}"


def test_an_agent_that_loses_its_broker(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link: Any = SimpleNamespace(consuming=threading.Event(), beats=0, trouble="")
    with only_agent(config.parent / "state" / "lock") as say:
        supervision = Supervision(Notifier({}), link, "backup.tasks.x", say)
        link.consuming.set()
        supervision.check()
        code, shown, said = status(config, capsys)
        assert (code, shown["running"], shown["consuming"]) == (0, True, True)
        assert said.endswith(f"{INSTANCE}, and takes tasks since {shown['since']}")
        link.consuming.clear()
        supervision.check()
        code, shown, said = status(config, capsys)
        assert (code, shown["running"], shown["consuming"]) == (1, True, False)
        assert f"takes no tasks since {shown['since']}: it has no connection" in said
        say("")  # as written by an agent of another version
        code, shown, said = status(config, capsys)
        assert (code, shown["running"], shown["consuming"]) == (1, True, False)
        assert said.endswith("is not known")
        say("backup-create 2026-01-01T00:00:00Z")
        code, shown, said = status(config, capsys)
        assert (code, shown["running"]) == (1, False)
        assert said.startswith("a backup-create --local runs")
    # the last state of a dead agent is ignored
    assert status(config, capsys)[0] == 1
    assert "no agent runs" in status(config, capsys)[2]


class _NoServers:
    """Servers that can't be reached."""

    url = auth_url = f"amqp://agent@127.0.0.1:{free_port()}/"
    password = key = "none"
    user = agent_user = "x:y"
    socket = password_file = Path("/nonexistent/x")


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """Yield an agent with a running daemon, an unreachable broker and a folder as its store."""
    need("mariadb-backup")
    store = {"url": f"file://{tmp_path}/backups", "user": None, "key_file": None}
    overrides: dict[str, dict[str, object]] = {
        "store": {**store},
        "database": {"password_file": None},
    }
    servers: Any = _NoServers()
    one = Agent(tmp_path / "agent", servers, servers, servers, overrides)
    one.launch()
    yield one
    one.kill()


def test_a_daemon_without_its_broker(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    def not_connected() -> bool:
        return "takes no tasks since" in agent.cli("status").stdout

    poll("the daemon is there", not_connected, 30)
    code, shown, _ = status(agent.config, capsys)
    assert (code, shown["running"], shown["consuming"]) == (1, True, False)
    agent.kill()
    code, shown, said = status(agent.config, capsys)
    assert (code, shown["running"]) == (1, False)
    assert said.startswith("no agent runs")
