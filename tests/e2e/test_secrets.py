"""Secrets stay where they belong: in their files, and in the memory of whoever uses them.

A daemon that logs everything at DEBUG makes a slow backup and then fails one, while /proc and
the state folder are watched. Then all that anybody else can see is searched.
"""

import base64
import json
import re
import secrets
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest

from agent.config import load
from agent.model import BackupRequest, CreateTask, Limits, WrappedKey
from agent.secret_files import load_keyring
from tests.e2e.objects import Objects
from tests.e2e.reports import Reports
from tests.stack.agent import KEY_ID, Agent, write_private
from tests.stack.mariadb import MariaDB
from tests.stack.process import ServerProcess, poll
from tests.stack.rabbitmq import RabbitMQ
from tests.stack.swift import SwiftServer

# The program with every logger at DEBUG, whatever it and its libraries set them to.
_VERBOSE = """
import logging, sys
logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
logging.Logger.setLevel = lambda *_: None
from agent.cli.main import main
sys.exit(main())
"""
# What a program is started with; mariadb-backup itself wipes a password out of its arguments
# a moment later, so a look from outside comes too late.
_WITNESS = """#!/bin/sh
cat /proc/$$/cmdline /proc/$$/environ >> "{log}"
exec {program} "$@"
"""
_TOKEN = re.compile(rb"AUTH_tk[0-9a-f]{4}")  # as Swift's tempauth makes them


def forms(secret: bytes) -> set[bytes]:
    """A secret as somebody may write it down: raw, quoted, in hex, in base64 at any offset."""
    found = {secret, secret.hex().encode(), secret.hex().upper().encode(), quote(secret).encode()}
    found.add(repr(secret)[2:-1].encode())
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + secret)
        # without the characters that bytes before and behind it have a part in
        whole = encoded[(0, 2, 3)[offset] :].rstrip(b"=")
        whole = whole if (len(secret) + offset) % 3 == 0 else whole[:-1]
        found |= {whole, whole.translate(bytes.maketrans(b"+/", b"-_"))}
    return found


@pytest.mark.parametrize("before", [b"", b"x", b"user:"])
@pytest.mark.parametrize("behind", [b"", b"y", b"yz"])
def test_the_forms_find_a_secret_inside_other_base64(before: bytes, behind: bytes) -> None:
    secret = b"a secret with <?> in it"
    text = base64.b64encode(before + secret + behind)
    assert any(form in text for form in forms(secret))


@dataclass
class Seen:
    """What others could see, by where it was seen."""

    texts: dict[str, set[bytes]] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    option_files: set[bytes] = field(default_factory=set)

    def add(self, where: str, text: bytes) -> None:
        self.texts.setdefault(where, set()).add(text)

    def all(self) -> Iterator[tuple[str, bytes]]:
        for where, texts in self.texts.items():
            yield from ((where, text) for text in texts)

    def watch(self, agent: Agent, daemon: int) -> None:
        """One look at the daemon's process, its children and its files."""
        for process in self._family(daemon):
            for name in ("cmdline", "environ"):
                path = Path(f"/proc/{process.pid}/{name}")
                try:
                    self.add(f"{name} of {process.pid}", path.read_bytes())
                except OSError:
                    continue  # it has ended
        self.look_at_files(agent)

    def look_at_files(self, agent: Agent) -> None:
        for path in sorted((agent.folder / "state").rglob("*")):
            try:
                mode, text = path.stat().st_mode, path.read_bytes() if path.is_file() else b""
            except FileNotFoundError:
                continue
            self.modes[path.name] = self.modes.get(path.name, 0) | mode & 0o777
            if path.name == "engine.cnf":
                self.option_files.add(text)
            else:
                self.add(str(path), text)

    def _family(self, daemon: int) -> list[psutil.Process]:
        try:
            process = psutil.Process(daemon)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


@dataclass
class Stage:
    """A verbose daemon, and the secrets that were given to it."""

    agent: Agent
    daemon: ServerProcess
    planted: dict[str, bytes]

    def ask(self, name: str, *, slow: bool) -> CreateTask:
        request = BackupRequest(id=str(uuid.uuid4()), name=name)
        limits = Limits(bytes_per_second=32 << 20) if slow else Limits()
        task = CreateTask(task_id=str(uuid.uuid4()), backup=request, limits=limits)
        self.agent.send(task)
        return task


def witnessed(program: str, folder: Path) -> object:
    """A script that notes what it was started with and becomes `program`."""
    script = folder / program
    script.write_text(_WITNESS.format(log=folder / f"{program}.started", program=program))
    script.chmod(0o755)
    return script


@pytest.fixture
def stage(
    tmp_path: Path, rabbitmq: RabbitMQ, swift: SwiftServer, mariadb: MariaDB
) -> Iterator[Stage]:
    password = f"Db#{secrets.token_urlsafe(18)}"
    user = f"watched_{secrets.token_hex(4)}"
    mariadb.query(f"CREATE USER {user}@localhost IDENTIFIED BY '{password}'")
    mariadb.query(
        f"GRANT RELOAD, PROCESS, BINLOG MONITOR, REPLICA MONITOR ON *.* TO {user}@localhost"
    )
    write_private(tmp_path / "password", password)
    database: dict[str, object] = {"user": user, "password_file": tmp_path / "password"}
    engine = {
        "program": witnessed("mariadb-backup", tmp_path),
        "extractor": witnessed("mbstream", tmp_path),
    }
    overrides = {"database": database, "engine": engine}
    agent = Agent(tmp_path / "agent", rabbitmq, swift, mariadb, overrides)
    agent.write()
    master = (agent.folder / "keys" / f"{KEY_ID}.key").read_text().strip()
    argv = [sys.executable, "-c", _VERBOSE, "--config", str(agent.config), "run"]
    daemon = ServerProcess(argv, agent.log)
    try:
        daemon.wait_ready(lambda: "consuming backup.tasks" in agent.log.read_text(), 30)
        planted = {
            "database password": password.encode(),
            "store key": swift.key.encode(),
            "broker password": rabbitmq.password.encode(),
            "master key": base64.b64decode(master),
            "master key's text": master.encode(),
        }
        yield Stage(agent, daemon, planted)
    finally:
        daemon.stop()
        mariadb.query(f"DROP USER {user}@localhost")


def collect_stored(agent: Agent, seen: Seen) -> None:
    """Everything in the store that isn't ciphertext."""
    objects = Objects(agent)
    for container in (objects.container, objects.segments):
        for name in objects.names(container):
            if name.endswith(".json") or "/list-" in name:
                seen.add(f"object {name}", objects.get(container, name))
    objects.close()


def collect_command_lines(agent: Agent, backup_id: str, seen: Seen) -> None:
    for arguments in (
        ("backup-list",),
        ("backup-list", "--json"),
        ("backup-show", backup_id),
        ("backup-show", backup_id, "--json"),
        ("backup-show", str(uuid.uuid4())),
        ("backup-create", agent.instance_id, "another", "--wait", "--json"),
        ("restore", "--local", backup_id, agent.folder / "restored"),
    ):
        done = agent.cli(*arguments)
        seen.add(f"output of {arguments[0]}", (done.stdout + done.stderr).encode())


def data_key(agent: Agent, backup_id: str) -> bytes:
    objects = Objects(agent)
    wrapped = objects.record(backup_id)["keys"]
    objects.close()
    section = load(agent.config).keys
    assert section is not None
    return load_keyring(section).unwrap([WrappedKey(**one) for one in wrapped])


def test_no_secret_is_anywhere_else(stage: Stage, swift: SwiftServer) -> None:
    agent, seen = stage.agent, Seen()
    with Reports(agent) as reports:
        good = stage.ask("watched", slow=True)

        def done() -> bool:
            seen.watch(agent, stage.daemon.pid)
            return f"task {good.task_id} is done" in agent.log.read_text()

        poll("the watched backup is done", done, 60)
        faults = [{"method": "PUT", "match": "_segments/.*/0000", "times": 99, "status": 403}]
        swift.inject(faults)
        bad = stage.ask("refused", slow=False)
        reports.wait_for(bad.task_id, "FAILED")
        swift.clear_faults()
        collect_command_lines(agent, good.backup.id, seen)
        seen.look_at_files(agent)
        seen.add("reports", json.dumps(reports.seen).encode())
    collect_stored(agent, seen)
    seen.add("the daemon's log", agent.log.read_bytes())
    for started in agent.folder.parent.glob("*.started"):
        seen.add(f"start of {started.stem}", started.read_bytes())
    stage.daemon.stop()
    seen.look_at_files(agent)

    planted = {**stage.planted, "data key": data_key(agent, good.backup.id)}
    spellings = {name: forms(secret) for name, secret in planted.items()}
    leaks = [
        f"{name} in {where}"
        for where, text in seen.all()
        for name, spelt in spellings.items()
        if any(form in text for form in spelt)
    ]
    leaks += [f"a token in {where}" for where, text in seen.all() if _TOKEN.search(text)]
    assert leaks == []
    assert_watched(stage, seen)


def assert_watched(stage: Stage, seen: Seen) -> None:
    """The search had something to find: the engine ran, and its one file of secrets was seen."""
    assert any(b"mariadb-backup" in text for where, text in seen.all() if "cmdline" in where)
    assert any(b"PATH=" in text for where, text in seen.all() if "environ" in where)
    assert {"start of mariadb-backup", "start of mbstream"} <= seen.texts.keys()
    assert "DEBUG" in stage.agent.log.read_text()
    assert any(b'"COMPLETED"' in text for where, text in seen.all() if where.endswith(".json"))
    assert any(where.endswith("journal.sqlite-wal") for where in seen.texts)
    assert any(stage.planted["database password"] in text for text in seen.option_files)
    assert seen.modes["engine.cnf"] == 0o600
    assert seen.modes["journal.sqlite"] == 0o600
    assert seen.modes["scratch"] & 0o077 == 0
    assert not list((stage.agent.folder / "state").rglob("engine.cnf"))
