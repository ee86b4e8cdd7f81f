"""The steps of `script/demo --trove`: the operators' manual, typed in Trove's own client.

Each step proves a claim or raises DemoFailed. Everything but the few calls of Nova, Neutron and
Cinder is real: Keystone, Swift, Trove's services, and the guest agent on each machine.
"""

import os
import time
from contextlib import ExitStack
from pathlib import Path

from tests.demo.story import DemoFailed, Story
from tests.stack.process import poll
from tests.stack.trove.instance import Instance
from tests.stack.trove.stack import VENV, TroveStack

STEPS = 9
_SECONDS = 300.0
_DAY = (
    "UPDATE shop.orders SET note = REVERSE(note) WHERE id % 7 = 0;"
    "CREATE TABLE IF NOT EXISTS shop.refunds (id INT AUTO_INCREMENT PRIMARY KEY, amount INT);"
    "INSERT INTO shop.refunds (amount) SELECT seq FROM shop.seq_1_to_5000;"
    "SET GLOBAL innodb_log_checkpoint_now = ON"
)


class TroveDemo:
    """One run in `folder`. All programs that it starts are ended by `ends` in any case."""

    def __init__(self, folder: Path, mebibytes: int, ends: ExitStack, story: Story) -> None:
        self._mebibytes = mebibytes
        self._ends = ends
        self._story = story
        self._trove = TroveStack(folder / "trove")

    def run(self) -> None:
        """Run all steps. The servers run until `ends` is closed."""
        self._start()
        instance = self._instance()
        base = self._backup("base", instance)
        first = self._incremental("inc.001", instance, base)
        second = self._incremental("inc.002", instance, first)
        self._look(instance, second)
        self._restore(instance, second)
        self._delete(base)

    def _start(self) -> None:
        if os.geteuid():
            raise DemoFailed("a machine of Trove's is a set of mounts, which needs root: use sudo")
        if not (VENV / "bin" / "trove").exists():
            raise DemoFailed(f"there is no Trove in {VENV}: run script/bootstrap trove")
        with self._story.step("Start Keystone, Swift, RabbitMQ, MariaDB and Trove"):
            self._ends.callback(self._trove.stop)
            self._trove.start()
            self._trove.use_image("drop-in")
            self._story.proved("Trove answers. Its backup image is the one of this project")

    def _instance(self) -> Instance:
        with self._story.step("Let Trove make a database instance, with its own guest agent"):
            instance = self._trove.create_instance("shop")
            self._story.proved(f"instance {instance.id} is HEALTHY")
        with self._story.step(f"Fill it with about {self._mebibytes} MiB of rows"):
            rows = self._mebibytes * 2600
            instance.sql(
                "CREATE SCHEMA shop;"
                "CREATE TABLE shop.orders (id INT PRIMARY KEY, note VARCHAR(400));"
                "INSERT INTO shop.orders SELECT seq, CONCAT(REPEAT(MD5(seq), 8), ' paid') "
                f"FROM shop.seq_1_to_{rows};"
                "SET GLOBAL innodb_log_checkpoint_now = ON"
            )
            self._story.proved(f"{rows:,} orders")
        return instance

    def _backup(self, name: str, instance: Instance, parent: str | None = None) -> str:
        """Make a backup with Trove's client, and return its id."""
        options = ("--parent", parent) if parent else ()
        with self._story.step(f"Make the {'incremental' if parent else 'full'} backup {name}"):
            began = time.monotonic()
            self._client("backup-create", instance.id, name, *options)
            [row] = [one for one in self._trove.api.backups() if one["name"] == name]
            view = self._trove.wait_backup(row["id"], _SECONDS)
            if view["status"] != "COMPLETED":
                last = instance.container_logs("db_backup")[-1].read_text().splitlines()[-1]
                raise DemoFailed(f"the backup {name} is {view['status']}: {last}")
            self._story.proved(f"COMPLETED after {time.monotonic() - began:.1f} s")
            return str(row["id"])

    def _incremental(self, name: str, instance: Instance, parent: str) -> str:
        instance.sql(_DAY)
        return self._backup(name, instance, parent)

    def _look(self, instance: Instance, newest: str) -> None:
        with self._story.step("List the backups, those of the instance, and show one"):
            self._story.text(self._client("backup-list"))
            limited = self._client("backup-list-instance", "--limit", "2", instance.id)
            self._story.text(limited)
            shown = self._client("backup-show", newest)
            self._story.text(shown)
            if limited.count("COMPLETED") != 2 or f"{newest}.xbstream.gz" not in shown:
                raise DemoFailed("the lists don't have what they should have")
            self._story.proved("two of three with --limit 2, and the location of one")

    def _restore(self, instance: Instance, newest: str) -> None:
        with self._story.step("Let Trove restore the chain into another instance"):
            expected = instance.checksums()
            restored = self._trove.create_instance("restored", newest)
            if restored.checksums() != expected:
                raise DemoFailed("the tables of the restored instance differ")
            self._story.proved(f"{len(expected)} tables, each with the same checksum")
            self._trove.delete_instance(restored.id)

    def _delete(self, base: str) -> None:
        with self._story.step("Delete the full backup, and with it its children"):
            self._client("backup-delete", base)
            poll("no backup is left", lambda: not self._trove.api.backups(), 60)
            if left := self._trove.objects():
                raise DemoFailed(f"Swift still has {left}")
            self._story.proved("Trove has no backup, and Swift has no object")

    def _client(self, *arguments: str) -> str:
        """Run Trove's client, show the command, and return its output."""
        self._story.command(["trove", *arguments])
        done = self._trove.client(*arguments)
        if done.returncode:
            raise DemoFailed(f"it ended with {done.returncode}: {done.stderr[-500:]}")
        return done.stdout
