"""`gc` in separate processes: beside a journal that is in use, killed, interrupted."""

import base64
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agent.crash_points import VARIABLE, Point
from agent.errors import JournalError
from agent.journal import Journal, busy_backups, overview
from agent.model import BackupRequest, BackupStatus, CreateTask, ReportDraft, TaskStatus
from agent.records.catalogue import Catalogue
from agent.store.directory.store import DirectoryStore
from agent.store.protocol import Container
from agent.store.swift.login import AuthV1
from agent.store.swift.store import SwiftSettings, SwiftStore
from tests.operations.collecting import (
    GIVEN_UP,
    HOUR,
    KEYS,
    age,
    names,
    one_of_each,
    ours,
    ours_completed,
    place_segments,
)
from tests.operations.stored import held, place
from tests.records.made import INSTANCE
from tests.stack.agent import write_private
from tests.stack.process import ServerProcess
from tests.stack.swift import SwiftServer


class Machine:
    """An agent's configuration, with a store in a folder unless `store` is another section."""

    def __init__(self, folder: Path, store: str = "") -> None:
        self.folder = folder
        self.config = folder / "agent.toml"
        self.journal = folder / "state" / "journal.sqlite"
        (folder / "keys").mkdir(mode=0o700)
        (folder / "state").mkdir(mode=0o700)
        write_private(folder / "keys" / "k1.key", base64.b64encode(bytes([7]) * 32).decode())
        store = store or f'url = "file://{folder}/backups"\n'
        write_private(
            self.config,
            f'[agent]\ninstance_id = "{INSTANCE}"\ntenant_id = "t"\n'
            f'state_folder = "{folder}/state"\n[store]\n{store}'
            f'[keys]\nfolder = "{folder}/keys"\nactive = "k1"\n[pipeline]\nconnections = 1\n',
        )
        self.store = DirectoryStore(folder / "backups", "database_backups_t")

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "agent", "--config", str(self.config), "gc", *arguments]

    def gc(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.argv(*arguments),
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def plain(self, *arguments: str) -> dict[str, Any]:
        done = self.gc("--json", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        told: dict[str, Any] = json.loads(done.stdout)
        return told


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_what_goes_is_told_and_goes(machine: Machine) -> None:
    machine.store.open()
    kept = ours_completed()
    place(machine.store, KEYS, kept)
    before = names(machine.store)
    ids, stay = one_of_each(machine.store)
    age(machine.store)
    everything = held(machine.store)
    shown = machine.gc("--dry-run")
    assert (shown.returncode, shown.stderr) == (0, "")
    # without a journal, gc leaves a BUILDING backup alone for seven days
    assert "5 orphans, " in shown.stdout
    assert "this was a dry run, nothing was changed; 1 left alone" in shown.stdout
    assert all(one in shown.stdout for one in ids)
    assert held(machine.store) == everything
    would = machine.plain("--dry-run")
    did = machine.plain()
    assert would == did | {"dry_run": True}
    assert {one["backup_id"] for one in did["orphans"] + did["left_alone"]} == set(ids)
    assert did["objects"] == sum(one["objects"] for one in did["orphans"])
    assert len(everything.of("")) - len(names(machine.store)) == did["objects"]
    building = ids[3]
    stay |= {name for name in names(machine.store) if name.startswith(building)}
    assert names(machine.store) == before | stay
    assert not machine.journal.exists()


def test_what_is_younger_than_a_day_is_counted(machine: Machine) -> None:
    """Remains of a recent kill are counted. The healthy backup beside them is not."""
    machine.store.open()
    place(machine.store, KEYS, ours_completed())
    ids, _ = one_of_each(machine.store)
    done = machine.gc()
    assert done.stdout == (
        "0 orphans, 0 objects, 0 bytes removed; 0 left alone; "
        f"{len(ids)} touched within 24 hours, so not judged\n"
    )
    assert machine.plain()["touched_within_a_day"] == len(ids)
    age(machine.store)
    assert machine.plain()["touched_within_a_day"] == 0


def test_where_there_is_nothing(machine: Machine) -> None:
    nothing = "0 orphans, 0 objects, 0 bytes removed; 0 left alone\n"
    for _ in range(2):
        done = machine.gc()
        assert (done.returncode, done.stdout, done.stderr) == (0, nothing, "")
        machine.store.open()  # no container in the first turn, an empty one in the second


def test_a_journal_in_a_folder_that_is_closed_to_this_user(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        for look in (busy_backups, overview):
            with pytest.raises(JournalError, match="can't be read: Permission denied") as raised:
                look(closed / "journal.sqlite")
            assert "as root" in raised.value.hint
    finally:
        os.seteuid(user)


def test_beside_an_agent_whose_journal_says_what_is_at_work(machine: Machine) -> None:
    machine.store.open()
    building = ours()
    place(machine.store, KEYS, building)
    age(machine.store)
    before = held(machine.store)
    task = CreateTask(task_id=str(uuid.uuid4()), backup=BackupRequest(id=building.id, name="base"))
    assert busy_backups(machine.journal) is None
    journal = Journal(machine.journal, INSTANCE, str(uuid.uuid4()))
    with closing(journal):
        draft = ReportDraft(task_id=task.task_id, type=task.type, status=TaskStatus.ACCEPTED)
        journal.accept(task, draft)
        journal.claim()
        assert busy_backups(machine.journal) == frozenset({building.id})
        [left] = machine.plain()["left_alone"]
        assert (left["backup_id"], left["why"]) == (
            building.id,
            "the backup's record says BUILDING, and a task in the journal is working on it",
        )
        assert held(machine.store) == before
        journal.report(draft.model_copy(update={"status": TaskStatus.FAILED}))
    # the agent has ended, too, and has deleted the files that it shared with readers (-wal, -shm)
    assert busy_backups(machine.journal) == frozenset()
    [gone] = machine.plain()["orphans"]
    assert (gone["what"], gone["backup_id"]) == ("interrupted", building.id)
    left_record = Catalogue(machine.store, KEYS).need(building.id)
    assert left_record.status is BackupStatus.FAILED


def test_a_journal_that_cannot_be_read_ends_it(machine: Machine) -> None:
    machine.store.open()
    building, failed = ours(), ours(status=BackupStatus.FAILED, error=GIVEN_UP)
    place(machine.store, KEYS, building, failed)
    age(machine.store)
    before = held(machine.store)
    machine.journal.write_bytes(b"no database at all" * 100)
    refused = machine.gc()
    assert refused.returncode == 1
    assert "backup-agent: journal_failed: " in refused.stderr
    machine.journal.unlink()
    Journal(machine.journal, INSTANCE, str(uuid.uuid4())).close()
    with closing(sqlite3.connect(machine.journal)) as db:
        db.execute("PRAGMA user_version = 99")
    refused = machine.gc()
    assert refused.returncode == 1
    assert "is of version 99" in refused.stderr
    assert held(machine.store) == before


@pytest.mark.parametrize(("point", "times"), [(Point.GC_FOUND, 1), (Point.GC_REMOVED, 3)])
def test_one_that_is_killed_is_completed_by_repeating_it(
    machine: Machine, point: Point, times: int
) -> None:
    machine.store.open()
    failed = [ours(status=BackupStatus.FAILED, error=GIVEN_UP) for _ in range(4)]
    place(machine.store, KEYS, *failed)
    age(machine.store)
    everything = names(machine.store)
    killed = machine.gc(**{VARIABLE: f"{point}:{times}"})
    assert killed.returncode == -signal.SIGKILL
    assert (names(machine.store) == everything) is (point is Point.GC_FOUND)
    left = machine.plain()["orphans"]
    assert len(left) == len(failed) - (times if point is Point.GC_REMOVED else 0)
    assert len(names(machine.store)) == 2 * len(failed)


@pytest.fixture
def swift_machine(tmp_path: Path, swift: SwiftServer) -> Iterator[tuple[Machine, SwiftStore]]:
    container = f"database_backups_{uuid.uuid4().hex}"
    write_private(tmp_path / "store-key", swift.key)
    section = (
        f'url = "swift:{swift.auth_url}"\nuser = "{swift.user}"\n'
        f'key_file = "{tmp_path / "store-key"}"\ncontainer = "{container}"\n'
    )
    store = SwiftStore(SwiftSettings(AuthV1(swift.auth_url, swift.user, swift.key), container))
    store.open()
    yield Machine(tmp_path, section), store
    swift.clear_faults()
    store.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_that_is_interrupted_ends_between_two_objects(
    swift_machine: tuple[Machine, SwiftStore], swift: SwiftServer, number: int
) -> None:
    machine, store = swift_machine
    failed = ours(status=BackupStatus.FAILED, error=GIVEN_UP)
    place_segments(store, failed.id, failed.attempt, count=6)
    place(store, KEYS, failed, segments=1)
    dated = {"match": ".", "times": 10_000, "action": "date", "seconds": 25 * HOUR}
    slow = {"method": "DELETE", "match": "/00000002", "action": "stall", "seconds": 600}
    before = len(swift.requests())
    swift.inject([slow, dated])
    process = ServerProcess(machine.argv(), machine.folder / "log", dict(os.environ))
    stalled = re.compile(r"DELETE .*/00000002 stall")
    process.wait_ready(lambda: any(map(stalled.match, swift.requests()[before:])), 30)
    process.stop(number, 20)
    assert process.returncode == 1
    said = process.log.read_text()
    assert "backup-agent: interrupted: the collection was interrupted" in said
    assert "same command again" in said
    swift.inject([dated])
    assert 2 < len(list(store.list(Container.SEGMENTS))) < 8
    assert [one["what"] for one in machine.plain()["orphans"]] == ["given up"]
    assert list(store.list(Container.SEGMENTS)) == []
