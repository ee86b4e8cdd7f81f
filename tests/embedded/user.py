"""A user who has a MariaDB, the program and a folder, but nothing else."""

import base64
import getpass
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from tests.stack.agent import write_private
from tests.stack.mariadb import MariaDB
from tests.stack.process import ServerProcess

PROGRAM: Final = [sys.executable, "-m", "agent"]


class User:
    """A user who runs `backup-agent` with its state and its backups below `home`."""

    def __init__(self, home: Path, mariadb: MariaDB) -> None:
        self.home = home
        self.backups = home / "backups"
        self.store = f"file://{self.backups}"
        self.state = home / "state" / "backup-agent"
        self.environment = {
            **os.environ,
            "XDG_STATE_HOME": str(home / "state"),
            "XDG_CACHE_HOME": str(home / "cache"),
            "BACKUP_AGENT_DATABASE__SOCKET": str(mariadb.socket),
        }

    def run(
        self, verb: str, *arguments: str | Path, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run one verb on this user's store and return the finished process."""
        return self._done(self._argv(verb, *arguments), environment)

    def script(self, source: str, verb: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run one verb with `source`, a program that may patch the agent first.

        Return the finished process.
        """
        argv = [sys.executable, "-c", source, *self._argv(verb, *arguments)[len(PROGRAM) :]]
        return self._done(argv, {})

    def agent_toml(self) -> Path:
        """Write a configuration with this user's state folder and return its path.

        It names a broker that doesn't run.
        """
        keys = self.state / "keys"
        keys.mkdir(parents=True, mode=0o700)
        write_private(keys / "k.key", base64.b64encode(bytes(32)).decode())
        path = self.home / "agent.toml"
        path.write_text(
            f'[agent]\ninstance_id = "{uuid4()}"\ntenant_id = "toml"\n'
            f'state_folder = "{self.state}"\n'
            f'[keys]\nfolder = "{keys}"\nactive = "k"\n'
            f'[database]\nuser = "{getpass.getuser()}"\n'
            '[broker]\nurl = "amqp://127.0.0.1:1"\n'
        )
        return path

    def spawn(self, verb: str, *arguments: str, **environment: str) -> ServerProcess:
        """Start one verb and return the running process, which writes to `spawned.log`."""
        self.home.mkdir(exist_ok=True)
        argv = self._argv(verb, *arguments)
        return ServerProcess(argv, self.home / "spawned.log", {**self.environment, **environment})

    def asked(self, verb: str, *arguments: str | Path, **environment: str) -> Any:
        """Run a verb that must succeed, and return its JSON output."""
        done = self.run(verb, *arguments, "--json", **environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def create(self, name: str, *arguments: str, **environment: str) -> dict[str, Any]:
        """Make a backup that must succeed, and return its view."""
        view: dict[str, Any] = self.asked(
            "backup-create", "--local", name, *arguments, **environment
        )
        assert view["status"] == "COMPLETED"
        return view

    def segments(self, backup_id: str) -> list[Path]:
        """Return the paths of a backup's segments, sorted."""
        folder = self.backups / "database_backups_local_segments" / backup_id
        return sorted(folder.glob("*/0*"))

    def _done(
        self, argv: list[str], environment: Mapping[str, str]
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            argv,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def _argv(self, verb: str, *arguments: str | Path) -> list[str]:
        return [*PROGRAM, verb, "--store", self.store, *map(str, arguments)]
