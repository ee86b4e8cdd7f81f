"""Backups that still have a record, but have lost their bytes or their ancestors."""

import json
import uuid
from typing import Any

from swiftclient.client import Connection

from agent.model import BackupRequest, CreateTask
from tests.e2e.objects import Objects
from tests.e2e.reports import Reports
from tests.stack.agent import Agent
from tests.stack.process import poll
from tests.stack.swift import SwiftServer


def remove_bytes(agent: Agent, backup_id: str) -> None:
    """Delete the object and the segments of a backup, but not its record.

    `swift delete` does this to a large object.
    """
    swift = Connection(agent.swift.auth_url, agent.swift.user, agent.swift.key, retries=0)
    name = f"{backup_id}.xbstream.gz.enc"
    container = f"database_backups_{agent.tenant_id}"
    swift.delete_object(container, name, query_string="multipart-manifest=delete")
    swift.close()


def create(agent: Agent, name: str, *arguments: str) -> tuple[int, dict[str, Any], str]:
    done = agent.cli("backup-create", agent.instance_id, name, "--wait", "--json", *arguments)
    view: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, view, done.stderr


def test_a_parent_whose_bytes_are_gone(agent: Agent) -> None:
    full = agent.create("gone")["id"]
    remove_bytes(agent, full)
    status, _, said = create(agent, "on nothing", "--parent", full)
    assert status == 1
    assert f"parent_unusable: the parent can't be used: the bytes of backup {full}" in said
    instead = CreateTask(
        task_id=str(uuid.uuid4()),
        backup=BackupRequest(id=str(uuid.uuid4()), name="full instead", parent_id=full),
        on_broken_chain="full",
    )
    with Reports(agent) as reports:
        agent.send(instead)
        assert reports.wait_for(instead.task_id, "DONE")["backup"].get("parent_id") is None


def test_a_parent_whose_bytes_go_during_the_backup(agent: Agent, swift: SwiftServer) -> None:
    full = agent.create("going")["id"]
    task = CreateTask(
        task_id=str(uuid.uuid4()),
        backup=BackupRequest(id=str(uuid.uuid4()), name="on sand", parent_id=full),
    )
    stall = {"method": "PUT", "match": f"{task.backup.id}/.*/0000", "action": "stall", "seconds": 3}
    swift.inject([stall])
    with Reports(agent) as reports:
        agent.send(task)
        poll("a segment is on its way", lambda: " stall" in "".join(swift.requests()[-20:]), 60)
        remove_bytes(agent, full)
        failed = reports.wait_for(task.task_id, "FAILED")
    assert failed["error"]["code"] == "parent_unusable"
    assert failed["backup"]["status"] == "FAILED"
    objects = Objects(agent)
    assert objects.names(objects.segments, task.backup.id) == []
    objects.close()
