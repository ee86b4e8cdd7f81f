"""The log of a verbose daemon: each line of a task has its ids, and no line has a secret."""

import base64
import json
import re
import secrets
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from swiftclient.client import get_auth

from tests.broker.probe import probing
from tests.e2e.reports import Reports
from tests.faults.leaks import Sight
from tests.stack.agent import KEY_ID, Agent, Tables, write_private
from tests.stack.journal import Journal
from tests.stack.mariadb import MariaDB
from tests.stack.process import ServerProcess, poll
from tests.stack.rabbitmq import RabbitMQ
from tests.stack.swift import SwiftServer

# The program with another place for the journal's socket.
_PROGRAM: Final = """
import sys
from pathlib import Path
from agent.machine import journald
from agent.__main__ import start
journald.SOCKET = Path(sys.argv.pop(1))
sys.exit(start())
"""
Event = dict[str, str]
_TEXT: Final = re.compile(
    r"\S+ \S+ (?P<level>[A-Z]+) (?P<logger>\S+): (?P<message>.*?)"
    r"(?: \[(?:task=(?P<task>\S+?))? ?(?:backup=(?P<backup>\S+?))?\])?"
)


def text_events(log: str) -> list[Event]:
    """Return the events of a log of text, which has no traceback."""
    found = [_TEXT.fullmatch(line) for line in log.splitlines()]
    return [{k: v or "" for k, v in one.groupdict().items()} for one in found if one]


def json_events(log: str) -> list[Event]:
    lines = [json.loads(line) for line in log.splitlines()]
    return [
        {**line, "task": line["task_id"] or "", "backup": line["backup_id"] or ""} for line in lines
    ]


def journal_events(journal: Journal) -> list[Event]:
    return [
        {
            "level": "DEBUG" if one["PRIORITY"] == "7" else "",
            "logger": one["LOGGER"],
            "message": one["MESSAGE"],
            "task": one.get("BACKUP_AGENT_TASK_ID", ""),
            "backup": one.get("BACKUP_AGENT_BACKUP_ID", ""),
        }
        for one in journal.messages
    ]


@contextmanager
def database_user(mariadb: MariaDB, folder: Path) -> Iterator[Tables]:
    """Create an account with a password of its own. Yield the settings for it."""
    password, user = f"Db#{secrets.token_urlsafe(18)}", f"logged_{secrets.token_hex(4)}"
    write_private(folder / "database-password", password)
    mariadb.query(f"CREATE USER {user}@localhost IDENTIFIED BY '{password}'")
    mariadb.query(
        f"GRANT RELOAD, PROCESS, BINLOG MONITOR, REPLICA MONITOR ON *.* TO {user}@localhost"
    )
    try:
        yield {"database": {"user": user, "password_file": folder / "database-password"}}
    finally:
        mariadb.query(f"DROP USER {user}@localhost")


@contextmanager
def daemon(agent: Agent, journal: Path, form: str) -> Iterator[None]:
    """Run a verbose daemon."""
    agent.overrides["log"] = {"format": form}
    agent.write()
    argv = [sys.executable, "-c", _PROGRAM, str(journal), "--verbose"]
    process = ServerProcess([*argv, "--config", str(agent.config), "run"], agent.log)
    try:
        yield
    finally:
        process.stop(seconds=60)


def work(agent: Agent, reports: Reports, swift: SwiftServer, token: str) -> dict[str, str]:
    """Make a backup with a token while requests fail, and restore it. Return the ids."""
    ids = {name: str(uuid.uuid4()) for name in ("create", "backup", "restore", "refused")}
    store = {"storage_url": swift.storage_url, "token": token}
    swift.inject([{"method": "PUT", "match": "_segments/", "status": 503}])
    tasks: list[dict[str, Any]] = [
        {"type": "backup.create", "backup": {"id": ids["backup"], "name": "one"}, "store": store},
        {
            "type": "backup.restore",
            "backup_id": ids["backup"],
            "target": str(agent.folder / "restore" / ids["restore"]),
            "store": store,
        },
        {"type": "backup.delete", "backup_id": "no id", "token": token},
    ]
    with probing(agent.rabbitmq) as probe:
        for name, task in zip(("create", "restore", "refused"), tasks, strict=True):
            body = {"version": 1, "task_id": ids[name], **task}
            probe.send(agent.instance_id, json.dumps(body).encode())
    assert reports.end_of(ids["restore"])["status"] == "DONE", reports.seen
    assert reports.statuses(ids["refused"]) == ["FAILED"]
    return ids


@pytest.mark.parametrize("form", ["text", "json", "journal"])
def test_ids_and_no_secret(
    tmp_path: Path, rabbitmq: RabbitMQ, swift: SwiftServer, mariadb: MariaDB, form: str
) -> None:
    token = str(get_auth(swift.auth_url, swift.user, swift.key)[1])
    urls: Tables = {"store": {"storage_urls": [swift.storage_url]}}
    with (
        Journal(tmp_path / "journal.socket") as journal,
        database_user(mariadb, tmp_path) as account,
    ):
        agent = Agent(tmp_path, rabbitmq, swift, mariadb, urls | account)
        events: Callable[[], list[Event]] = {
            "text": lambda: text_events(agent.log.read_text()),
            "json": lambda: json_events(agent.log.read_text()),
            "journal": lambda: journal_events(journal),
        }[form]
        with daemon(agent, journal.path, form), Reports(agent) as reports:
            poll("it consumes", lambda: "consuming backup.tasks" in str(events()), 30)
            ids = work(agent, reports, swift, token)
        local = agent.cli("--verbose", "backup-create", "--local", agent.instance_id, "two")
        assert local.returncode == 0, local.stderr
        assert_ids(events(), ids)
        assert_local(local.stderr, form)
        sight = Sight()
        sight.add("the daemon's log", agent.log.read_bytes() + repr(journal.messages).encode())
        sight.add("a command", (local.stdout + local.stderr).encode())
        assert sight.leaks(planted(agent, token)) == []


def assert_ids(events: list[Event], ids: dict[str, str]) -> None:
    create = [one for one in events if one["task"] == ids["create"]]
    # the link doesn't know the backup of each report
    link = "agent.broker.link"
    assert {one["backup"] for one in create if one["logger"] != link} == {ids["backup"]}
    assert {one["task"] for one in events} == {"", ids["create"], ids["restore"], ids["refused"]}
    # lines of the threads of the data path, also of one that retries
    sent = [one for one in create if "_segments/" in one["message"]]
    assert any("; retry in " in one["message"] for one in sent)
    assert any(one["level"] == "DEBUG" for one in sent)
    # nothing that is about a task lacks its ids
    without = [one["message"] for one in events if not one["task"]]
    assert [said for said in without if "_segments/" in said or ids["backup"] in said] == []
    assert any(
        "is not a task" in one["message"] and one["task"] == ids["refused"] for one in events
    )
    assert {one["logger"].split(".")[0] for one in events} == {"agent"}


def assert_local(log: str, form: str) -> None:
    events = (json_events if form == "json" else text_events)(log)
    task = {one["task"] for one in events} - {""}
    backup = {one["backup"] for one in events} - {""}
    assert len(task) == len(backup) == 1
    assert any("_segments/" in one["message"] for one in events)
    assert all(one["task"] for one in events if "_segments/" in one["message"])


def planted(agent: Agent, token: str) -> dict[str, bytes]:
    master = (agent.folder / "keys" / f"{KEY_ID}.key").read_text().strip()
    return {
        "token": token.encode(),
        "store key": agent.swift.key.encode(),
        "broker password": agent.rabbitmq.password.encode(),
        "database password": (agent.folder / "database-password").read_bytes().strip(),
        "master key": base64.b64decode(master),
        "master key's text": master.encode(),
    }
