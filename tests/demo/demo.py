"""The demo's steps, in order. Each proves a claim or raises DemoFailed."""

import json
import shutil
import sys
import time
import tomllib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.demo import changes, foreign
from tests.demo.programs import last_lines, run
from tests.demo.story import DemoFailed, Story, megabytes, rate
from tests.stack.mariadb import MariaDB
from tests.stack.stack import Stack

STEPS = 12
_PROGRAM = Path(sys.executable).with_name("backup-agent")


class Demo:
    """One run in `folder`. All programs that it starts are ended by `ends` in any case."""

    def __init__(self, folder: Path, mebibytes: int, ends: ExitStack, story: Story) -> None:
        self._folder = folder
        self._mebibytes = mebibytes
        self._ends = ends
        self._story = story
        self._stack = Stack(folder / "stack")
        self._source: Mapping[str, int] = {}

    def run(self) -> None:
        """Run all steps. The servers run until `ends` is closed."""
        self._start_servers()
        self._load()
        self._start_agent()
        self._test_itself()
        base = self._full_backup()
        self._change()
        incremental = self._incremental_backup(base)
        self._look(base, incremental)
        self._restore(incremental)
        self._restore_without_us(incremental)
        self._delete(base, incremental)
        self._stop_agent()

    def _start_servers(self) -> None:
        with self._story.step("Start a private MariaDB, RabbitMQ and Swift"):
            self._ends.callback(self._stack.stop)
            self._stack.start()
            self._config = self._stack.agent_toml()
            version = self._stack.mariadb.query("SELECT VERSION()")[0][0]
            self._story.proved(f"MariaDB {version}, RabbitMQ and Swift answer on 127.0.0.1")

    def _load(self) -> None:
        with self._story.step(f"Fill a shop with about {self._mebibytes} MiB of rows"):
            rows, size = changes.fill(self._stack.mariadb, self._mebibytes)
            self._base_sums = self._stack.mariadb.checksums()
            self._story.proved(
                f"{len(self._base_sums)} tables, about {rows:,} rows, {megabytes(size)} on disk"
            )

    def _start_agent(self) -> None:
        with self._story.step("Start the agent"):
            self._story.command(["backup-agent", "--config", "agent.toml", "run"])
            self._ends.callback(self._stack.agent.stop)
            self._ends.push(self._tell_log)
            self._stack.agent.start()
            self._story.proved("it is ready: the queue of its tasks exists on RabbitMQ")

    def _tell_log(self, kind: type[BaseException] | None, *_: object) -> None:
        """Print the last lines of the agent's log after a failure."""
        if kind is not None and issubclass(kind, Exception):
            self._story.note("the last lines of the agent's log:")
            self._story.text(last_lines(self._stack.agent.log.read_text(errors="replace")))

    def _test_itself(self) -> None:
        with self._story.step("Let the installation test itself"):
            counts = json.loads(self._agent("self-test", "--json"))
            self._story.proved(
                f"{counts['checks']} checks: {counts['passed']} passed, "
                f"{counts['warnings']} warnings, {counts['failed']} failed"
            )

    def _full_backup(self) -> dict[str, Any]:
        with self._story.step("Request a full backup through RabbitMQ"):
            return self._create("base", "--description", "base backup")

    def _change(self) -> None:
        with self._story.step("Let the shop work: update, insert, delete, CREATE, ALTER, DROP"):
            changes.a_day_passes(self._stack.mariadb)
            self._source = self._stack.mariadb.checksums()
            differ = changes.differences(self._base_sums, self._source)
            if len(differ) < len(self._source):
                raise DemoFailed(f"the shop's work changed too few tables: {differ}")
            self._story.proved(f"{len(differ)} tables were changed, created or dropped")

    def _incremental_backup(self, base: Mapping[str, Any]) -> dict[str, Any]:
        with self._story.step("Request an incremental backup, which has only the changes"):
            record = self._create("inc.001", "--parent", base["id"])
            if record["from_lsn"] != base["to_lsn"] or record["to_lsn"] <= base["to_lsn"]:
                raise DemoFailed(f"the incremental does not follow its parent: {record}")
            part = record["stored"]["raw_bytes"] / base["stored"]["raw_bytes"]
            self._story.proved(
                f"it begins where its parent ended, at LSN {base['to_lsn']}, "
                f"and is {part:.0%} of its size"
            )
            return record

    def _create(self, name: str, *options: str) -> dict[str, Any]:
        """Run `backup-create --wait` and return the record of the COMPLETED backup."""
        began = time.monotonic()
        asked = self._agent(
            "backup-create", self._stack.instance_id, name, *options, "--wait", "--json"
        )
        waited = time.monotonic() - began
        shown = self._agent("backup-show", json.loads(asked)["id"], "--json", quiet=True)
        record: dict[str, Any] = json.loads(shown)
        if record["status"] != "COMPLETED":
            raise DemoFailed(f"the backup {name} is {record['status']}")
        sizes, seconds = record["stored"], record["measured"]["seconds"]
        self._story.proved(
            f"COMPLETED: {megabytes(sizes['raw_bytes'])} of xbstream became "
            f"{megabytes(sizes['stored_bytes'])} in {sizes['segment_count']} encrypted segments"
        )
        self._story.note(
            f"{seconds:.1f} s in the agent, {rate(sizes['raw_bytes'], seconds)}; "
            f"{waited:.1f} s from the command to its end"
        )
        return record

    def _look(self, base: Mapping[str, Any], incremental: Mapping[str, Any]) -> None:
        with self._story.step("List the backups and show one"):
            listing = self._agent("backup-list")
            self._story.text(listing)
            shown = self._agent("backup-show", incremental["id"])
            self._story.text(shown)
            if not (base["id"] in listing and incremental["id"] in listing and "inc.001" in shown):
                raise DemoFailed("backup-list or backup-show doesn't show the backups")
            self._story.proved("both are in the catalogue, which is the store itself")

    def _restore(self, incremental: Mapping[str, Any]) -> None:
        with self._story.step("Restore the chain and start a second MariaDB on it"):
            target = self._folder / "restored"
            answer = self._agent("restore", "--local", incremental["id"], str(target), "--json")
            told = json.loads(answer)
            self._story.proved(
                f"{len(told['chain'])} backups, {megabytes(told['raw_bytes'])}, prepared in "
                f"{told['seconds']:.1f} s, {rate(told['raw_bytes'], told['seconds'])}"
            )
            self._compare(target)

    def _restore_without_us(self, incremental: Mapping[str, Any]) -> None:
        with self._story.step("Open the same backups WITHOUT this program (tests/demo/foreign.py)"):
            self._story.note("swiftclient, cryptography, Google Tink, gunzip, mbstream")
            target = self._folder / "foreign"
            config = tomllib.loads(self._config.read_text())
            options = {
                "--auth-url": self._stack.swift.auth_url,
                "--user": self._stack.swift.user,
                "--key-file": config["store"]["key_file"],
                "--container": incremental["locationRef"].rsplit("/", 2)[1],
                "--master-key": Path(config["keys"]["folder"], config["keys"]["active"] + ".key"),
                "--into": target,
            }
            argv = [sys.executable, "-I", str(Path(foreign.__file__))]
            argv += [str(word) for option in options.items() for word in option]
            told = run([*argv, incremental["id"]], log=self._folder / "foreign.log")
            for line in told.splitlines():
                self._story.note(line)
            self._compare(target)

    def _delete(self, base: Mapping[str, Any], incremental: Mapping[str, Any]) -> None:
        with self._story.step("Delete the full backup, and with it the incremental one"):
            tree = self._agent("backup-delete", "--dry-run", base["id"])
            self._story.text(tree)
            self._agent("backup-delete", "--wait", base["id"])
            left = self._agent("backup-list", "--json", quiet=True)
            if incremental["id"] not in tree or json.loads(left):
                raise DemoFailed(f"the delete left: {left}")
            self._story.proved("both are gone from the catalogue")

    def _compare(self, datadir: Path) -> None:
        """Start a server on a restored datadir, and compare all its tables with the source's."""
        copy = MariaDB(datadir.with_name(f"{datadir.name}-server"), datadir=datadir)
        with ExitStack() as ends:
            ends.callback(copy.stop)
            copy.start()
            differ = changes.differences(self._source, copy.checksums())
        if differ or not self._source:
            raise DemoFailed("the restored database differs from the source: " + "; ".join(differ))
        shutil.rmtree(datadir)
        names = ", ".join(sorted(self._source))
        self._story.proved(f"CHECKSUM TABLE is the same in both servers: {names}")

    def _stop_agent(self) -> None:
        with self._story.step("Stop the agent"):
            status = self._stack.agent.stop()
            if status != 0:
                raise DemoFailed(f"after SIGTERM the agent ended with exit status {status}")
            self._story.proved("SIGTERM, exit status 0")

    def _agent(self, *arguments: str, quiet: bool = False) -> str:
        """Run a command of the agent, after showing it, and return its output."""
        if not quiet:
            self._story.command(["backup-agent", *arguments])
        return run([str(_PROGRAM), "--config", str(self._config), *arguments])
