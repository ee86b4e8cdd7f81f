"""An agent for the crash trials, with a small database, two families of backups, and its tasks.

The trials share one rig, because starting the servers takes most of a trial's time.
"""

import contextlib
import shutil
import signal
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

import psutil

from agent.model import (
    BackupRequest,
    CreateTask,
    DeleteTask,
    Limits,
    PingTask,
    RestoreTask,
    Task,
)
from agent.records.object_names import new_attempt, segment_name
from tests.e2e.objects import Objects
from tests.faults.ledger import Ledger
from tests.faults.trial import Bench
from tests.stack.agent import Agent, Tables
from tests.stack.mariadb import SMALL_SERVER, MariaDB
from tests.stack.process import poll

ROWS: Final = 3000  # about 4 MiB that deflate can't compress
SEGMENTS: Final = 1 << 20  # bytes, so that there are several segments
_OVERRIDES: Final[Tables] = {
    "agent": {"progress_seconds": 0.1},
    "pipeline": {"segment_bytes": SEGMENTS},
    "store": {"attempts": 2},
}
END_SECONDS: Final = 90.0


def small_server(folder: Path) -> MariaDB:
    """Start a server with one table of random bytes."""
    server = MariaDB(folder, options=SMALL_SERVER)
    server.install()
    server.start()
    server.create_agent_user()
    server.execute_many(
        "CREATE SCHEMA crash",
        "CREATE TABLE crash.t (id INT PRIMARY KEY, word VARBINARY(1000))",
        f"INSERT INTO crash.t SELECT seq, RANDOM_BYTES(1000) FROM crash.seq_1_to_{ROWS}",
    )
    return server


def change(server: MariaDB) -> dict[str, int]:
    """Change some rows, so that there is something to copy. Return the checksums after it."""
    server.query("UPDATE crash.t SET word = RANDOM_BYTES(1000) WHERE RAND() < 0.3")
    server.checkpoint()
    return server.checksums()


class Rig:
    """An agent that a trial may kill, with its database and ledger.

    `kept` and `older` are families: ids of COMPLETED backups, with the root first. `content` maps
    each backup to the checksums of the tables that its restore must reproduce. `asked` holds the
    tasks that were sent since the last call of `settled`.
    """

    def __init__(self, bench: Bench) -> None:
        self.folder = bench.folder / f"crashes-{uuid.uuid4().hex[:8]}"
        self.folder.mkdir(parents=True)
        self.swift = bench.swift
        self.content: dict[str, dict[str, int]] = {}
        self.asked: dict[str, Task] = {}
        self.kept: list[str] = []
        self.older: list[str] = []
        self.mixed_seconds = 0.0
        self._ends = ExitStack()
        try:
            self.mariadb = small_server(self.folder / "mariadb")
            self._ends.callback(self.mariadb.stop)
            self.agent = Agent(
                self.folder / "agent", bench.rabbitmq, bench.swift, self.mariadb, _OVERRIDES
            )
            self._ends.callback(self.agent.stop)
            self.ledger = self._ends.enter_context(Ledger(self.agent))
            self.agent.start()
            self._begin()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the agent and its database."""
        self.swift.clear_faults()
        self._ends.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _begin(self) -> None:
        older, kept = self.full(), self.full()
        child = self.incremental(older.backup.id)
        self.ask(older, kept, child)
        self.end()
        self.older = [older.backup.id, child.backup.id]
        self.kept = [kept.backup.id]
        self.settled()

    # --- its tasks --------------------------------------------------------------------------

    def full(self, *, retry: bool = False, slow: bool = False) -> CreateTask:
        return self._create(None, retry, slow)

    def incremental(self, parent: str, *, retry: bool = False) -> CreateTask:
        return self._create(parent, retry, slow=False)

    def _create(self, parent: str | None, retry: bool, slow: bool) -> CreateTask:
        request = BackupRequest(id=str(uuid.uuid4()), name="crash", parent_id=parent)
        limits = Limits(bytes_per_second=1 << 20) if slow else Limits()
        return CreateTask(task_id=_id(), backup=request, limits=limits, retry=retry)

    def restore(self, *, retry: bool = False) -> RestoreTask:
        """Return a restore of the last backup of the kept family."""
        target = self.folder / "agent" / "restore" / _id()
        return RestoreTask(task_id=_id(), backup_id=self.kept[-1], target=str(target), retry=retry)

    def delete(self, backup_id: str | None = None) -> DeleteTask:
        """Return a delete of the older family, or of that backup and its descendants."""
        return DeleteTask(task_id=_id(), backup_id=backup_id or self.older[0])

    def ping(self) -> PingTask:
        return PingTask(task_id=_id())

    def ask(self, *tasks: Task) -> None:
        """Send tasks. The restore of each backup among them must reproduce the current tables."""
        checksums = change(self.mariadb)
        for task in tasks:
            self.asked[task.task_id] = task
            if isinstance(task, CreateTask):
                self.content[task.backup.id] = checksums
        for task in tasks:
            self.agent.send(task)

    def end(self) -> None:
        """Wait until all sent tasks have ended."""
        self.ledger.wait_for_ends(self.asked, END_SECONDS)

    def settled(self) -> None:
        """Forget all sent tasks, because they have been judged."""
        self.asked.clear()
        self.ledger.reports.clear()
        self.ledger.repeated = 0

    def statuses(self) -> dict[str, str]:
        """Return the latest reported status of each sent task, or "-" if there is none."""
        self.ledger.pump()
        return {
            task_id: reports[-1]["status"] if (reports := self.ledger.of(task_id)) else "-"
            for task_id in self.asked
        }

    def plant_orphans(self, count: int) -> list[str]:
        """Store segments of attempts that no record knows. Return their names."""
        mine = self.agent.instance_id
        names = [segment_name(_id(), new_attempt(mine), 0) for _ in range(count)]
        objects = Objects(self.agent)
        for name in names:
            objects.put(objects.segments, name, b"orphan")
        objects.close()
        return names

    # --- its death --------------------------------------------------------------------------

    def restart(self, environment: Mapping[str, str]) -> None:
        """Stop the daemon cleanly, and start it with those environment variables added."""
        self.agent.stop()
        self.agent.start(environment)

    def wait_for_death(self, seconds: float = 60) -> None:
        """Wait until SIGKILL has ended it. Raise AssertionError if it ends in another way."""
        daemon = self.agent.daemon
        poll("the daemon is killed", lambda: not daemon.running(), seconds)
        assert daemon.returncode == -signal.SIGKILL, f"ended with {daemon.returncode}"

    def kill(self, *, everything: bool) -> None:
        """Send SIGKILL to the daemon, and also to its children if `everything`, as systemd does."""
        daemon = psutil.Process(self.agent.daemon.pid)
        children = daemon.children(recursive=True) if everything else []
        self.agent.kill()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()

    def leftovers(self, folder: Path | None = None) -> list[str]:
        """Return command lines of processes that name a directory, except the daemon's.

        None means the agent's directory.
        """
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                about = any(str(folder or self.agent.folder) in word for word in words)
                if about and process.pid != self.agent.daemon.pid:
                    found.append(" ".join(words))
        return found

    def restored(self, folder: Path) -> dict[str, int]:
        """Return the checksums of the tables in a restored datadir, and remove the datadir."""
        server = MariaDB(self.folder / "second", folder, options=SMALL_SERVER)
        server.start()
        try:
            return server.checksums()
        finally:
            server.stop()
            shutil.rmtree(folder)


def _id() -> str:
    return str(uuid.uuid4())


def told(report: Mapping[str, Any]) -> str:
    """Return a final report as a word: its status, and its error's code if it has one."""
    error = report.get("error")
    return f"{report['status']} {error['code']}" if error else str(report["status"])
