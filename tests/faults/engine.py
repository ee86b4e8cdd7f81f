"""Faults of the engine and of the server that it copies, each through a running agent.

Some faults are made on the real programs: a killed or stopped engine, a held lock, a killed server,
an overwritten redo log. For the others, a program wraps the engine (filtering.py).
"""

import json
import os
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, Self

import psutil

from agent import wiring
from agent.config.reading import load
from agent.model import BackupRequest, CreateTask, Limits
from tests.e2e.objects import Objects
from tests.e2e.reports import Reports
from tests.engine.scripts import script
from tests.faults.trial import Bench, Plan, Seen, Trial
from tests.stack.agent import Agent, Tables
from tests.stack.mariadb import MariaDB, connection_id
from tests.stack.process import poll

LEAST: Final = {"engine": 20}
_KILLS: Final = 6
_SERVER: Final = {
    "innodb-log-file-size": "4M",
    "innodb-log-buffer-size": "2M",
    "innodb-buffer-pool-size": "48M",
    "innodb-data-file-path": "ibdata1:4M:autoextend",
    "innodb-undo-tablespaces": "0",
}
_SILENT_SECONDS: Final = 4
_OVERRIDES: Final[Tables] = {
    "agent": {"progress_seconds": 0.2},
    "pipeline": {"segment_bytes": 1 << 20},
}
_FILTER: Final = Path(__file__).with_name("filtering.py")
_MEMORY: Final = 48 << 20


class Rig:
    """An agent with its own small database, whose engine can be made to misbehave."""

    def __init__(self, bench: Bench) -> None:
        self.folder = bench.folder / f"engine-{uuid.uuid4().hex[:8]}"
        self.folder.mkdir(parents=True)
        self._mode = self.folder / "mode"
        self._ends = ExitStack()
        self._ends.callback(shutil.rmtree, self.folder, ignore_errors=True)
        try:
            self.mariadb = MariaDB(self.folder / "mariadb", options=_SERVER)
            self._ends.callback(self.mariadb.stop)
            self.mariadb.install()
            self.mariadb.start()
            self.mariadb.create_agent_user()
            self.mariadb.load_rows(12)
            self.agent = self._agent(bench)
            self._ends.callback(self.agent.stop)
            self.agent.start()
            self.reports = self._ends.enter_context(Reports(self.agent))
            self.objects = Objects(self.agent)
            self._ends.callback(self.objects.close)
            self.good = self.works()
        except BaseException:
            self._ends.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._ends.close()

    def _agent(self, bench: Bench) -> Agent:
        self.spoil("")
        given = {"MODE": str(self._mode)}
        body = f"import runpy\nrunpy.run_path({str(_FILTER)!r}, {given!r}, '__main__')"
        engine: dict[str, object] = {
            "program": script(self.folder / "mariadb-backup", body),
            "lock_wait_seconds": 1,
            "silent_seconds": _SILENT_SECONDS,
        }
        overrides = _OVERRIDES | {"engine": engine}
        return Agent(self.folder / "agent", bench.rabbitmq, bench.swift, self.mariadb, overrides)

    def spoil(self, mode: str) -> None:
        """Set the mode of the program that wraps the engine, from the engine's next start."""
        self._mode.write_text(mode)

    def ask(self, *, parent: str | None = None, slow: bool = False) -> CreateTask:
        """Send a create task and return it. A slow backup takes about 6 s."""
        request = BackupRequest(id=str(uuid.uuid4()), name="engine", parent_id=parent)
        limits = Limits(bytes_per_second=4 << 20) if slow else Limits()
        task = CreateTask(task_id=str(uuid.uuid4()), backup=request, limits=limits)
        self.agent.send(task)
        return task

    def under_way(self) -> tuple[CreateTask, psutil.Process]:
        """Return a slow backup that has stored its first segments, and its engine's process."""
        task = self.ask(slow=True)
        held = self.objects
        poll("segments are stored", lambda: len(held.segment_names(task.backup.id)) > 1, 60)
        (engine,) = psutil.Process(self.agent.daemon.pid).children()
        return task, engine

    def works(self, parent: str | None = None) -> str:
        """Make a backup without any fault and return its id."""
        self.spoil("")
        task = self.ask(parent=parent)
        final = self.reports.wait_for(task.task_id, "DONE")
        assert final["backup"]["status"] == "COMPLETED"
        return task.backup.id

    def failed(self, task: CreateTask, code: str, *words: str) -> Seen:
        """Check that the task ends as FAILED with that code, by `judged`."""
        return self.judged(task, self.reports.wait_for(task.task_id, "FAILED"), code, *words)

    def judged(self, task: CreateTask, final: dict[str, Any], code: str, *words: str) -> Seen:
        """Check a failed backup by its final report, its record and the objects left.

        Report and record must have the same error with that code, no other object of the backup may
        be left, and the next backup must succeed.
        """
        error = final["error"]
        assert error["code"] == code, error
        assert error["hint"], error
        for word in words:
            assert word in error["message"], error
        assert final["backup"]["status"] == "FAILED"
        assert self.objects.record(task.backup.id)["error"] == error
        self.nothing_of(task, [f"{task.backup.id}.json"])
        self.good = self.works()
        return Seen(f"{code}: {error['message']}")

    def nothing_of(self, task: CreateTask, objects: list[str]) -> None:
        """Check that only those objects of the backup are stored, and nothing is left locally."""
        held = self.objects
        assert held.names(held.container, task.backup.id) == objects
        assert held.names(held.segments, f"{task.backup.id}/") == []
        assert list((self.folder / "agent" / "state" / "scratch").glob("*")) == []
        assert psutil.Process(self.agent.daemon.pid).children() == []


Do = Callable[[Rig], Seen]


def _killed(rig: Rig) -> Seen:
    task, engine = rig.under_way()
    os.killpg(engine.pid, signal.SIGKILL)
    return rig.failed(task, "engine_killed", "SIGKILL")


def _kills(plan: Plan) -> Do:
    """Return a trial that sends SIGKILL at random moments of several backups.

    A backup is FAILED if its engine still ran at that moment, else it is COMPLETED.
    """
    chance = plan.random("engine kills")

    def do(rig: Rig) -> Seen:
        ends: list[str] = []
        for _ in range(_KILLS):
            task, engine = rig.under_way()
            segments = chance.randrange(3, 12)
            poll("the backup continues", lambda t=task, n=segments: _far(rig, t, n), 60)  # type: ignore[misc]
            with suppress(ProcessLookupError):
                if engine.is_running():
                    os.killpg(engine.pid, signal.SIGKILL)
            final = rig.reports.end_of(task.task_id)
            # an engine that had ended, and was not waited for yet, takes the signal without effect
            if final["status"] == "FAILED":
                rig.judged(task, final, "engine_killed")
            else:
                assert final["backup"]["status"] == "COMPLETED"
            ends.append(str(segments))
        return Seen(f"after {', '.join(ends)} segments", len(ends))

    return do


def _far(rig: Rig, task: CreateTask, segments: int) -> bool:
    running = psutil.Process(rig.agent.daemon.pid).children()
    return not running or len(rig.objects.segment_names(task.backup.id)) >= segments


def _silent(rig: Rig) -> Seen:
    task, engine = rig.under_way()
    os.killpg(engine.pid, signal.SIGSTOP)
    return rig.failed(task, "engine_silent", f"for {_SILENT_SECONDS} s")


def _server_killed(rig: Rig) -> Seen:
    task, _ = rig.under_way()
    rig.mariadb.kill()
    try:
        final = rig.reports.wait_for(task.task_id, "FAILED")
    finally:
        rig.mariadb.start()
    return rig.judged(task, final, "database_unreachable")


def _redo(rig: Rig) -> Seen:
    task, engine = rig.under_way()
    os.killpg(engine.pid, signal.SIGSTOP)
    # write about 10 MiB of redo, in less time than the engine may be silent
    rig.mariadb.query("UPDATE shop.orders SET remark = REPEAT('x', 200) WHERE id <= 6000")
    os.killpg(engine.pid, signal.SIGCONT)
    return rig.failed(task, "redo_overwritten", "only able to copy log")


def _lock(rig: Rig) -> Seen:
    with rig.mariadb.connect() as holder:
        holder.cursor().execute("LOCK TABLES shop.orders WRITE")
        task = rig.ask()
        final = rig.reports.wait_for(task.task_id, "FAILED")
        holding = f" {connection_id(holder)} (idle for "
    return rig.judged(task, final, "lock_timeout", "BACKUP STAGE START", holding)


def _spoilt(mode: str, code: str, *words: str) -> Do:
    def do(rig: Rig) -> Seen:
        rig.spoil(mode)
        return rig.failed(rig.ask(), code, *words)

    return do


def _flood(rig: Rig) -> Seen:
    daemon = psutil.Process(rig.agent.daemon.pid)
    before = daemon.memory_info().rss
    rig.spoil("flood")
    task = rig.ask()
    rig.reports.wait_for(task.task_id, "DONE")
    grown = daemon.memory_info().rss - before
    assert grown < _MEMORY, f"the agent grew by {grown} bytes"
    return Seen(f"DONE, the agent grew by {grown >> 10} KiB")


def _future_stream(rig: Rig) -> Seen:
    rig.spoil("future")
    return rig.failed(rig.ask(parent=rig.good), "lsn_mismatch", "asked for an incremental")


def _future_parent(rig: Rig) -> Seen:
    """Back up on a parent whose signed record has an LSN in the future."""
    parent, held = rig.good, rig.objects
    name = f"{parent}.json"
    signed = held.get(held.container, name)
    forged: dict[str, Any] = held.record(parent) | {"to_lsn": 1 << 50}
    keys = wiring.keyring(load(rig.agent.config))
    held.put(held.container, name, keys.sign(json.dumps(forged).encode()))
    task = rig.ask(parent=parent)
    final = rig.reports.wait_for(task.task_id, "FAILED")
    held.put(held.container, name, signed)
    error = final["error"]
    assert error["code"] == "lineage_changed", error
    assert str(1 << 50) in error["message"]
    rig.nothing_of(task, [])
    rig.works(parent)
    return Seen(f"{error['code']}: {error['message']}")


_SHORT: Final[tuple[tuple[str, str, Do], ...]] = (
    ("killed", "SIGKILL to the engine during the copy", _killed),
    ("unproved", "exit 0 without completed OK!", _spoilt("unproved", "engine_unproved")),
    ("cut", "completed OK! with 64 KiB of the stream missing", _spoilt("cut", "stream_invalid")),
    (
        "gap",
        "completed OK! with a table's file missing",
        _spoilt("gap", "stream_incomplete", "shop/events.ibd"),
    ),
    ("future stream", "an incremental from an LSN in the future", _future_stream),
    ("future parent", "a parent whose record ends in the future", _future_parent),
    ("lock", "LOCK TABLES held past the deadline", _lock),
    (
        "flooded cause",
        "a cause, 20 MiB on standard error, exit 1",
        _spoilt("flooded cause", "engine_failed", "the sky has fallen"),
    ),
)
_LONG: Final[tuple[tuple[str, str, Do], ...]] = (
    ("flood", "20 MiB on standard error of an engine that succeeds", _flood),
    ("silent", "SIGSTOP to the engine during the copy", _silent),
    ("server killed", "SIGKILL to the server during the copy", _server_killed),
    ("interrupted", "SIGINT from another process", lambda rig: _signalled(rig, signal.SIGINT)),
    ("crash", "SIGSEGV", lambda rig: _signalled(rig, signal.SIGSEGV)),
)


def _signalled(rig: Rig, number: signal.Signals) -> Seen:
    task, engine = rig.under_way()
    os.killpg(engine.pid, number)
    crash = number is signal.SIGSEGV
    return rig.failed(task, "engine_failed" if crash else "engine_killed")


def trials(plan: Plan) -> Iterator[Trial]:
    chosen = (*_SHORT, *_LONG, *_last(plan)) if plan.full else _SHORT
    for name, done, do in chosen:
        yield Trial("engine", name, done, _on_rig(do))


def _last(plan: Plan) -> tuple[tuple[str, str, Do], ...]:
    return (
        ("kills", "SIGKILL to the engine at random moments", _kills(plan)),
        ("redo", "SIGSTOP while the server overwrites its redo log", _redo),
    )


def _on_rig(do: Do) -> Callable[[Bench], Seen]:
    """Run the trial on the rig that all trials of a bench share."""
    return lambda bench: do(bench.shared(Rig))
