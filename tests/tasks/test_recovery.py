"""Tests of how interrupted tasks are settled, by their state in the journal and the store."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import cast
from uuid import uuid4

import pytest

from agent.database.server import Database
from agent.engine.choice import Engines
from agent.errors import Interrupted, JournalError, StoreFull, StoreNotFound
from agent.journal import InterruptedTask, Journal
from agent.model import (
    BackupRequest,
    BackupStatus,
    CancelTask,
    CreateTask,
    DeleteTask,
    ErrorInfo,
    PingTask,
    Record,
    Report,
    ReportDraft,
    RestoreTask,
    Task,
    TaskStatus,
)
from agent.operations.resources import BackupResources, PathSettings
from agent.operations.restore.target import RestoreWorkdir
from agent.records.catalogue import Catalogue
from agent.store.directory.store import DirectoryStore
from agent.store.policy import StorageRules
from agent.store.protocol import Container
from agent.tasks.executor import Executor
from agent.tasks.recovery import MOST_RUNS
from agent.tasks.stores import TaskStores
from tests.journal.test_upgrades import golden
from tests.operations.stored import held, place
from tests.records.made import INSTANCE, completed, keyring, record

CHECKPOINTS = "backup_type = full-prepared\nfrom_lsn = 0\nto_lsn = 100\nlast_lsn = 100\n"


class Site:
    """An agent's journal, store and restore root. Each `start` stands for one process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.root.mkdir()
        self.store = DirectoryStore(folder / "store", "database_backups_x")
        self.store.open()
        self.keys = keyring()
        self.journal = self._journal()

    def close(self) -> None:
        self.journal.close()

    def _journal(self) -> Journal:
        return Journal(self.folder / "journal", INSTANCE, str(uuid4()))

    def start(self) -> Executor:
        """Reopen the journal and return an executor, as a new process would."""
        self.journal.close()
        self.journal = self._journal()
        parts = BackupResources(
            store=self.store,
            catalogue=Catalogue(self.store, self.keys),
            keyring=self.keys,
            engines=Engines({}),
            path=PathSettings(
                memory_bytes=64 << 20, segment_bytes=1 << 20, connections=2, cores=1, level=1
            ),
            prepare_memory_bytes=16 << 20,
            instance_id=INSTANCE,
            database=cast(Database, None),
            scratch=self.folder / "scratch",
        )
        stores = TaskStores(parts, StorageRules(configured="x", own="x"), lambda _asked: parts)
        return Executor(
            self.journal,
            stores,
            restore_roots=[self.root],
            progress_seconds=60,
            wake=lambda: None,
        )

    def recover(self) -> None:
        self.start().recovery.run()

    def accept(self, task: Task, status: TaskStatus = TaskStatus.ACCEPTED) -> None:
        self.journal.accept(task, ReportDraft(task_id=task.task_id, type=task.type, status=status))

    def begin(self, task: Task, attempt: str = "") -> None:
        """Accept and claim a task, and journal the attempt that it makes."""
        self.accept(task)
        assert self.journal.claim() == task
        self.journal.keep_attempt(task.task_id, attempt)

    def finals(self, task: Task) -> list[Report]:
        return [report for report in self.journal.take_reports(task.task_id) if report.status.final]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with closing(Site(tmp_path)) as made:
        yield made


def create(backup_id: str, *, retry: bool = False) -> CreateTask:
    request = BackupRequest(id=backup_id, name="b")
    return CreateTask(task_id=str(uuid4()), backup=request, retry=retry)


def read(site: Site, backup_id: str) -> Record | None:
    return Catalogue(site.store, site.keys).read(backup_id)


def test_a_backup_that_was_being_made_is_failed_and_its_bytes_go(site: Site) -> None:
    building = record()
    place(site.store, site.keys, building)
    task = create(building.id)
    site.begin(task, building.attempt)
    site.recover()
    (final,) = site.finals(task)
    assert (final.status, final.error and final.error.code) == (TaskStatus.FAILED, "interrupted")
    assert held(site.store).segments == {}
    left = read(site, building.id)
    assert left is not None
    assert left.status is BackupStatus.FAILED


@pytest.mark.parametrize("version", [1, 2, 4, 5])
def test_tasks_in_a_journal_of_an_older_version_are_recovered(tmp_path: Path, version: int) -> None:
    """The backup was committed before the older agent ended, but its report was not written."""
    golden(tmp_path / "journal", version)
    with closing(Site(tmp_path)) as site:
        made = completed(
            id="00000004-0000-4000-8000-0000000000bb",
            attempt="c17461ab-6c97-8abf-8890-9f8b10886ecc",
        )
        place(site.store, site.keys, made)
        recovery = site.start().recovery
        recovery.run()
        continued = [(task.type, task.subject) for task in recovery.take_continued()]
        assert continued == [("backup.delete", "00000002-0000-4000-8000-0000000000bb")]
        finals = {
            one.task_id[:8]: one.status
            for one in site.journal.take_reports()
            if one.status.final and one.seq > 1_760_000_030_000
        }
        assert finals.pop("00000004") is TaskStatus.DONE
        # the journals of versions 1 and 2 hold no cancel
        assert finals == ({} if version < 3 else {"00000009": TaskStatus.FAILED})


@pytest.mark.parametrize("mine", ["", str(uuid4())], ids=["none", "other"])
def test_a_backup_of_another_attempt_is_not_this_tasks(site: Site, mine: str) -> None:
    there = completed()
    place(site.store, site.keys, there)
    before = held(site.store)
    task = create(there.id)
    site.begin(task, mine)
    site.recover()
    (final,) = site.finals(task)
    assert (final.status, final.error and final.error.code) == (TaskStatus.FAILED, "interrupted")
    assert held(site.store) == before


def test_what_is_left_of_an_attempt_that_lost_its_id_goes(site: Site) -> None:
    """The record was marked FAILED, and then another attempt took the id."""
    mine, there = record(), completed()
    mine = mine.model_copy(update={"id": there.id})
    place(site.store, site.keys, mine)
    place(site.store, site.keys, there)
    task = create(there.id)
    site.begin(task, mine.attempt)
    site.recover()
    assert all(
        name.startswith(f"{there.id}/{there.attempt}/") for name in held(site.store).segments
    )
    left = read(site, there.id)
    assert left is not None
    assert left.status is BackupStatus.COMPLETED


def test_one_look_that_finds_no_record_takes_no_finished_backup(site: Site) -> None:
    class Blind(DirectoryStore):
        def get(self, container: Container, name: str, limit: int) -> bytes:
            raise StoreNotFound(name)

    done = completed()
    place(site.store, site.keys, done)
    task, before, seeing = create(done.id), held(site.store), site.store
    site.begin(task, done.attempt)
    site.journal.keep_note(task.task_id, done.model_dump_json())
    site.store = Blind(site.folder / "store", "database_backups_x")
    site.recover()
    assert [final.status for final in site.finals(task)] == [TaskStatus.FAILED]
    assert held(seeing) == before


def test_two_tasks_with_one_backup_id_each_get_their_own_end(site: Site) -> None:
    there = completed()
    place(site.store, site.keys, there)
    whose, other = create(there.id), create(there.id)
    site.begin(whose, there.attempt)
    site.begin(other, str(uuid4()))
    site.recover()
    assert [final.status for final in site.finals(whose)] == [TaskStatus.DONE]
    assert [final.status for final in site.finals(other)] == [TaskStatus.FAILED]


def test_a_backup_that_asks_for_it_is_begun_again_in_its_place(site: Site) -> None:
    building = record()
    place(site.store, site.keys, building)
    task, later = create(building.id, retry=True), PingTask(task_id=str(uuid4()))
    site.begin(task, building.attempt)
    site.accept(later)
    site.recover()
    assert site.finals(task) == []
    assert held(site.store).segments == {}
    assert site.journal.claim() == task
    assert site.journal.running() == [InterruptedTask(task, "", 2)]


def test_a_crash_loop_ends(site: Site) -> None:
    backup_id = str(uuid4())
    task = create(backup_id, retry=True)
    site.accept(task)
    for _ in range(MOST_RUNS):
        assert site.finals(task) == []
        assert site.journal.claim() == task
        building = record(id=backup_id)
        place(site.store, site.keys, building)
        site.journal.keep_attempt(task.task_id, building.attempt)
        site.recover()
    (final,) = site.finals(task)
    assert final.status is TaskStatus.FAILED
    assert final.error is not None
    assert f"the agent ended in each of the task's {MOST_RUNS} runs" in final.error.message
    assert site.journal.claim() is None


def test_a_task_that_is_to_be_cancelled_is_not_begun_again(site: Site) -> None:
    building = record()
    place(site.store, site.keys, building)
    task = create(building.id, retry=True)
    site.begin(task, building.attempt)
    cancel = CancelTask(task_id=str(uuid4()), cancels=task.task_id)
    site.accept(cancel, TaskStatus.RUNNING)
    assert not site.journal.requeue(task.task_id, MOST_RUNS)
    site.recover()
    assert [final.status for final in site.finals(task)] == [TaskStatus.CANCELLED]
    assert [final.status for final in site.finals(cancel)] == [TaskStatus.DONE]
    left = read(site, building.id)
    assert left is not None
    assert left.status is BackupStatus.CANCELLED


def test_what_failed_before_the_crash_is_not_begun_again(site: Site) -> None:
    failed = record(status=BackupStatus.FAILED, error=ErrorInfo.of(StoreFull("no space")))
    place(site.store, site.keys, failed)
    task = create(failed.id, retry=True)
    site.begin(task, failed.attempt)
    site.recover()
    (final,) = site.finals(task)
    assert final.error is not None
    assert final.error.code == "store_full"


def test_a_commit_that_had_begun_is_never_begun_again(site: Site) -> None:
    """The write of its COMPLETED record may still be on its way to the store."""
    building = record()
    place(site.store, site.keys, building)
    task = create(building.id, retry=True)
    site.begin(task, building.attempt)
    finished = completed(id=building.id, attempt=building.attempt)
    site.journal.keep_note(task.task_id, finished.model_dump_json())
    site.recover()
    assert [final.status for final in site.finals(task)] == [TaskStatus.FAILED]
    assert held(site.store).segments


def test_a_task_that_the_agents_end_interrupts_is_put_back(site: Site) -> None:
    performer = site.start()
    task = create(str(uuid4()), retry=True)
    site.begin(task)
    assert performer.recovery.requeue(task, None)
    assert site.journal.claim() == task
    assert not performer.recovery.requeue(create(task.backup.id), None)


class Full(DirectoryStore):
    """A store that takes no record. `asked` counts the refused ones."""

    asked = 0

    def put(self, container: Container, name: str, parts: Sequence[memoryview]) -> str:
        self.asked += 1
        raise StoreFull(f"put {name}: no space is left")


@pytest.mark.parametrize("reported", [False, True])
def test_what_a_full_store_keeps_is_told_once_and_tried_again_ever_more_seldom(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reported: bool
) -> None:
    """This also holds after the journal has forgotten the task.

    The failure was reported by the recovery or, if `reported`, by the executor.
    """
    now = [1000.0]
    monkeypatch.setattr("agent.tasks.recovery.monotonic", lambda: now[0])
    building = record()
    place(site.store, site.keys, building)
    task, roomy = create(building.id), site.store
    site.begin(task, building.attempt)
    site.store = full = Full(site.folder / "store", "database_backups_x")
    recovery = site.start().recovery
    if reported:
        error = ErrorInfo.of(StoreFull("no space is left"))
        draft = ReportDraft(task_id=task.task_id, type=task.type, status=TaskStatus.FAILED)
        site.journal.report(draft.model_copy(update={"error": error}))
        recovery = site.start().recovery
        recovery.add(task, error, building.attempt, reported=True)
    recovery.run()
    assert [final.status for final in site.finals(task)] == [TaskStatus.FAILED]
    with site.journal._file.transaction() as db:
        db.execute("DELETE FROM tasks")
    tries = []
    for _ in range(2000):
        before = full.asked
        recovery.run()
        tries += [now[0]] if full.asked > before else []
        now[0] += 1.0
    pauses = [int(later - earlier) for earlier, later in pairwise([1000.0, *tries])]
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300, 300, 300, 300]
    assert site.finals(task) == []
    assert caplog.text.count("is not cleaned up") == 1
    monkeypatch.setattr(Full, "put", DirectoryStore.put)
    now[0] += 300.0
    recovery.run()
    left = read(site, building.id)
    assert left is not None
    assert left.status is BackupStatus.FAILED
    assert held(roomy).segments == {}


# --- restores ----------------------------------------------------------------------------


def restore(site: Site, *, retry: bool = False) -> tuple[RestoreTask, RestoreWorkdir]:
    """Return a restore that was interrupted half way, and its work directory.

    Others may have used its target directory since then.
    """
    target = site.root / "back"
    task = RestoreTask(
        task_id=str(uuid4()), backup_id=str(uuid4()), target=str(target), retry=retry
    )
    site.begin(task)
    work = RestoreWorkdir(target, task.task_id)
    work.make()
    (work.datadir / "shop").mkdir(parents=True)
    (work.datadir / "shop" / "orders.ibd").write_text("rows")
    (work.datadir / "xtrabackup_checkpoints").write_text(CHECKPOINTS)
    return task, work


def test_only_what_the_restore_made_is_removed(site: Site) -> None:
    task, work = restore(site)
    other = RestoreWorkdir(work.target, str(uuid4()))
    other.make()
    (work.target / "ibdata1").write_text("somebody's")
    site.recover()
    assert [final.status for final in site.finals(task)] == [TaskStatus.FAILED]
    assert sorted(work.target.iterdir()) == [other.folder, work.target / "ibdata1"]


def test_a_restore_that_asks_for_it_is_begun_again(site: Site) -> None:
    task, work = restore(site, retry=True)
    site.recover()
    assert site.finals(task) == []
    assert not work.folder.exists()
    assert site.journal.claim() == task


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_datadir_that_was_whole_is_moved_up(site: Site, moved: int) -> None:
    task, work = restore(site)
    of = completed(id=task.backup_id)
    site.journal.keep_note(task.task_id, of.model_dump_json())
    for entry in sorted(work.datadir.iterdir())[:moved]:
        entry.rename(work.target / entry.name)
    site.recover()
    (final,) = site.finals(task)
    assert final.status is TaskStatus.DONE
    assert final.backup == of.view()
    assert sorted(path.name for path in work.target.iterdir()) == ["shop", "xtrabackup_checkpoints"]
    assert (work.target / "shop" / "orders.ibd").read_text() == "rows"


def test_a_target_that_somebody_emptied_is_not_called_restored(site: Site) -> None:
    task, work = restore(site)
    site.journal.keep_note(task.task_id, completed().model_dump_json())
    work.remove()
    (work.target / "mine").write_text("somebody's")
    site.recover()
    assert [final.status for final in site.finals(task)] == [TaskStatus.FAILED]
    assert (work.target / "mine").read_text() == "somebody's"


def test_a_target_that_leads_elsewhere_now_is_not_touched(site: Site, tmp_path: Path) -> None:
    task, work = restore(site)
    elsewhere = tmp_path / "elsewhere"
    work.target.rename(elsewhere)
    work.target.symlink_to(elsewhere)
    site.recover()
    assert [final.status for final in site.finals(task)] == [TaskStatus.FAILED]
    assert (elsewhere / work.folder.name / "datadir" / "shop").exists()


# --- the journal -------------------------------------------------------------------------


def broken(journal: Journal) -> Callable[[], None]:
    """Make the journal refuse all reports. Return the function that repairs it."""
    with journal._file.transaction() as db:
        db.execute(
            "CREATE TRIGGER full BEFORE INSERT ON outbox BEGIN SELECT RAISE(ABORT, 'full'); END"
        )

    def mend() -> None:
        with journal._file.transaction() as db:
            db.execute("DROP TRIGGER full")

    return mend


def test_what_the_journal_does_not_take_is_told_once_later(site: Site) -> None:
    tasks = [create(str(uuid4())) for _ in range(2)]
    for task in tasks:
        site.begin(task)
    performer = site.start()
    mend = broken(site.journal)
    for _ in range(2):
        with pytest.raises(JournalError):
            performer.recovery.run()
    mend()
    performer.recovery.run()
    performer.recovery.run()
    assert [len(site.finals(task)) for task in tasks] == [1, 1]


def test_deletes_that_were_not_reached_are_not_forgotten(site: Site) -> None:
    tasks = [DeleteTask(task_id=str(uuid4()), backup_id=str(uuid4())) for _ in range(3)]
    for task in tasks:
        site.begin(task)
    recovery = site.start().recovery
    assert next(iter(recovery.take_continued())) == tasks[0]
    again = list(recovery.take_continued())
    assert again == tasks[1:]
    recovery.add(again[0], ErrorInfo.of(Interrupted("once more")))
    assert list(recovery.take_continued()) == [again[0]]
