"""A journal of an older version is migrated whole, and a journal of a later one is refused.

The golden journals are dumps of what the agents of those versions wrote, with all kinds of rows.
"""

import json
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import uuid4

import pytest

from agent.errors import JournalError
from agent.journal import Ended, Journal, busy_backups, figures, known_parents, overview
from agent.journal.file import SCHEMA_VERSION, JournalFile
from agent.journal.form import report_bytes
from agent.model import ErrorInfo, Record, ReportDraft, Task, TaskStatus
from agent.operations.delete.begun import BegunDelete
from tests.golden.make import HOME

INSTANCE: Final = "6523132a-21a6-49f5-a2f8-c3e32d60983d"
VERSIONS: Final = range(1, SCHEMA_VERSION + 1)
_LAST: Final = 1_760_000_030_000  # all reports of the golden journals have lower numbers


def golden(path: Path, version: int) -> None:
    """Make a journal of that version in the file `path`."""
    with closing(sqlite3.connect(path)) as db:
        db.executescript((HOME / f"journal-{version}.sql").read_text())


def query(path: Path, statement: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(statement).fetchall()


def dump(path: Path) -> list[str]:
    """Return all that is in a journal, with its version."""
    with closing(sqlite3.connect(path)) as db:
        return [*db.iterdump(), str(db.execute("PRAGMA user_version").fetchone())]


def schema(path: Path) -> dict[str, list[Any]]:
    """Return the columns of each table and of each index, without the spelling of the SQL."""
    names = query(path, "SELECT type, name FROM sqlite_master")
    return {name: query(path, f"PRAGMA {kind}_xinfo({name})") for kind, name in names}


class Row(NamedTuple):
    """The columns of a task that every version has."""

    task_id: str
    status: str
    body: bytes
    last_seq: int
    last_report: bytes
    record: str | None
    ended: int | None


class Rows(NamedTuple):
    """The rows that every version has."""

    tasks: list[Row]
    reports: list[tuple[int, bytes]]
    lineages: list[tuple[str, int, str]]

    def ends(self) -> Counter[tuple[str, str, str]]:
        """Count the ended tasks by type, status and error code."""
        told = [json.loads(task.last_report) for task in self.tasks if task.ended]
        return Counter(
            (one["type"], one["status"], one.get("error", {}).get("code", "")) for one in told
        )


def rows(path: Path) -> Rows:
    columns = ", ".join(Row._fields)
    return Rows(
        [Row(*row) for row in query(path, f"SELECT {columns} FROM tasks ORDER BY position")],
        query(path, "SELECT seq, body FROM outbox ORDER BY seq"),
        query(path, "SELECT lineage, lsn, generation FROM lineages ORDER BY position"),
    )


def is_cancel(task: Row) -> bool:
    return b'"type":"task.cancel"' in task.last_report


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture(params=VERSIONS)
def old(request: pytest.FixtureRequest, path: Path) -> Rows:
    """Make a golden journal of each version, and return its rows."""
    golden(path, request.param)
    return rows(path)


def opened(path: Path, **changes: Any) -> Journal:
    return Journal(path, INSTANCE, str(uuid4()), **changes)


def test_every_row_is_there_and_a_second_start_changes_nothing(path: Path, old: Rows) -> None:
    opened(path).close()
    once = dump(path)
    opened(path).close()
    assert dump(path) == once
    assert rows(path) == old


def test_the_schema_is_that_of_a_journal_made_by_this_version(
    path: Path, tmp_path: Path, old: Rows
) -> None:
    opened(path).close()
    fresh = tmp_path / "fresh"
    opened(fresh).close()
    assert schema(path) == schema(fresh)


def test_each_report_is_sent_once_and_as_it_was(path: Path, old: Rows) -> None:
    journal, sent = opened(path), []
    while report := journal.next_report():
        sent.append((report.seq, report_bytes(report)))
        journal.sent(report.seq)
    journal.close()
    assert [(seq, json.loads(body)) for seq, body in sent] == [
        (seq, json.loads(body)) for seq, body in old.reports
    ]
    journal = opened(path)
    assert journal.next_report() is None
    journal.close()


def test_running_tasks_are_recovered_and_waiting_ones_claimed(path: Path, old: Rows) -> None:
    journal = opened(path, store="file:///elsewhere", store_override=True)
    others = {one.task.task_id for one in journal.running()}
    journal.close()
    journal = opened(path, store="file:///usual")
    running = [one.task for one in journal.running()]
    assert [task.task_id for task in running] == [
        task.task_id
        for task in old.tasks
        if task.status == TaskStatus.RUNNING and task.task_id not in others
    ]
    for interrupted in running:
        journal.report(ending(interrupted))
    claimed: list[Task] = []
    while task := journal.claim():
        claimed.append(task)
    assert [task.task_id for task in claimed] == [
        task.task_id
        for task in old.tasks
        if task.status == TaskStatus.ACCEPTED and not is_cancel(task)
    ]
    for waiting in claimed:
        journal.report(ending(waiting))
    assert journal.cancels() == []  # their tasks have ended
    assert journal.unfinished() == len(others)
    final = [one for one in journal.take_reports() if one.seq > _LAST and one.status.final]
    assert {one.task_id for one in final} == {
        task.task_id for task in old.tasks if not task.ended and task.task_id not in others
    }
    journal.close()


def ending(task: Task) -> ReportDraft:
    info = ErrorInfo(code="interrupted", message="m", hint="h")
    return ReportDraft(task_id=task.task_id, type=task.type, status=TaskStatus.FAILED, error=info)


def test_notes_are_read(path: Path, old: Rows) -> None:
    """A note is a record as the agents of that time wrote it."""
    journal = opened(path)
    for task in old.tasks:
        note = journal.kept_note(task.task_id)
        assert note == task.record
        if note is not None and '"id"' in note:
            assert Record.model_validate_json(note.split("\n")[0]) == BegunDelete.of(note).root
    journal.close()


def test_an_lsn_that_went_back_is_still_known(path: Path, old: Rows) -> None:
    journal = opened(path)
    for lineage, lsn, generation in old.lineages:
        assert journal.observe_lsn(lineage, lsn) == generation
        assert journal.observe_lsn(lineage, lsn - 1) not in ("", generation)
    journal.close()


def test_ended_tasks_are_counted_and_known(path: Path, old: Rows) -> None:
    opened(path).close()
    found = figures(path)
    # a refused message is no task, so an older journal can't tell how many there were
    counted = {tuple(one[:3]): one.number for one in found.ends if one.type != "unknown"}
    assert counted == old.ends()
    assert found.unfinished == sum(task.ended is None for task in old.tasks)
    assert all(1_760_000_000 <= one.last <= _LAST // 1000 for one in found.ends)
    done = Ended("backup.create", "DONE", "", 1, 1_760_000_004)
    assert (found.last_backup is not None) is (done in found.ends)


def test_a_damaged_report_stops_no_migration_and_is_not_counted(path: Path) -> None:
    golden(path, 4)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE tasks SET last_report = x'ff' WHERE status = 'CANCELLED'")
    old = rows(path)
    opened(path).close()
    assert rows(path) == old
    assert "CANCELLED" not in {one.status for one in figures(path).ends}


@pytest.mark.parametrize("damage", ["record = '{'", "body = x'ff'", "record = '{}'"])
def test_a_damaged_running_task_stops_no_migration(path: Path, damage: str) -> None:
    golden(path, 1)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(f"UPDATE tasks SET {damage} WHERE status = 'RUNNING'")
    old = rows(path)
    JournalFile(path).close()
    assert rows(path) == old
    assert query(path, "SELECT DISTINCT attempt FROM tasks") == [("",)]


def test_commands_read_a_journal_that_no_agent_has_migrated_yet(path: Path, old: Rows) -> None:
    """So an upgraded `gc` beside an agent that still runs the older version spares its tasks."""
    before = dump(path)
    unfinished = [task for task in old.tasks if not task.ended]
    seen = overview(path)
    assert [one.task_id for one in seen.tasks] == [task.task_id for task in unfinished]
    assert seen.unsent == len(old.reports)
    busy, parents = busy_backups(path), known_parents(path)
    assert dump(path) == before
    opened(path).close()
    assert (busy_backups(path), known_parents(path)) == (busy, parents)
    assert parents


_KILLED: Final = """
import os, signal, sys
from pathlib import Path
from agent.journal import file
last, execute = file._UPGRADES[-1], file._execute
def killed(db, script):
    execute(db, script)
    if script is last:
        os.kill(os.getpid(), signal.SIGKILL)
file._execute = killed
file.JournalFile(Path(sys.argv[1]))
"""


def test_a_migration_that_is_killed_leaves_the_old_version(path: Path) -> None:
    golden(path, 1)
    before = dump(path)
    done = subprocess.run([sys.executable, "-c", _KILLED, path], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert dump(path) == before
    opened(path).close()
    assert query(path, "PRAGMA user_version") == [(SCHEMA_VERSION,)]


def test_so_does_a_migration_that_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden(path, 1)
    before = dump(path)
    with monkeypatch.context() as patched:
        upgrades = ("ALTER TABLE tasks ADD COLUMN store", "SELECT 1 FROM nowhere")
        patched.setattr("agent.journal.file._UPGRADES", upgrades)
        with pytest.raises(JournalError, match="no such table: nowhere"):
            JournalFile(path)
    assert dump(path) == before
    opened(path).close()
    assert query(path, "PRAGMA user_version") == [(SCHEMA_VERSION,)]


@pytest.mark.parametrize("read", [opened, overview, busy_backups, known_parents, figures])
def test_a_later_version_is_refused_and_left_alone(path: Path, read: Callable[[Path], Any]) -> None:
    golden(path, SCHEMA_VERSION)
    known, later = SCHEMA_VERSION, SCHEMA_VERSION + 1
    with closing(sqlite3.connect(path)) as db:
        db.execute("ALTER TABLE tasks ADD COLUMN novelty")
        db.execute(f"PRAGMA user_version = {later}")
    before = dump(path)
    with pytest.raises(JournalError, match=f"version {later}; this agent knows {known}") as told:
        read(path)
    assert "run the agent's version that wrote it, or a later one" in told.value.hint
    assert dump(path) == before
