"""RabbitMQ, Swift and MariaDB side by side, and an agent's configuration for them."""

import base64
import json
import os
import secrets
import signal
import uuid
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Final, Self

from tests.stack.mariadb import MariaDB
from tests.stack.rabbitmq import RabbitMQ
from tests.stack.swift import SwiftServer

KEY_ID: Final = "stack"


class Stack:
    """The three servers in `folder`, with ids and secrets of their own.

    As a context manager it is up inside the block and gone after it, whatever ends the
    block: an error, Ctrl-C or SIGTERM. Use it from the main thread.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.instance_id = str(uuid.uuid4())
        self.tenant_id = uuid.uuid4().hex
        self.rabbitmq = RabbitMQ(folder / "rabbitmq")
        self.swift = SwiftServer(folder / "swift")
        self.mariadb = MariaDB(folder / "mariadb")
        self._restore_signal = ExitStack()

    def start(self) -> None:
        """Start all and wait until all answer; under 15 s on two cores."""
        # RabbitMQ takes longest to come up, so it begins
        self.rabbitmq.launch()
        self.swift.launch()
        if not self.mariadb.datadir.exists():
            self.mariadb.install()
        self.mariadb.launch()
        for server in (self.mariadb, self.swift, self.rabbitmq):
            server.wait_ready()
        self.mariadb.create_agent_user()

    def stop(self) -> None:
        """End all, each whether or not another could be ended; nothing where none runs."""
        with ExitStack() as ends:
            for server in (self.rabbitmq, self.swift, self.mariadb):
                ends.callback(server.stop)

    def __enter__(self) -> Self:
        previous = signal.signal(signal.SIGTERM, _leave)
        self._restore_signal.callback(signal.signal, signal.SIGTERM, previous)
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # a second Ctrl-C must not leave servers behind
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._restore_signal.callback(signal.signal, signal.SIGINT, interrupt)
        with self._restore_signal:
            self.stop()

    def agent_toml(self) -> Path:
        """Write an agent's configuration, secrets and master key; return the file's path."""
        home = self.folder / "agent"
        for part in ("keys", "state", "restore"):
            (home / part).mkdir(parents=True, exist_ok=True, mode=0o700)
        key_file = home / "keys" / f"{KEY_ID}.key"
        if not key_file.exists():
            _write_private(key_file, base64.b64encode(secrets.token_bytes(32)).decode())
        _write_private(home / "broker-password", self.rabbitmq.password)
        _write_private(home / "store-key", self.swift.key)
        config = home / "agent.toml"
        _write_private(config, _toml(self._settings(home)))
        return config

    def _settings(self, home: Path) -> dict[str, dict[str, object]]:
        return {
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
                # a quorum queue killed within 30 s of its declaration loses what it held
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


def _leave(signum: int, _: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text.rstrip("\n") + "\n")


def _toml(tables: dict[str, dict[str, object]]) -> str:
    """TOML of plain tables; JSON writes strings, numbers and lists the way TOML reads them."""
    lines: list[str] = []
    for name, table in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value, default=str)}" for key, value in table.items()]
        lines.append("")
    return "\n".join(lines)
