"""Slow backups, and helpers that read their reports, for trials that interfere meanwhile."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Final
from uuid import uuid4

from agent.model import BackupRequest, CreateTask, Limits
from tests.e2e.objects import Objects
from tests.faults.ledger import Ledger
from tests.faults.trial import Bench
from tests.stack.agent import Agent
from tests.stack.process import poll

_MIB: Final = 1 << 20


def slow_backup(bench: Bench, agent: Agent, seconds: float) -> CreateTask:
    """Send a backup that takes at least about `seconds`, and return its task."""
    files = (*bench.mariadb.datadir.glob("*/*.ibd"), bench.mariadb.datadir / "ibdata1")
    rate = int(sum(file.stat().st_blocks * 512 for file in files) / seconds)
    task = CreateTask(
        task_id=str(uuid4()),
        backup=BackupRequest(id=str(uuid4()), name="slow"),
        limits=Limits(bytes_per_second=max(rate, _MIB)),
    )
    agent.send(task)
    return task


@contextmanager
def rows(bench: Bench, mebibytes: int) -> Iterator[None]:
    """Add rows to back up, because no rate can be below 1 MiB a second."""
    schema = f"rows_{uuid4().hex[:8]}"
    bench.mariadb.load_rows(mebibytes, schema)
    try:
        yield
    finally:
        bench.mariadb.query(f"DROP SCHEMA {schema}")


def until(ledger: Ledger, task_id: str, status: str) -> None:
    def said() -> bool:
        ledger.pump()
        return status in [one["status"] for one in ledger.of(task_id)]

    poll(f"task {task_id} is {status}", said, 30)


def more(ledger: Ledger, seen: int) -> None:
    """Wait until further reports arrive while the backup runs."""

    def come() -> bool:
        ledger.pump()
        return len(ledger.reports) > seen

    poll("further reports arrive", come, 30)


def completed(agent: Agent, task: CreateTask) -> None:
    poll("the backup is COMPLETED", lambda: record(agent, task)["status"] == "COMPLETED", 90)


def all_reported(ledger: Ledger, *task_ids: str) -> int:
    """Read and check all reports after a broken connection. Return the number of reports."""
    ledger.reopen()
    ledger.wait_for_ends(task_ids, 90)
    ledger.check(task_ids)
    return len(ledger.reports)


def record(agent: Agent, task: CreateTask) -> dict[str, Any]:
    """Return line 1 of the backup's record in Swift."""
    with closing(Objects(agent)) as objects:
        return objects.record(task.backup.id)


def statuses(ledger: Ledger, task: CreateTask) -> list[str]:
    return [str(report["status"]) for report in ledger.of(task.task_id)]


def in_words(ledger: Ledger) -> str:
    return f"{len(ledger.reports)} reports in order, {ledger.repeated} repeated"


def log(agent: Agent) -> str:
    return agent.log.read_text()
