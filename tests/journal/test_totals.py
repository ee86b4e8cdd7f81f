"""The totals of the journal outlive the tasks and the process."""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from agent.errors import Internal
from agent.journal import Ended, Journal, figures
from agent.journal.file import JournalFile
from agent.model import (
    BackupRequest,
    BackupStatus,
    BackupView,
    CancelTask,
    CreateTask,
    Datastore,
    ErrorInfo,
    PingTask,
    ReportDraft,
    StageTotal,
    Task,
    TaskStatus,
    VerifyTask,
)

INSTANCE, RUN = str(uuid4()), str(uuid4())
_NOW = 1_800_000_000


class Clock:
    def __init__(self) -> None:
        self.now = float(_NOW)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def opened(path: Path, clock: Callable[[], float] = time.time) -> Journal:
    return Journal(path, INSTANCE, RUN, clock=clock, keep_ended=2)


def draft(task: Task, status: TaskStatus, code: str = "", **fields: object) -> ReportDraft:
    error = ErrorInfo(code=code, message="m", hint="h") if code else None
    return ReportDraft.model_validate(
        {"task_id": task.task_id, "type": task.type, "status": status, "error": error, **fields}
    )


def end(journal: Journal, task: Task, status: TaskStatus, code: str = "") -> None:
    journal.accept(task, draft(task, TaskStatus.ACCEPTED))
    journal.report(draft(task, status, code))
    journal.report(draft(task, TaskStatus.DONE))  # dropped, as the task has ended


def ping() -> PingTask:
    return PingTask(task_id=str(uuid4()))


def create() -> CreateTask:
    wanted = BackupRequest(id=str(uuid4()), name="a")
    return CreateTask(task_id=str(uuid4()), backup=wanted)


def test_ends_are_counted_by_type_status_and_code(path: Path) -> None:
    clock = Clock()
    journal = opened(path, clock)
    for _ in range(5):
        end(journal, ping(), TaskStatus.DONE)
    clock.now += 60
    end(journal, create(), TaskStatus.FAILED, "engine_failed")
    clock.now += 60
    end(journal, create(), TaskStatus.FAILED, "engine_failed")
    end(journal, VerifyTask(task_id=str(uuid4()), backup_id=str(uuid4())), TaskStatus.DONE)
    journal.close()
    # it keeps two ended tasks only
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM tasks").fetchone() == (2,)
    journal = opened(path, clock)
    assert sorted(figures(path).ends) == [
        Ended("agent.ping", "DONE", "", 5, _NOW),
        Ended("backup.create", "FAILED", "engine_failed", 2, _NOW + 120),
        Ended("backup.verify", "DONE", "", 1, _NOW + 120),
    ]
    journal.close()


def test_a_cancel_counts_itself_and_its_task(path: Path) -> None:
    journal, task = opened(path), ping()
    journal.accept(task, draft(task, TaskStatus.ACCEPTED))
    cancel = CancelTask(task_id=str(uuid4()), cancels=task.task_id)
    journal.accept(cancel, draft(cancel, TaskStatus.ACCEPTED))
    journal.cancel(cancel)
    assert {(one.type, one.status, one.code) for one in figures(path).ends} == {
        ("agent.ping", "CANCELLED", "cancelled"),
        ("task.cancel", "DONE", ""),
    }
    journal.close()


def test_a_repeated_task_counts_once(path: Path) -> None:
    journal, task = opened(path), ping()
    end(journal, task, TaskStatus.DONE)
    journal.accept(task, draft(task, TaskStatus.ACCEPTED))
    journal.refuse(draft(task, TaskStatus.FAILED, "message_unreadable"))
    assert [one.number for one in figures(path).ends] == [1]
    journal.close()


def test_no_text_of_a_sender_or_a_record_becomes_a_value(path: Path) -> None:
    journal, hostile = opened(path), 'secret"} 1\n'
    refused = draft(ping(), TaskStatus.FAILED, "message_unreadable", type="evil.type")
    journal.refuse(refused)
    end(journal, ping(), TaskStatus.FAILED, hostile)
    assert {(one.type, one.code) for one in figures(path).ends} == {
        ("unknown", "message_unreadable"),
        ("agent.ping", "other"),
    }
    journal.close()


def test_the_last_backup_and_the_depths(path: Path) -> None:
    clock = Clock()
    journal, done = opened(path, clock), create()
    view = BackupView(
        id=done.backup.id,
        name="a",
        instance_id=INSTANCE,
        datastore=Datastore(type="mariadb"),
        status=BackupStatus.COMPLETED,
        created="2026-11-30T10:00:00Z",
        updated="2026-11-30T10:02:05Z",
    )
    sizes = {"raw_bytes": 300, "compressed_bytes": 200, "stored_bytes": 210}
    journal.accept(done, draft(done, TaskStatus.ACCEPTED))
    journal.report(draft(done, TaskStatus.DONE, backup=view, sizes=sizes))
    clock.now += 9
    end(journal, create(), TaskStatus.FAILED, "engine_failed")
    waiting = ping()
    journal.accept(waiting, draft(waiting, TaskStatus.ACCEPTED))
    found = figures(path)
    assert found.last_backup == (300, 210, 125.0)
    assert (found.unfinished, found.unsent, found.oldest_unsent) == (1, 5, _NOW)
    journal.take_reports(done.task_id)
    assert figures(path).oldest_unsent == _NOW + 9
    journal.take_reports()
    found = figures(path)
    assert (found.unsent, found.oldest_unsent) == (0, None)
    # the last backup is forgotten with its task
    for _ in range(3):
        end(journal, ping(), TaskStatus.DONE)
    assert figures(path).last_backup is None
    journal.close()


def test_damaged_reports_spoil_no_figures(path: Path) -> None:
    journal, task = opened(path), create()
    end(journal, task, TaskStatus.DONE)
    with journal._file.transaction() as db:
        db.execute("UPDATE outbox SET body = x'ff'")
        db.execute("UPDATE tasks SET last_report = x'ff'")
    found = figures(path)
    assert (found.unsent, found.oldest_unsent, found.last_backup) == (2, None, None)
    journal.close()


def test_stages_add_up_over_processes(path: Path) -> None:
    for _ in range(2):
        journal = opened(path)
        journal.add_stages({"read": StageTotal(1.5, 10), "send": StageTotal(0.5, 5)})
        journal.add_stages({"read": StageTotal(1.0, 1)})
        journal.close()
    assert figures(path).stages == {"read": StageTotal(5.0, 22), "send": StageTotal(1.0, 10)}


def test_a_report_and_the_work_of_the_stages_are_one_transaction(path: Path) -> None:
    journal, task, work = opened(path), ping(), {"read": StageTotal(1.5, 10)}
    with pytest.raises(Internal):
        journal.report(draft(task, TaskStatus.RUNNING), work)
    assert figures(path).stages == {}
    journal.accept(task, draft(task, TaskStatus.ACCEPTED))
    journal.report(draft(task, TaskStatus.RUNNING), work)
    assert figures(path).stages == work
    journal.report(draft(task, TaskStatus.DONE))
    journal.report(draft(task, TaskStatus.RUNNING), work)  # the report is dropped
    assert figures(path).stages == {"read": StageTotal(3.0, 20)}
    journal.close()


def test_a_reader_and_a_writer_do_not_wait_for_each_other(path: Path) -> None:
    journal = opened(path)
    end(journal, ping(), TaskStatus.DONE)
    with journal._file.transaction() as db:
        db.execute("DELETE FROM ends")
        began = time.monotonic()
        assert [one.number for one in figures(path).ends] == [1]
        assert time.monotonic() - began < 5  # SQLite would wait for a lock for 10 s
    assert figures(path).ends == []
    journal.close()


def test_an_upgrade_takes_no_text_of_a_sender_or_a_record(path: Path) -> None:
    journal = Journal(path, INSTANCE, RUN)
    tasks = [ping() for _ in range(4)]
    for task in tasks:
        end(journal, task, TaskStatus.FAILED, "engine_failed")
    changes = ("$.error.code", 'secret"} 1'), ("$.error.code", 7), ("$.type", "evil.type")
    with journal._file.transaction() as db:
        db.execute("DROP TABLE ends")
        db.execute("DROP TABLE stages")
        for task, change in zip(tasks, changes, strict=False):
            db.execute(
                "UPDATE tasks SET last_report = json_set(CAST(last_report AS TEXT), ?, ?)"
                " WHERE task_id = ?",
                (*change, task.task_id),
            )
        db.execute("PRAGMA user_version = 4")
    journal.close()
    JournalFile(path).close()
    assert sorted((one.type, one.code, one.number) for one in figures(path).ends) == [
        ("agent.ping", "engine_failed", 1),
        ("agent.ping", "other", 2),
        ("unknown", "engine_failed", 1),
    ]
