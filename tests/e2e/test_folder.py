"""The daemon with a folder as its store, with tasks through the broker and without Swift."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_interruptions import slow_backup
from tests.stack.agent import Agent
from tests.stack.process import poll


@pytest.fixture
def folder_agent(agent: Agent, tmp_path: Path) -> Iterator[Agent]:
    overrides: dict[str, dict[str, object]] = {
        "store": {"url": f"file://{tmp_path}/backups", "user": None, "key_file": None},
        "pipeline": {"segment_bytes": 1 << 20},
    }
    own = Agent(tmp_path / "agent", agent.rabbitmq, agent.swift, agent.mariadb, overrides)
    own.start()
    yield own
    own.stop()


def segments(tmp_path: Path, backup_id: str) -> list[Path]:
    return list((tmp_path / "backups").glob(f"*_segments/{backup_id}/*/0*"))


def test_a_daemon_stores_in_a_folder(folder_agent: Agent, tmp_path: Path) -> None:
    cut_off = slow_backup()
    folder_agent.send(cut_off)
    poll("segments are stored", lambda: len(segments(tmp_path, cut_off.backup.id)) > 1, 60)
    folder_agent.kill()
    folder_agent.start()
    view = folder_agent.create("base")
    assert view["status"] == "COMPLETED"
    assert view["locationRef"].startswith(f"file://{tmp_path}/backups/database_backups_")
    assert segments(tmp_path, view["id"])
    assert segments(tmp_path, cut_off.backup.id) == []
    done = folder_agent.cli("backup-delete", "--wait", view["id"])
    assert done.returncode == 0, done.stderr
    files = [path.name for path in (tmp_path / "backups").rglob("*") if path.is_file()]
    assert files == [f"{cut_off.backup.id}.json"]
