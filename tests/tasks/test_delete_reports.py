"""Tests that a finished delete reports all deleted backups, also after a restart of the agent."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest

from agent.errors import StoreBusy
from agent.model import (
    BackupRequest,
    BackupStatus,
    CreateTask,
    DeleteTask,
    ReportDraft,
    TaskStatus,
)
from agent.operations.delete.begun import BegunDelete
from agent.records.object_names import record_name
from agent.stop import Stop
from agent.store.directory.store import DirectoryStore
from agent.store.protocol import Container
from tests.operations.stored import held, place
from tests.operations.test_delete_races import Behind
from tests.records.made import completed
from tests.tasks.test_recovery import Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with closing(Site(tmp_path)) as made:
        yield made


def test_a_delete_that_a_silent_store_and_a_restart_cut_off_names_all_that_went(
    site: Site,
) -> None:
    base = completed()
    child = completed(base, to_lsn=200)
    grandchild = completed(child, to_lsn=300)
    place(site.store, site.keys, base, child, grandchild)

    class Silent(DirectoryStore):
        def delete(self, container: Container, name: str) -> None:
            if name == record_name(child.id):
                raise StoreBusy("503")
            super().delete(container, name)

    task, whole = DeleteTask(task_id=str(uuid4()), backup_id=base.id), site.store
    site.begin(task)
    site.store = Silent(site.folder / "store", "database_backups_x")
    site.start().perform(task, Stop())
    assert site.finals(task) == []
    assert record_name(grandchild.id) not in held(whole).objects

    site.store = whole
    performer = site.start()
    (again,) = performer.recovery.take_continued()
    performer.perform(again, Stop())
    (final,) = site.finals(task)
    assert final.status is TaskStatus.DONE
    assert final.deleted == (grandchild.id, child.id, base.id)
    assert final.backup is not None
    assert final.backup.status is BackupStatus.DELETING
    assert final.backup.updated > base.updated
    assert held(whole) == ({}, {})


def test_other_tasks_name_nothing_deleted(site: Site) -> None:
    task = DeleteTask(task_id=str(uuid4()), backup_id=str(uuid4()))
    site.begin(task)
    site.start().perform(task, Stop())
    (final,) = site.finals(task)
    assert (final.status, final.deleted) == (TaskStatus.FAILED, None)


def test_what_an_earlier_agent_kept_is_read() -> None:
    root = completed()
    assert BegunDelete.of(root.model_dump_json()) == (root, ())
    begun = BegunDelete().more(root, ["a", root.id, "b"])
    assert begun.ids == ("a", "b", root.id)
    assert BegunDelete.of(begun.to_text()) == begun
    assert begun.more(root, ["c", "b", root.id]).ids == ("a", "c", "b", root.id)
    assert begun.more(root, ["b", "d", root.id]).ids == ("a", "b", "d", root.id)
    assert begun.more(root, ["c", "a", "c", root.id]).ids == ("c", "a", "b", root.id)
    assert BegunDelete.of(None) == (None, ())


def test_a_child_that_the_journal_made_and_no_listing_shows_goes_with_its_parent(
    site: Site,
) -> None:
    base = completed()
    child = completed(base, to_lsn=200)
    place(site.store, site.keys, base, child)
    request = BackupRequest(id=child.id, name="b", parent_id=base.id)
    made = CreateTask(task_id=str(uuid4()), backup=request)
    site.begin(made)
    done = ReportDraft(
        task_id=made.task_id, type=made.type, status=TaskStatus.DONE, backup=child.view()
    )
    site.journal.report(done)
    behind = Behind(site.folder / "store", "database_backups_x")
    behind.hidden = frozenset({child.id})
    site.store, whole = behind, site.store
    task = DeleteTask(task_id=str(uuid4()), backup_id=base.id)
    site.begin(task)
    site.start().perform(task, Stop())
    (final,) = site.finals(task)
    assert final.deleted == (child.id, base.id)
    assert held(whole) == ({}, {})
