"""The agent's unit on the machine, and what its tasks leave."""

import json
import time
import tomllib
import uuid
from typing import Any, Final

from tests.stack.process import ServerProcess, poll
from tests.system.machine import CHECKOUT_INSIDE, Machine

UNIT: Final = "backup-agent.service"
# A backup of the machine's database takes minutes at this rate, which is the slowest there is.
SLOW: Final = "Environment=BACKUP_AGENT_PIPELINE__BYTES_PER_SECOND=1048576"
_DROP_IN: Final = f"/etc/systemd/system/{UNIT}.d/test.conf"
_INSIDE: Final = f"{CHECKOUT_INSIDE}/tests/system/inside.py"
_FINAL: Final = ("DONE", "FAILED", "CANCELLED")


class SystemAgent:
    """One unit, seen and driven from outside the machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        text = machine.output("cat", "/etc/backup-agent/agent.toml")
        self.instance_id: str = tomllib.loads(text)["agent"]["instance_id"]

    # --- the unit ------------------------------------------------------------------------

    def show(self, name: str) -> str:
        """One property of the unit (systemctl(1), show)."""
        return self.machine.output("systemctl", "show", "--value", "--property", name, UNIT)

    def wait_for(self, name: str, value: str, seconds: float = 60) -> None:
        poll(f"{name} of the agent's unit is {value}", lambda: self.show(name) == value, seconds)

    def drop_in(self, *lines: str, block: bool = True) -> None:
        """Set lines of [Service] and start the unit with them, waiting for that or not."""
        text = "\n".join(("[Service]", *lines, ""))
        self.machine.run("install", "-D", "-m", "644", "/dev/stdin", _DROP_IN, text=text)
        self.restart(block=block)

    def undo_drop_in(self) -> None:
        self.machine.run("rm", "-f", _DROP_IN)

    def restart(self, *, block: bool = True) -> None:
        self.machine.run("systemctl", "daemon-reload")
        self.machine.run("systemctl", "reset-failed", UNIT, check=False)
        self.machine.run("systemctl", "restart", *([] if block else ["--no-block"]), UNIT)

    def journal(self) -> str:
        return self.machine.output("journalctl", "--no-pager", "--output=cat", f"--unit={UNIT}")

    # --- its tasks -----------------------------------------------------------------------

    def cli(self, *arguments: str, check: bool = True) -> str:
        """What `backup-agent` prints for an operator who is root."""
        return self.machine.run("backup-agent", *arguments, check=check).stdout

    def create(self, name: str, *arguments: str) -> dict[str, Any]:
        """Have a backup made; the final view of it. It must succeed."""
        shown = self.cli("backup-create", self.instance_id, name, "--wait", "--json", *arguments)
        view: dict[str, Any] = json.loads(shown)
        return view

    def begin_slow_backup(self) -> ServerProcess:
        """Begin a backup and wait until its engine copies; the command that follows it.

        The unit must have the drop-in `SLOW`.
        """
        argv = self.machine.argv("backup-agent", "backup-create", self.instance_id, "slow")
        log = self.machine.folder / f"create-{uuid.uuid4().hex[:8]}.log"
        waiting = ServerProcess([*argv, "--wait"], log)
        poll("the engine copies", self._engine_copies, 60)
        return waiting

    def _engine_copies(self) -> bool:
        """Before it copies, it also runs to say its version."""
        pattern = "mariadb-backup --defaults-file="
        return self.machine.run("pgrep", "--full", pattern, check=False).returncode == 0

    def engine_runs(self) -> bool:
        """Whether a mariadb-backup or mbstream runs anywhere on the machine."""
        pattern = "mariadb-backup|mbstream"
        return self.machine.run("pgrep", "--exact", pattern, check=False).returncode == 0

    def objects(self) -> list[str]:
        """The names of all objects in the store."""
        return self._inside("objects")

    def collect(self) -> str:
        """Keep all reports from now on; the name for `collected`."""
        queue = f"backup.control.{uuid.uuid4()}"  # the control plane may make such ones
        self._inside("bind", queue)
        return queue

    def final_reports(self, queue: str) -> list[dict[str, Any]]:
        reports = [json.loads(line) for line in self._inside("reports", queue)]
        return [report for report in reports if report["status"] in _FINAL]

    def _inside(self, *arguments: str) -> list[str]:
        python = "/opt/backup-agent/bin/python"
        return self.machine.output(python, "-I", _INSIDE, *arguments).splitlines()


def seconds_of(machine: Machine, *argv: str) -> float:
    """How long a command takes that must succeed."""
    began = time.monotonic()
    machine.run(*argv)
    return time.monotonic() - began
