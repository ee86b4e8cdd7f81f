"""A Swift that hides /info, which is an ordinary setting.

Backups are made with default limits. If /info answers with something else, such as a welcome
page, no backup is made, but all other work goes on.
"""

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from agent.model import BackupRequest, CancelTask, CreateTask, Limits
from tests.e2e.objects import Objects
from tests.e2e.reports import Reports
from tests.stack.agent import Agent
from tests.stack.process import poll
from tests.stack.swift import SwiftServer

HIDDEN = {"match": "^/info", "times": 9999, "status": 403}
# the answer of a gateway that shows its welcome page to unknown clients
WELCOME = {**HIDDEN, "status": 200, "body": "<html>welcome</html>"}


def succeed(agent: Agent, *arguments: str | Path) -> str:
    done = agent.cli(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_of(agent: Agent, name: str) -> dict[str, Any]:
    """Run the self-test of the store and return the result of the check `name`."""
    told = json.loads(agent.cli("self-test", "--only", "store", "--json").stdout)
    found: dict[str, Any] = next(one for one in told["results"] if one["name"] == name)
    return found


@pytest.mark.parametrize("rule", [HIDDEN, WELCOME], ids=["hidden", "welcome"])
def test_what_is_stored_can_be_seen_restored_and_removed(
    agent: Agent, swift: SwiftServer, base: str, tmp_path: Path, rule: dict[str, Any]
) -> None:
    child = agent.create("child", "--parent", base)["id"]
    seen = len(swift.requests())
    swift.inject([rule])
    assert child in succeed(agent, "backup-list")
    assert "COMPLETED" in succeed(agent, "backup-show", child)
    succeed(agent, "restore", "--local", child, tmp_path / "back")
    assert (tmp_path / "back" / "ibdata1").exists()
    succeed(agent, "gc", "--dry-run")
    succeed(agent, "rekey", "--to", "stack")
    succeed(agent, "backup-delete", "--wait", child)
    assert child not in succeed(agent, "backup-list")
    assert not any(" /info" in line for line in swift.requests()[seen:])


def test_backups_are_made_with_what_is_taken_for_granted(agent: Agent, swift: SwiftServer) -> None:
    swift.inject([HIDDEN])
    made = agent.create("blind")["id"]
    warned = check_of(agent, "limits")
    assert warned["verdict"] == "WARN"
    assert "expose_info" in warned["cure"]
    assert check_of(agent, "manifest")["verdict"] == "PASS"

    request = BackupRequest(id=str(uuid.uuid4()), name="to be cancelled")
    task = CreateTask(
        task_id=str(uuid.uuid4()), backup=request, limits=Limits(bytes_per_second=4 << 20)
    )
    objects = Objects(agent)
    with Reports(agent) as reports:
        agent.send(task)
        poll("a segment", lambda: bool(objects.segment_names(request.id)), 60)
        agent.send(CancelTask(task_id=str(uuid.uuid4()), cancels=task.task_id))
        reports.wait_for(task.task_id, "CANCELLED")
    objects.close()
    succeed(agent, "backup-delete", "--wait", made)


def test_what_is_no_info_at_all_is_named_before_anything_is_copied(
    agent: Agent, swift: SwiftServer
) -> None:
    swift.inject([WELCOME])
    done = agent.cli("backup-create", agent.instance_id, "never", "--wait")
    assert done.returncode == 1
    assert "store_rejected" in done.stderr
    assert "/info" in done.stderr
    assert check_of(agent, "limits")["verdict"] == "FAIL"
    assert check_of(agent, "manifest")["verdict"] == "FAIL"
    assert check_of(agent, "get")["verdict"] == "PASS"
