"""Tests of the executor with a backup that failed but may still become COMPLETED."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from agent.errors import AgentError, JournalError, StoreFull, StoreSilent
from agent.journal import Journal
from agent.model import BackupStatus, CreateTask, ErrorInfo, Record, TaskStatus
from agent.operations.backup.abandon import abandon_record
from agent.records.catalogue import Catalogue
from agent.stop import Stop
from agent.tasks import create as create_module
from tests.operations.stored import place_record
from tests.records.made import completed
from tests.tasks.test_recovery import Site, create


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with closing(Site(tmp_path)) as made:
        yield made


class Failing:
    """A backup that fails with `error` when its finished record is journalled."""

    error: AgentError
    undecided: bool
    seen: list[str | None]
    kept: Callable[[], str | None]

    def __init__(
        self, parts: Any, task: CreateTask, *, on_finished: Callable[[Record], None], **_more: Any
    ) -> None:
        self._parts = parts
        self._on_finished = on_finished
        self.attempt = str(uuid4())
        self.record = completed(id=task.backup.id, attempt=self.attempt)

    def run(self) -> Record:
        building = self.record.model_copy(update={"status": BackupStatus.BUILDING})
        place_record(self._parts.store, self._parts.keyring, building)
        self._on_finished(self.record)
        raise self.error

    def abandon(self, error: ErrorInfo, _patience: Stop | None) -> Record | None:
        self.seen.append(self.kept())
        return abandon_record(self._parts, self.record, error)


def performed(
    site: Site, monkeypatch: pytest.MonkeyPatch, error: AgentError, *, undecided: bool
) -> tuple[CreateTask, Any]:
    task = create(str(uuid4()))
    ends = {
        "error": error,
        "undecided": undecided,
        "seen": [],
        "kept": lambda _self: site.journal.kept_note(task.task_id),
    }
    failing = type("Ended", (Failing,), ends)
    monkeypatch.setattr(create_module, "BackupOperation", failing)
    performer = site.start()
    site.begin(task)
    performer.perform(task, Stop())
    return task, failing


def test_no_record_says_failed_where_one_that_says_completed_may_be_under_way(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAILED could overwrite COMPLETED, or come late and overwrite the record of the recovery."""
    silent = StoreSilent("put: no answer")
    task, failing = performed(site, monkeypatch, silent, undecided=True)
    assert failing.seen == []
    assert site.finals(task) == []
    there = Catalogue(site.store, site.keys).need(task.backup.id)
    assert there.status is BackupStatus.BUILDING
    assert site.journal.kept_note(task.task_id) is not None


def test_what_the_journal_keeps_as_finished_is_not_given_up(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_journal: Journal, _task_id: str) -> None:
        raise JournalError("no space is left")

    monkeypatch.setattr(Journal, "forget_note", fail)
    task, failing = performed(site, monkeypatch, StoreFull("no room"), undecided=False)
    assert failing.seen == []
    assert site.finals(task) == []


def test_what_is_given_up_is_completed_by_no_crash(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The FAILED record may be on its way to the store when the agent dies."""
    task, failing = performed(site, monkeypatch, StoreFull("no room"), undecided=False)
    assert failing.seen == [None]
    assert [final.status for final in site.finals(task)] == [TaskStatus.FAILED]
