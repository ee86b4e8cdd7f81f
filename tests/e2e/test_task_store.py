"""Tasks that name their own container, or bring a token, on the real servers."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pytest
from swiftclient.client import get_auth

from agent.broker import wire
from tests.e2e.conftest import with_daemon
from tests.e2e.objects import Objects
from tests.e2e.reports import Reports
from tests.stack.agent import Agent, Tables
from tests.stack.mariadb import MariaDB
from tests.stack.process import poll
from tests.stack.rabbitmq import RabbitMQ
from tests.stack.swift import SwiftServer


@pytest.fixture(scope="module")
def guest_session(
    scratch: Path, rabbitmq: RabbitMQ, swift_session: SwiftServer, mariadb: MariaDB
) -> Iterator[Agent]:
    urls: Tables = {"store": {"storage_urls": [swift_session.storage_url]}}
    agent = Agent(scratch / "guest", rabbitmq, swift_session, mariadb, urls)
    yield agent
    agent.stop()


@pytest.fixture
def guest(guest_session: Agent, swift: SwiftServer) -> Agent:
    """Return a running agent that accepts tasks with tokens for the Swift of the tests."""
    return with_daemon(guest_session)


def send(agent: Agent, kind: str, store: dict[str, str], **fields: Any) -> str:
    """Send a task as a control plane does, with its token, and return its id."""
    task_id = str(fields.pop("task_id", uuid.uuid4()))
    body = {"version": 1, "task_id": task_id, "type": kind, "store": store, **fields}
    connection = pika.BlockingConnection(agent.rabbitmq.parameters())
    channel = connection.channel()
    channel.basic_publish(wire.TASK_EXCHANGE, agent.instance_id, json.dumps(body).encode())
    connection.close()
    return task_id


EXPIRED = {"status": 401}


def backup(name: str, parent: str | None = None) -> dict[str, Any]:
    return {"id": str(uuid.uuid4()), "name": name, "parent_id": parent}


def token_of(swift: SwiftServer) -> str:
    return str(get_auth(swift.auth_url, swift.user, swift.key)[1])


def failed(reports: Reports, task_id: str) -> str:
    """Wait until a task fails, and return its error code."""
    return str(reports.wait_for(task_id, "FAILED")["error"]["code"])


def test_a_chain_lives_in_the_container_that_its_tasks_name(guest: Agent) -> None:
    objects = Objects(guest)
    usual = objects.container
    store = {"container": f"{usual}_more"}
    full, child = backup("full"), {}
    with Reports(guest) as reports:
        done = reports.wait_for(send(guest, "backup.create", store, backup=full), "DONE")
        assert f"/{usual}_more/" in done["backup"]["locationRef"]
        child = backup("child", full["id"])
        reports.wait_for(send(guest, "backup.create", store, backup=child), "DONE")
        elsewhere = backup("elsewhere", full["id"])
        lost = send(guest, "backup.create", {}, backup=elsewhere)
        assert failed(reports, lost) == "parent_unknown"
        assert not objects.names(usual)
        target = str(guest.folder / "restore" / "one")
        restore = send(guest, "backup.restore", store, backup_id=child["id"], target=target)
        reports.wait_for(restore, "DONE")
        reports.wait_for(send(guest, "backup.delete", store, backup_id=full["id"]), "DONE")
    assert not objects.names(f"{usual}_more")
    assert not objects.names(f"{usual}_more_segments")
    objects.close()


def test_a_token_makes_a_backup_and_is_seen_nowhere(guest: Agent, swift: SwiftServer) -> None:
    token = token_of(swift)
    store = {"storage_url": swift.storage_url, "token": token}
    wanted = backup("by token")
    with Reports(guest) as reports:
        made = send(guest, "backup.create", store, backup=wanted)
        reports.wait_for(made, "DONE")
        reports.wait_for(send(guest, "backup.delete", store, backup_id=wanted["id"]), "DONE")
        seen = json.dumps(reports.seen).encode() + guest.log.read_bytes()
    for path in (guest.folder / "state").rglob("*"):
        seen += path.read_bytes() if path.is_file() else b""
    for name in ("cmdline", "environ"):
        seen += Path(f"/proc/{guest.daemon.pid}/{name}").read_bytes()
    assert made.encode() in seen
    assert token.removeprefix("AUTH_tk").encode() not in seen


def test_a_token_that_the_store_refuses(guest: Agent, swift: SwiftServer) -> None:
    store = {"storage_url": swift.storage_url, "token": "AUTH_tk" + "0" * 32}
    with Reports(guest) as reports:
        assert failed(reports, send(guest, "backup.create", store, backup=backup("n"))) == (
            "token_expired"
        )


def test_a_token_that_expires_ends_its_backup_and_says_what_is_left(
    guest: Agent, swift: SwiftServer
) -> None:
    """The store first refuses a read of the record. Segments could still be stored."""
    store = {"storage_url": swift.storage_url, "token": token_of(swift)}
    wanted = backup("expired")
    objects = Objects(guest)
    with Reports(guest) as reports:
        limits = {"bytes_per_second": 1 << 20}
        made = send(guest, "backup.create", store, backup=wanted, limits=limits)
        poll("it has begun", lambda: bool(objects.names(objects.container, wanted["id"])), 30)
        swift.inject([{"method": "GET", "match": f"{wanted['id']}.json", "times": 999, **EXPIRED}])
        end = reports.wait_for(made, "FAILED", seconds=30)
        swift.clear_faults()
        assert (end["error"]["code"], end["backup"]["status"]) == ("token_expired", "FAILED")
        assert "(BUILDING) and its segments are still in the store" in end["error"]["message"]
        assert f"delete backup {wanted['id']} with a token that is good" in end["error"]["hint"]
        assert "gc does it" not in guest.log.read_text()
        assert objects.record(wanted["id"])["status"] == "BUILDING"
        store["token"] = token_of(swift)
        removed = send(guest, "backup.delete", store, backup_id=wanted["id"])
        reports.wait_for(removed, "DONE", seconds=90)
    assert objects.names(objects.container, wanted["id"]) == []
    assert objects.names(objects.segments, wanted["id"]) == []
    objects.close()


@pytest.mark.parametrize("kind", ["container", "url"])
def test_the_store_of_another_is_refused(guest: Agent, swift: SwiftServer, kind: str) -> None:
    store = {
        "container": {"container": f"database_backups_{uuid.uuid4().hex}"},
        "url": {"storage_url": swift.storage_url + "_other", "token": "AUTH_tk0"},
    }[kind]
    asked = len(swift.requests())
    with Reports(guest) as reports:
        task_id = send(guest, "backup.delete", store, backup_id=str(uuid.uuid4()))
        assert failed(reports, task_id) == "storage_refused"
    assert len(swift.requests()) == asked


def test_after_a_crash_tasks_have_lost_their_tokens(guest: Agent, swift: SwiftServer) -> None:
    store = {"storage_url": swift.storage_url, "token": token_of(swift)}
    swift.inject([{"match": f"{guest.tenant_id}_segments", "action": "stall", "seconds": 60}])
    with Reports(guest) as reports:
        running = send(guest, "backup.create", store, backup=backup("cut off"), retry=True)
        poll("the store is silent", lambda: "_segments stall" in _tail(swift), 20)
        waiting = send(guest, "backup.delete", store, backup_id=str(uuid.uuid4()))
        reports.wait_for(waiting, "ACCEPTED")
        guest.kill()
        swift.clear_faults()
        guest.start()
        assert failed(reports, running) == "token_lost"
        assert failed(reports, waiting) == "token_lost"
        reports.seen.clear()
        send(guest, "backup.delete", store, backup_id=str(uuid.uuid4()), task_id=waiting)
        assert failed(reports, waiting) == "token_lost"


def _tail(swift: SwiftServer) -> str:
    return "\n".join(swift.requests()[-20:])
