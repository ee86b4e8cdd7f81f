"""The agent's unit on the machine, and the results of its tasks."""

import json
import time
import tomllib
import uuid
from typing import Any, Final

from tests.stack.process import ServerProcess, poll
from tests.system.machine import CHECKOUT_INSIDE, Machine

UNIT: Final = "backup-agent.service"
# At this rate, the slowest allowed, a backup of the machine's database takes minutes.
SLOW: Final = "Environment=BACKUP_AGENT_PIPELINE__BYTES_PER_SECOND=1048576"
_DROP_IN: Final = f"/etc/systemd/system/{UNIT}.d/test.conf"
_INSIDE: Final = f"{CHECKOUT_INSIDE}/tests/system/inside.py"
_FINAL: Final = ("DONE", "FAILED", "CANCELLED")


class SystemAgent:
    """The agent's unit, observed and controlled from outside the machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        text = machine.output("cat", "/etc/backup-agent/agent.toml")
        self.instance_id: str = tomllib.loads(text)["agent"]["instance_id"]

    # --- the unit ------------------------------------------------------------------------

    def show(self, name: str) -> str:
        """Return one property of the unit (systemctl(1), show)."""
        return self.machine.output("systemctl", "show", "--value", "--property", name, UNIT)

    def wait_for(self, name: str, value: str, seconds: float = 60) -> None:
        poll(f"{name} of the agent's unit is {value}", lambda: self.show(name) == value, seconds)

    def drop_in(self, *lines: str, block: bool = True) -> None:
        """Set lines of [Service] and restart the unit, waiting for its start if `block`."""
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
        """Return the output of `backup-agent` for an operator who is root."""
        return self.machine.run("backup-agent", *arguments, check=check).stdout

    def create(self, name: str, *arguments: str) -> dict[str, Any]:
        """Make a backup and return its final view. The backup must succeed."""
        shown = self.cli("backup-create", self.instance_id, name, "--wait", "--json", *arguments)
        view: dict[str, Any] = json.loads(shown)
        return view

    def begin_slow_backup(self) -> ServerProcess:
        """Begin a backup and wait until its engine copies. Return the command that waits for it.

        The unit must have the drop-in `SLOW`.
        """
        argv = self.machine.argv("backup-agent", "backup-create", self.instance_id, "slow")
        log = self.machine.folder / f"create-{uuid.uuid4().hex[:8]}.log"
        waiting = ServerProcess([*argv, "--wait"], log)
        poll("the engine copies", self._engine_copies, 60)
        return waiting

    def _engine_copies(self) -> bool:
        """Return True if the engine copies. Its earlier run for the version doesn't count."""
        pattern = "mariadb-backup --defaults-file="
        return self.machine.run("pgrep", "--full", pattern, check=False).returncode == 0

    def engine_runs(self) -> bool:
        """Return True if a mariadb-backup or mbstream runs anywhere on the machine."""
        pattern = "mariadb-backup|mbstream"
        return self.machine.run("pgrep", "--exact", pattern, check=False).returncode == 0

    def objects(self) -> list[str]:
        """Return the names of all objects in the store."""
        return self._inside("objects")

    def collect(self) -> str:
        """Start to keep all reports. Return the queue's name for `final_reports`."""
        queue = f"backup.control.{uuid.uuid4()}"  # the control plane may create such names
        self._inside("bind", queue)
        return queue

    def final_reports(self, queue: str) -> list[dict[str, Any]]:
        reports = [json.loads(line) for line in self._inside("reports", queue)]
        return [report for report in reports if report["status"] in _FINAL]

    def _inside(self, *arguments: str) -> list[str]:
        python = "/opt/backup-agent/bin/python"
        return self.machine.output(python, "-I", _INSIDE, *arguments).splitlines()


def seconds_of(machine: Machine, *argv: str) -> float:
    """Run a command that must succeed and return its time in seconds."""
    began = time.monotonic()
    machine.run(*argv)
    return time.monotonic() - began
