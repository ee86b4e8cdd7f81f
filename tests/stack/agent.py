"""One agent of the private servers: its configuration, its daemon, its command line."""

import base64
import json
import os
import secrets
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from agent import wiring
from agent.broker.client import ControlClient
from agent.config.reading import load
from agent.model import Task
from tests.stack.mariadb import MariaDB
from tests.stack.process import ServerProcess
from tests.stack.rabbitmq import RabbitMQ

KEY_ID: Final = "stack"
Tables = dict[str, dict[str, object]]


class ObjectServer(Protocol):
    """A Swift server, or a server that speaks its API, as an agent's configuration names it."""

    @property
    def auth_url(self) -> str: ...
    @property
    def storage_url(self) -> str: ...
    @property
    def user(self) -> str: ...
    @property
    def key(self) -> str: ...


class Agent:
    """An agent in `folder` with its own instance, tenant and master key.

    `overrides` replace single keys of the configuration, section by section. A key with the
    value None is left out. So `{"store": {"url": "file:///...", "user": None, "key_file": None}}`
    configures an agent that stores its backups in a directory.
    """

    def __init__(
        self,
        folder: Path,
        rabbitmq: RabbitMQ,
        swift: ObjectServer,
        mariadb: MariaDB,
        overrides: Tables | None = None,
    ) -> None:
        self.folder = folder
        self.instance_id = str(uuid.uuid4())
        self.tenant_id = uuid.uuid4().hex
        self.rabbitmq = rabbitmq
        self.swift = swift
        self.mariadb = mariadb
        self.overrides = overrides or {}
        self.log = folder / "agent.log"
        self._daemon: ServerProcess | None = None

    @property
    def config(self) -> Path:
        return self.folder / "agent.toml"

    def write(self) -> Path:
        """Write the configuration, secrets and (once) the master key. Return the file's path."""
        for part in ("keys", "state", "restore"):
            (self.folder / part).mkdir(parents=True, exist_ok=True, mode=0o700)
        key_file = self.folder / "keys" / f"{KEY_ID}.key"
        if not key_file.exists():
            write_private(key_file, base64.b64encode(secrets.token_bytes(32)).decode())
        write_private(self.folder / "broker-password", self.rabbitmq.password)
        write_private(self.folder / "store-key", self.swift.key)
        write_private(self.config, _toml(self._settings()))
        return self.config

    def launch(self, environment: Mapping[str, str] | None = None) -> None:
        """Start the daemon and return at once. `environment` is added to this process's own."""
        self.write()
        self._daemon = ServerProcess(
            [*_program(), "--config", str(self.config), "run"],
            self.log,
            {**os.environ, **(environment or {})},
        )

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Start the daemon and wait until it takes tasks."""
        served = f"consuming backup.tasks.{self.instance_id}"
        seen = self.log.read_text().count(served) if self.log.exists() else 0
        self.launch(environment)
        self.daemon.wait_ready(lambda: self.log.read_text().count(served) > seen, 30)

    def running(self) -> bool:
        return self._daemon is not None and self._daemon.running()

    @property
    def daemon(self) -> ServerProcess:
        assert self._daemon is not None, "the daemon was not started"
        return self._daemon

    def stop(self) -> int | None:
        """Stop the daemon with SIGTERM. Return its exit status, or None if it did not run."""
        if self._daemon is None:
            return None
        self._daemon.stop(signal.SIGTERM, 60)
        status, self._daemon = self._daemon.returncode, None
        return status

    def kill(self) -> None:
        """Kill the daemon with SIGKILL, as a crash would."""
        if self._daemon is not None:
            self._daemon.stop(signal.SIGKILL)
            self._daemon = None

    def cli(
        self,
        *arguments: str | Path,
        seconds: float = 120,
        environment: Mapping[str, str] | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        """Run one command of `backup-agent`."""
        return subprocess.run(
            [*_program(), "--config", str(self.config), *map(str, arguments)],
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def spawn(self, *arguments: str | Path) -> ServerProcess:
        """Start one command of `backup-agent` and return at once. Its output goes to its log."""
        argv = [*_program(), "--config", str(self.config), *map(str, arguments)]
        return ServerProcess(argv, self.folder / "spawned.log", dict(os.environ))

    def send(self, task: Task) -> None:
        """Send a task through the broker and return without waiting for its result."""
        with ControlClient(wiring.control(load(self.config))) as client:
            client.send_task(self.instance_id, task)

    def create(self, name: str, *arguments: str) -> dict[str, Any]:
        """Make a backup through the broker and return its final view. The backup must succeed."""
        done = self.cli("backup-create", self.instance_id, name, "--wait", "--json", *arguments)
        assert done.returncode == 0, done.stderr
        view: dict[str, Any] = json.loads(done.stdout)
        return view

    def _settings(self) -> Tables:
        home = self.folder
        tables: Tables = {
            "agent": {
                "instance_id": self.instance_id,
                "tenant_id": self.tenant_id,
                "state_folder": home / "state",
                "restore_roots": [home / "restore"],
                "progress_seconds": 1,
            },
            "broker": {
                "url": self.rabbitmq.url,
                "password_file": home / "broker-password",
                # a quorum queue killed within 30 s of its declaration loses its messages
                "queue_type": "classic",
            },
            "store": {
                "url": f"swift:{self.swift.auth_url}",
                "user": self.swift.user,
                "key_file": home / "store-key",
            },
            "database": {
                "socket": self.mariadb.socket,
                "user": self.mariadb.agent_user,
                "password_file": self.mariadb.password_file,
            },
            "keys": {"folder": home / "keys", "active": KEY_ID},
        }
        for section, keys in self.overrides.items():
            tables.setdefault(section, {}).update(keys)
        return tables


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text.rstrip("\n") + "\n")


def _program() -> list[str]:
    return [sys.executable, "-m", "agent"]


def _toml(tables: Tables) -> str:
    """Encode plain tables as TOML. JSON writes strings, numbers and lists as TOML reads them."""
    lines: list[str] = []
    for name, table in tables.items():
        lines.append(f"[{name}]")
        lines += [
            f"{key} = {json.dumps(value, default=str)}"
            for key, value in table.items()
            if value is not None
        ]
        lines.append("")
    return "\n".join(lines)
