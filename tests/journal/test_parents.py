"""Tests of the parents that a journal remembers from open tasks and from ended ones."""

from pathlib import Path
from uuid import uuid4

from agent.journal import Journal, known_parents
from agent.model import BackupRequest, CreateTask, PingTask, ReportDraft, Task, TaskStatus
from tests.records.made import INSTANCE, completed


def create(parent_id: str | None) -> CreateTask:
    backup = BackupRequest(id=str(uuid4()), name="b", parent_id=parent_id)
    return CreateTask(task_id=str(uuid4()), backup=backup)


def accept(journal: Journal, *tasks: Task) -> None:
    for task in tasks:
        draft = ReportDraft(task_id=task.task_id, type=task.type, status=TaskStatus.ACCEPTED)
        journal.accept(task, draft)


def test_parents_are_known_before_and_after_the_end_of_a_task(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    assert known_parents(path) == {}
    journal = Journal(path, INSTANCE, str(uuid4()))
    parent = str(uuid4())
    full, waiting, done, refused = (create(one) for one in (None, parent, parent, parent))
    ping = PingTask(task_id=str(uuid4()))
    accept(journal, full, waiting, done, refused, ping)
    made = completed(id=done.backup.id, parent_id=parent).view()
    for task, backup in ((done, made), (refused, None), (ping, None)):
        status = TaskStatus.DONE if task is not refused else TaskStatus.FAILED
        end = ReportDraft(task_id=task.task_id, type=task.type, status=status, backup=backup)
        journal.report(end)
    expected = {waiting.backup.id: parent, done.backup.id: parent}
    assert journal.parents() == known_parents(path) == expected
    journal.close()
