"""Each impossible request gives one clear error, and no record that looks usable."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pika

from agent.broker import wire
from tests.e2e.objects import Objects
from tests.stack.agent import Agent, Tables, write_private
from tests.stack.mariadb import SMALL_SERVER, MariaDB
from tests.stack.process import free_port, poll
from tests.stack.rabbitmq import RabbitMQ
from tests.stack.swift import SwiftServer


@contextmanager
def another(agent: Agent, folder: Path, overrides: Tables) -> Iterator[Agent]:
    """Yield a second agent on the same servers, with another configuration."""
    second = Agent(folder, agent.rabbitmq, agent.swift, agent.mariadb, overrides)
    second.start()
    try:
        yield second
    finally:
        second.stop()


def refused(agent: Agent, code: str, *arguments: str) -> dict[str, Any]:
    """Run a create that must fail with this code, and return the view of the backup.

    If no backup was begun, the view holds the id that the backup would have had.
    """
    done = agent.cli("backup-create", agent.instance_id, "refused", "--wait", "--json", *arguments)
    assert done.returncode == 1
    assert f"backup-agent: {code}: " in done.stderr
    assert "what to do: " in done.stderr
    view: dict[str, Any] = json.loads(done.stdout)
    return {"id": view.get("task_id"), **view}


def assert_unusable(agent: Agent, backup_id: str) -> None:
    """Assert that the backup has no record, or a FAILED one without a segment."""
    objects = Objects(agent)
    try:
        if f"{backup_id}.json" in objects.names(objects.container):
            assert objects.record(backup_id)["status"] == "FAILED"
        assert objects.names(objects.segments, f"{backup_id}/") == []
        assert f"{backup_id}.xbstream.gz.enc" not in objects.names(objects.container)
    finally:
        objects.close()


def test_an_unknown_parent(agent: Agent) -> None:
    view = refused(agent, "parent_unknown", "--parent", str(uuid.uuid4()))
    assert_unusable(agent, view["id"])


def test_a_store_that_refuses_segments_and_its_backup_as_a_parent(
    agent: Agent, swift: SwiftServer
) -> None:
    swift.inject([{"method": "PUT", "match": "_segments/.*/0000000", "times": 99, "status": 403}])
    failed = refused(agent, "store_denied")
    swift.clear_faults()
    assert failed["status"] == "FAILED"
    assert_unusable(agent, failed["id"])
    view = refused(agent, "parent_unusable", "--parent", failed["id"])
    assert_unusable(agent, view["id"])


def test_a_parent_of_another_instance(agent: Agent, base: str, tmp_path: Path) -> None:
    with another(agent, tmp_path / "agent", {"keys": {"folder": agent.folder / "keys"}}) as second:
        second.stop()
        second.tenant_id = agent.tenant_id
        second.start()
        refused(second, "parent_unusable", "--parent", base)


def test_a_wrong_database_password(agent: Agent, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    write_private(wrong, "not the password")
    with another(agent, tmp_path / "agent", {"database": {"password_file": wrong}}) as second:
        view = refused(second, "database_denied")
        assert_unusable(second, view["id"])
        assert "not the password" not in second.log.read_text()


def test_an_engine_that_only_says_no(agent: Agent, tmp_path: Path) -> None:
    with another(agent, tmp_path / "agent", {"engine": {"program": "/nowhere"}}) as second:
        view = refused(second, "engine_missing")
        assert_unusable(second, view["id"])


def test_a_name_that_is_not_utf_8_is_told_and_ends_nothing(agent: Agent) -> None:
    stray = os.fsencode(agent.mariadb.datadir) + b"/.caf\xe9"
    os.mkdir(stray)
    try:
        view = refused(agent, "datadir_unfit")
    finally:
        os.rmdir(stray)
    assert_unusable(agent, view["id"])
    assert r"/.caf\udce9 as if" in agent.log.read_text()
    assert agent.running()
    assert agent.create("after it")["status"] == "COMPLETED"


def test_a_wrong_swift_password_and_no_swift(agent: Agent, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    write_private(wrong, "not the key")
    with another(agent, tmp_path / "denied", {"store": {"key_file": wrong}}) as second:
        refused(second, "login_denied")
        assert "not the key" not in second.log.read_text()
    nowhere = f"swift:http://127.0.0.1:{free_port()}/auth/v1.0"
    with another(agent, tmp_path / "gone", {"store": {"url": nowhere, "attempts": 2}}) as second:
        refused(second, "store_unreachable")
        listed = second.cli("backup-list")
        assert listed.returncode == 1
        assert "store_unreachable" in listed.stderr


def test_no_broker_and_no_agent(agent: Agent, tmp_path: Path) -> None:
    done = agent.cli("backup-create", str(uuid.uuid4()), "x")
    assert done.returncode == 1
    assert "instance_not_served" in done.stderr
    url = f"amqp://someone@127.0.0.1:{free_port()}/"
    lonely = Agent(
        tmp_path / "a", agent.rabbitmq, agent.swift, agent.mariadb, {"broker": {"url": url}}
    )
    lonely.write()
    done = lonely.cli("backup-create", lonely.instance_id, "x")
    assert done.returncode == 1
    assert "broker_unreachable" in done.stderr


def test_messages_that_are_no_tasks(agent: Agent, rabbitmq: RabbitMQ) -> None:
    task_id = str(uuid.uuid4())
    bodies = [
        b"\xff\x00",
        b"[]",
        json.dumps(
            {
                "version": 1,
                "task_id": task_id,
                "type": "backup.create",
                "backup": {"id": "../../etc", "name": "x"},
            }
        ).encode(),
    ]
    with pika.BlockingConnection(rabbitmq.parameters()) as connection:
        channel = connection.channel()
        queue = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(queue, wire.REPORT_EXCHANGE, f"{agent.instance_id}.#")
        channel.queue_purge(wire.DEAD)
        for body in bodies:
            channel.basic_publish(wire.TASK_EXCHANGE, agent.instance_id, body)
        dead: list[tuple[str, bytes]] = []

        def collected() -> bool:
            _, properties, body = channel.basic_get(wire.DEAD, auto_ack=True)
            if body is not None:
                dead.append((properties.headers["x-reason"], body))
            return len(dead) == len(bodies)

        poll("all three are dead letters", collected, 20)
        reports: list[dict[str, Any]] = []

        def reported() -> bool:
            _, _, body = channel.basic_get(queue, auto_ack=True)
            if body is not None:
                reports.append(json.loads(body))
            return any(report["task_id"] == task_id for report in reports)

        poll("the one with a task id is answered", reported, 20)
    assert dead == [("message_unreadable", body) for body in bodies]
    final = [report for report in reports if report["task_id"] == task_id]
    assert [report["status"] for report in final] == ["FAILED"]
    assert "backup.id" in final[0]["error"]["message"]


def test_a_lineage_that_has_changed(agent: Agent, scratch: Path, tmp_path: Path) -> None:
    """The older of two backups is restored over the instance.

    After that, neither of them can be a parent.
    """
    server = MariaDB(tmp_path / "server", options=SMALL_SERVER)
    server.install()
    server.start()
    server.create_agent_user()
    server.load_rows(5)
    own = Agent(tmp_path / "agent", agent.rabbitmq, agent.swift, server)
    own.start()
    try:
        older = own.create("older")["id"]
        server.query("CREATE TABLE shop.more AS SELECT * FROM shop.orders LIMIT 1000")
        server.checkpoint()
        lost = own.create("lost", "--parent", older)["id"]
        server.stop()
        shutil.rmtree(server.datadir)
        done = own.cli("restore", "--local", older, server.datadir)
        assert done.returncode == 0, done.stderr
        for path in (server.datadir, *server.datadir.rglob("*")):
            shutil.chown(path, os.getuid(), os.getgid())
        server.start()
        server.create_agent_user()

        grow_past(server, lsn_of(own, lost))
        view = refused(own, "lineage_changed", "--parent", lost)
        assert_unusable(own, view["id"])
        view = refused(own, "lineage_changed", "--parent", older)
        assert own.create("anew")["status"] == "COMPLETED"
    finally:
        own.stop()
        server.stop()


def test_a_volume_that_was_rolled_back(agent: Agent, tmp_path: Path) -> None:
    """The same inodes have older content. The LSN went back once, and the agent remembers that."""
    server = MariaDB(tmp_path / "server", options=SMALL_SERVER)
    server.install()
    server.start()
    server.create_agent_user()
    server.load_rows(2)
    server.stop()
    snapshot = tmp_path / "snapshot"
    shutil.copytree(server.datadir, snapshot)
    server.start()
    own = Agent(tmp_path / "agent", agent.rabbitmq, agent.swift, server)
    own.start()
    try:
        server.query("CREATE TABLE shop.lost AS SELECT * FROM shop.orders")
        server.checkpoint()
        lost = own.create("lost")["id"]
        server.stop()
        roll_back(server.datadir, snapshot)
        server.start()
        refused(own, "lineage_changed", "--parent", lost)
        grow_past(server, lsn_of(own, lost))
        view = refused(own, "lineage_changed", "--parent", lost)
        assert_unusable(own, view["id"])
        assert own.create("anew")["status"] == "COMPLETED"
    finally:
        own.stop()
        server.stop()


def roll_back(datadir: Path, snapshot: Path) -> None:
    """Write the snapshot's content into the existing files, as a rollback of a volume does."""
    for path in datadir.rglob("*"):
        if path.is_file() and not (snapshot / path.relative_to(datadir)).exists():
            path.unlink()
    for path in snapshot.rglob("*"):
        if path.is_file():
            (datadir / path.relative_to(snapshot)).write_bytes(path.read_bytes())


def lsn_of(agent: Agent, backup_id: str) -> int:
    objects = Objects(agent)
    try:
        return int(objects.record(backup_id)["to_lsn"])
    finally:
        objects.close()


def grow_past(server: MariaDB, lsn: int) -> None:
    """Write until the server's LSN is higher than `lsn`."""

    def passed() -> bool:
        server.query("CREATE OR REPLACE TABLE shop.again AS SELECT * FROM shop.orders")
        server.checkpoint()
        status = server.query("SHOW ENGINE INNODB STATUS")[0][2]
        return int(status.split("Log sequence number")[1].split()[0]) > lsn

    poll(f"the LSN has passed {lsn}", passed, 60)
