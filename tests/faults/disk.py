"""Full disks: under the journal, under a restore's target, and under a store in a directory.

Each disk is a small tmpfs over one directory of a separate agent. Mounting it needs root's rights.
"""

import errno
import json
import os
import sqlite3
import subprocess
import unittest
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from agent.model import BackupRequest, CreateTask, Limits, PingTask, RestoreTask, Task
from tests.faults.ledger import Ledger
from tests.faults.slow import log, record, until
from tests.faults.trial import Bench, Plan, Seen, Trial
from tests.stack.agent import Agent, Tables
from tests.stack.process import poll

LEAST: Final[Mapping[str, int]] = {"disk": 5}
_MIB: Final = 1 << 20
_BLOCK: Final = 4096


def trials(plan: Plan) -> Iterator[Trial]:
    """Yield the trials. The store's runs in the full form only, as tests/store covers it, too."""
    yield Trial("disk", "journal", "the journal's disk is full during a backup", journal)
    yield Trial("disk", "restore", "the target's disk is full before and during a restore", restore)
    if plan.full:
        yield Trial("disk", "store", "the disk of a store in a directory is too small", store)


# --- the trials ----------------------------------------------------------------------------


def journal(bench: Bench) -> Seen:
    """Fill the disk while one task runs and another one arrives that can't be journalled."""
    with bench.agent("full-journal") as agent, Ledger(agent) as ledger:
        state = agent.folder / "state"
        with mounted(state, 16 * _MIB), _scratch_elsewhere(state):
            agent.start()
            backup = _backup(bench, seconds=3)
            agent.send(backup)
            until(ledger, backup.task_id, "RUNNING")
            with filled(state):
                ping = PingTask(task_id=str(uuid4()))
                agent.send(ping)
                poll(
                    "the agent logs that the task waits",
                    lambda: "a task waits on the broker: " in log(agent),
                    20,
                )
                _backup_is_over(agent, backup)
                assert agent.running(), "the agent has ended"
            ledger.wait_for_ends([backup.task_id, ping.task_id], 90)
            assert agent.running(), "the agent has ended"
            end = _end(ledger, backup)
            assert end["error"]["code"] == "journal_failed", end
            assert record(agent, backup)["status"] == "FAILED", (
                "COMPLETED, but never journalled as finished"
            )
            agent.create("next")
            agent.stop()
            _journal_is_whole(agent, [backup, ping])
        ledger.pump()
        ledger.check([backup.task_id, ping.task_id])
        assert "no space is left" in log(agent)
        return Seen("journal_failed, reported once; the journal intact, the next backup done", 2)


def restore(bench: Bench) -> Seen:
    """Check that a restore without space is refused, or fails and leaves nothing behind."""
    with bench.agent("full-target") as agent, Ledger(agent) as ledger:
        agent.start()
        made = agent.create("base")
        root = agent.folder / "restore"
        with mounted(root, _room(bench)):
            with filled(root):
                lacking = _do(ledger, agent, _restore(made["id"], root / "back"))
            assert lacking["error"]["code"] == "space_lacking", lacking
            bench.swift.inject([_SLOW_SEGMENT])
            task = _restore(made["id"], root / "back")
            agent.send(task)
            extracting = f"extracting backup {made['id']}"
            poll("the restore extracts", lambda: extracting in log(agent), 30)
            with filled(root):
                ledger.wait_for_ends([task.task_id], 60)
            failed = _end(ledger, task)
            # either the watch over the reserve or the extractor notices it first
            assert failed["error"]["code"] in ("space_lacking", "extract_failed"), failed
            assert failed["error"]["hint"]
            assert list(root.iterdir()) == [], "the failed restore left files"
            again = _do(ledger, agent, _restore(made["id"], root / "back"))
            assert again["status"] == "DONE", again
            assert (root / "back" / "ibdata1").exists()
            agent.stop()
        _journal_is_whole(agent, [task])
        ledger.check([task.task_id])
        return Seen("space_lacking before and during it, nothing left; restored with space", 2)


def store(bench: Bench) -> Seen:
    """Check that a backup without space is FAILED and removed, and the next one COMPLETED."""
    folder = bench.folder / f"small-store-{uuid4().hex[:8]}"
    folder.mkdir(parents=True, mode=0o700)
    overrides: Tables = {"store": {"url": f"file://{folder}", "user": None, "key_file": None}}
    with (
        bench.agent("full-store", overrides) as agent,
        Ledger(agent) as ledger,
        mounted(folder, _MIB // 8),
    ):
        agent.start()
        failed = _do(ledger, agent, _backup(bench, seconds=1))
        assert failed["error"]["code"] == "store_full", failed
        assert failed["backup"]["status"] == "FAILED", failed
        rows = _listed(agent)
        assert [row["status"] for row in rows] == ["FAILED"], rows
        assert not list(folder.glob("*_segments/*/*/*")), "segments are left"
        _run("mount", "-o", f"remount,size={_room(bench)}", str(folder))
        done = _do(ledger, agent, _backup(bench, seconds=1))
        assert done["status"] == "DONE", done
        agent.stop()
        return Seen("store_full, FAILED in the list; with space the next one is COMPLETED")


# --- full disks ----------------------------------------------------------------------------


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[None]:
    """Mount a tmpfs of `size` bytes over a directory. Raise SkipTest if mounting is not allowed."""
    options = f"size={size},mode=700"
    try:
        _run("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder))
    except subprocess.CalledProcessError as error:
        raise unittest.SkipTest(f"a tmpfs can't be mounted here: {error.stderr}") from error
    with ExitStack() as ends:
        ends.callback(_unmount, folder)
        yield


@contextmanager
def _scratch_elsewhere(state: Path) -> Iterator[None]:
    """Put the engine's scratch files on another disk, or they would free space for the journal."""
    (state / "scratch").mkdir(mode=0o700)
    with mounted(state / "scratch", 16 * _MIB):
        yield


def _unmount(folder: Path) -> None:
    try:
        _run("umount", str(folder))
    except subprocess.CalledProcessError:
        # a process has a file open there, so detach the filesystem lazily
        _run("umount", "--lazy", str(folder))


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Fill a filesystem inside the block, so that not one more block can be written."""
    filler = folder / "filler"
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        for block in (_MIB, _BLOCK):
            with _until_full():
                while True:
                    os.write(descriptor, bytes(block))
        yield
    finally:
        os.close(descriptor)
        filler.unlink()


@contextmanager
def _until_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30)


# --- small things --------------------------------------------------------------------------

# This gives a moment in which the extractor has begun and received nothing.
_SLOW_SEGMENT: Final = {
    "method": "GET",
    "match": "_segments/.*/0000",
    "action": "stall",
    "seconds": 2,
}


def _backup(bench: Bench, seconds: float) -> CreateTask:
    limits = Limits(bytes_per_second=max(int(_bytes(bench) / seconds), _MIB))
    request = BackupRequest(id=str(uuid4()), name="full disk")
    return CreateTask(task_id=str(uuid4()), backup=request, limits=limits)


def _restore(backup_id: str, target: Path) -> RestoreTask:
    return RestoreTask(task_id=str(uuid4()), backup_id=backup_id, target=str(target))


def _bytes(bench: Bench) -> int:
    """Return the approximate size of a backup of the bench's server, in bytes."""
    files = (*bench.mariadb.datadir.glob("**/*.ibd"), bench.mariadb.datadir / "ibdata1")
    return sum(file.stat().st_size for file in files)


def _room(bench: Bench) -> int:
    """Return enough bytes for a restored datadir, whose redo log is written anew."""
    return _bytes(bench) + 512 * _MIB


def _do(ledger: Ledger, agent: Agent, task: Task) -> dict[str, Any]:
    """Run a task and return its final report."""
    agent.send(task)
    ledger.wait_for_ends([task.task_id], 90)
    return _end(ledger, task)


def _end(ledger: Ledger, task: Task) -> dict[str, Any]:
    end = ledger.final(task.task_id)
    assert end is not None
    return end


def _backup_is_over(agent: Agent, task: CreateTask) -> None:
    """Wait for the backup's end in the store, because the journal can't record it."""
    poll("the backup is over", lambda: record(agent, task)["status"] != "BUILDING", 60)


def _listed(agent: Agent) -> list[dict[str, Any]]:
    done = agent.cli("backup-list", "--json")
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def _journal_is_whole(agent: Agent, tasks: list[Task]) -> None:
    path = agent.folder / "state" / "journal.sqlite"
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        known = {row[0] for row in db.execute("SELECT task_id FROM tasks WHERE ended IS NOT NULL")}
    assert known >= {task.task_id for task in tasks}, "tasks are missing"
