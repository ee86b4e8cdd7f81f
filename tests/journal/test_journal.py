"""Tests of the journal's promises about crashes, repeats, order and bounds."""

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.errors import Internal, JournalError, JournalFull
from agent.journal import Acceptance, InterruptedTask, Journal
from agent.model import ErrorInfo, PingTask, Progress, Report, ReportDraft, Task, TaskStatus
from tests.journal.looks import unsent

INSTANCE = str(uuid4())
RUN = str(uuid4())


def ping() -> PingTask:
    return PingTask(task_id=str(uuid4()))


def draft(task: Task, status: TaskStatus, raw_bytes: int | None = None) -> ReportDraft:
    progress = None
    if raw_bytes is not None:
        progress = Progress(raw_bytes=raw_bytes, stored_bytes=0, bytes_per_second=1.0)
    return ReportDraft(task_id=task.task_id, type=task.type, status=status, progress=progress)


def accept(journal: Journal, task: Task) -> Acceptance:
    return journal.accept(task, draft(task, TaskStatus.ACCEPTED))


def drain(journal: Journal) -> list[Report]:
    """Take all reports out of the outbox and return them in order."""
    reports = []
    while report := journal.next_report():
        reports.append(report)
        journal.sent(report.seq)
    assert unsent(journal) == 0
    return reports


def test_an_error_with_half_characters_is_reported(journal: Journal) -> None:
    """One name is not UTF-8 and holds a surrogate escape of Python.

    The other name, of a table, comes from the server with half a character.
    """
    task, name = ping(), os.fsdecode(b"caf\xe9")
    accept(journal, task)
    info = ErrorInfo(code="internal", message=f"{name} is no schema", hint="rename \ud800")
    assert ErrorInfo.of(Internal(info.message, hint=info.hint)) == info
    failed = draft(task, TaskStatus.FAILED).model_copy(update={"error": info})
    journal.report(failed)
    assert drain(journal)[-1].error == info
    assert (info.message, info.hint) == (r"caf\udce9 is no schema", r"rename \ud800")


def damage(journal: Journal, task: Task, place: str, body: bytes) -> None:
    """Write `body` over a report of a task. `place` names the table and the column."""
    with journal._file.transaction() as db:
        db.execute(f"UPDATE {place} = ? WHERE task_id = ?", (body, task.task_id))


def test_a_damaged_report_is_sent_from_its_copy(journal: Journal) -> None:
    task = ping()
    accept(journal, task)
    journal.report(draft(task, TaskStatus.DONE))
    damage(journal, task, "outbox SET body", b"{}")
    assert [one.status for one in drain(journal)] == [TaskStatus.DONE]


def test_a_known_task_whose_report_is_damaged_is_still_known(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    task = ping()
    accept(journal, task)
    journal.report(draft(task, TaskStatus.DONE))
    drain(journal)
    damage(journal, task, "tasks SET last_report", b"{}")
    assert accept(journal, task) is Acceptance.KNOWN
    assert drain(journal) == []
    assert "is damaged, and is not sent again" in caplog.text


def test_a_damaged_report_keeps_none_back(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = [ping() for _ in range(4)]
    for task in tasks:
        accept(journal, task)
    for number, body in ((0, b'{"secret": "s3cret"}'), (2, b"\xff")):
        damage(journal, tasks[number], "outbox SET body", body)
        damage(journal, tasks[number], "tasks SET last_report", body)
    item = journal.next_report()
    assert item is not None
    assert item.task_id == tasks[1].task_id
    assert [one.task_id for one in journal.take_reports()] == [tasks[1].task_id, tasks[3].task_id]
    assert journal.next_report() is None
    assert [one.message.partition(" of ")[2] for one in caplog.records] == [
        f"task {one.task_id} in the journal is damaged, and is not sent"
        for one in (tasks[0], tasks[2])
    ]
    assert "s3cret" not in caplog.text


class Clock:
    """A clock of Unix seconds that a test sets."""

    def __init__(self, now: float):
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    journal = Journal(path, INSTANCE, RUN)
    yield journal
    journal.close()


def test_the_file_is_private(path: Path, journal: Journal) -> None:
    accept(journal, ping())
    assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_every_commit_is_synced(path: Path) -> None:
    source = (
        "import sys; from pathlib import Path; from agent.journal import Journal\n"
        f"journal = Journal(Path({str(path)!r}), {INSTANCE!r}, {RUN!r})\n"
        "with journal._file.transaction() as db:\n"
        "    print(*[db.execute(f'PRAGMA {p}').fetchone()[0]"
        " for p in ('journal_mode', 'synchronous')])\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True, timeout=60
    )
    assert shown.stdout.split() == ["wal", "2"]  # 2 is FULL


def test_a_task_and_its_report_are_stored_together(journal: Journal) -> None:
    task = ping()
    assert accept(journal, task) is Acceptance.NEW
    assert journal.status(task.task_id) is TaskStatus.ACCEPTED
    (report,) = drain(journal)
    assert (report.task_id, report.status) == (task.task_id, TaskStatus.ACCEPTED)
    assert (report.instance_id, report.agent_run_id) == (INSTANCE, RUN)
    assert report.at.endswith("Z")


def test_a_refused_task_leaves_no_report(path: Path) -> None:
    journal = Journal(path, INSTANCE, RUN, max_tasks=2)
    first = ping()
    accept(journal, first)
    accept(journal, ping())
    drain(journal)
    refused = ping()
    with pytest.raises(JournalFull, match="2 tasks are unfinished"):
        accept(journal, refused)
    assert journal.status(refused.task_id) is None
    assert unsent(journal) == 0
    assert accept(journal, first) is Acceptance.KNOWN
    journal.claim()
    journal.report(draft(first, TaskStatus.DONE))
    assert accept(journal, refused) is Acceptance.NEW
    journal.close()


def test_a_task_whose_acknowledgement_was_lost_is_not_answered_again(journal: Journal) -> None:
    task = ping()
    accept(journal, task)
    journal.claim()
    journal.report(draft(task, TaskStatus.DONE))
    drain(journal)
    again = journal.accept(task, draft(task, TaskStatus.ACCEPTED), answer=False)
    assert again is Acceptance.KNOWN
    assert drain(journal) == []
    lost = ping()
    assert journal.accept(lost, draft(lost, TaskStatus.ACCEPTED), answer=False) is Acceptance.NEW
    assert [report.task_id for report in drain(journal)] == [lost.task_id]


def test_a_repeated_task_is_answered_with_its_latest_report(journal: Journal) -> None:
    task = ping()
    accept(journal, task)
    journal.claim()
    error = ErrorInfo(code="interrupted", message="m", hint="h")
    failed = ReportDraft(
        task_id=task.task_id, type=task.type, status=TaskStatus.FAILED, error=error
    )
    journal.report(failed)
    last = drain(journal)[-1]
    assert accept(journal, task) is Acceptance.KNOWN
    (again,) = drain(journal)
    assert again.seq > last.seq
    assert again.model_copy(update={"seq": last.seq, "at": last.at}) == last
    assert journal.claim() is None
    assert journal.status(task.task_id) is TaskStatus.FAILED


def test_repeats_do_not_pile_up_unsent(journal: Journal) -> None:
    task = ping()
    for _ in range(5):
        accept(journal, task)
    assert unsent(journal) == 1
    drain(journal)
    for _ in range(5):
        accept(journal, task)
    assert unsent(journal) == 1


def test_tasks_are_claimed_oldest_first_once_each(path: Path, journal: Journal) -> None:
    tasks = [ping() for _ in range(5)]
    for task in tasks:
        accept(journal, task)
    assert journal.claim() == tasks[0]
    journal.close()
    again = Journal(path, INSTANCE, str(uuid4()))
    assert again.running() == [InterruptedTask(tasks[0], "", 1)]
    assert [again.claim() for _ in range(5)] == [*tasks[1:], None]
    assert again.running() == [InterruptedTask(task, "", 1) for task in tasks]
    assert [report.task_id for report in drain(again)] == [task.task_id for task in tasks]
    again.close()


def test_a_task_may_be_stored_ended(journal: Journal) -> None:
    task = ping()
    journal.accept(task, draft(task, TaskStatus.DONE))
    assert journal.claim() is None
    assert journal.unfinished() == 0
    assert accept(journal, task) is Acceptance.KNOWN
    assert [report.status for report in drain(journal)] == [TaskStatus.DONE]


def test_unsent_progress_is_replaced_and_steps_are_not(journal: Journal) -> None:
    one, two = ping(), ping()
    for task in (one, two):
        accept(journal, task)
        journal.claim()
        journal.report(draft(task, TaskStatus.RUNNING))
    for count in range(10):
        journal.report(draft(one, TaskStatus.RUNNING, raw_bytes=count))
    journal.report(draft(two, TaskStatus.RUNNING, raw_bytes=77))
    journal.report(draft(two, TaskStatus.DONE))
    said = [
        (report.task_id, report.status, report.progress.raw_bytes if report.progress else None)
        for report in drain(journal)
    ]
    assert said == [
        (one.task_id, TaskStatus.ACCEPTED, None),
        (one.task_id, TaskStatus.RUNNING, None),
        (two.task_id, TaskStatus.ACCEPTED, None),
        (two.task_id, TaskStatus.RUNNING, None),
        (one.task_id, TaskStatus.RUNNING, 9),
        (two.task_id, TaskStatus.DONE, None),
    ]


def test_whoever_shows_a_tasks_reports_takes_them_alone(journal: Journal) -> None:
    shown, other = ping(), ping()
    for task in (shown, other):
        accept(journal, task)
        journal.report(draft(task, TaskStatus.RUNNING))
    journal.report(draft(shown, TaskStatus.RUNNING, raw_bytes=7))
    taken = journal.take_reports(shown.task_id)
    assert [report.status for report in taken] == [
        TaskStatus.ACCEPTED,
        TaskStatus.RUNNING,
        TaskStatus.RUNNING,
    ]
    assert taken[-1].progress is not None
    assert taken[-1].progress.raw_bytes == 7
    assert journal.take_reports(shown.task_id) == []
    assert [report.task_id for report in journal.take_reports()] == [other.task_id] * 2
    assert unsent(journal) == 0
    assert journal.status(shown.task_id) is TaskStatus.RUNNING


def test_nothing_is_said_about_a_task_after_its_end(journal: Journal) -> None:
    task = ping()
    accept(journal, task)
    journal.claim()
    journal.report(draft(task, TaskStatus.CANCELLED))
    drain(journal)
    journal.report(draft(task, TaskStatus.RUNNING, raw_bytes=5))
    journal.report(draft(task, TaskStatus.DONE))
    assert drain(journal) == []
    assert journal.status(task.task_id) is TaskStatus.CANCELLED


def test_a_report_about_no_task_is_a_defect(journal: Journal) -> None:
    with pytest.raises(Internal):
        journal.report(draft(ping(), TaskStatus.DONE))
    assert unsent(journal) == 0


def test_a_refusal_under_a_known_id_says_how_that_task_is(journal: Journal) -> None:
    task = ping()
    accept(journal, task)
    drain(journal)
    journal.refuse(draft(task, TaskStatus.FAILED))
    assert journal.status(task.task_id) is TaskStatus.ACCEPTED
    assert [report.status for report in drain(journal)] == [TaskStatus.ACCEPTED]


def test_a_full_outbox_gives_up_progress_then_steps_but_never_an_end(path: Path) -> None:
    journal = Journal(path, INSTANCE, RUN, max_outbox=4)
    tasks = [ping() for _ in range(4)]
    for task in tasks:
        accept(journal, task)
        journal.claim()
    with pytest.raises(JournalFull):
        accept(journal, ping())
    with pytest.raises(JournalFull):
        journal.refuse(draft(ping(), TaskStatus.FAILED))
    journal.report(draft(tasks[0], TaskStatus.RUNNING, raw_bytes=1))
    assert unsent(journal) == 4
    for task in tasks:
        journal.report(draft(task, TaskStatus.DONE))
    assert [report.status for report in drain(journal)] == [TaskStatus.DONE] * 4
    journal.close()


def test_an_outbox_that_gives_up_reports_says_so_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(path, INSTANCE, RUN, max_outbox=2)
    for times in (1, 2):
        task = ping()
        accept(journal, task)
        for _ in range(4):
            journal.report(draft(task, TaskStatus.RUNNING))
        assert unsent(journal) == 2
        with pytest.raises(JournalFull, match="the journal is full: 2 reports wait"):
            accept(journal, ping())
        said = caplog.text.count("2 reports wait for the broker: until it takes some, only")
        assert said == times
        drain(journal)
    journal.close()


def test_ends_are_kept_beyond_the_limit_and_in_order(path: Path) -> None:
    journal = Journal(path, INSTANCE, RUN, max_outbox=2)
    tasks = [ping() for _ in range(5)]
    for task in tasks:
        accept(journal, task)
        drain(journal)
    for task in tasks:
        journal.report(draft(task, TaskStatus.DONE))
    reports = drain(journal)
    assert [report.task_id for report in reports] == [task.task_id for task in tasks]
    assert [report.seq for report in reports] == sorted({report.seq for report in reports})
    journal.close()


def test_numbers_grow_whatever_the_clock_and_the_file_do(path: Path) -> None:
    clock = Clock(1_700_000_000.0)
    seqs: list[int] = []
    for now in (1_700_000_000.0, 1_600_000_000.0, 1_600_000_000.0, 1_700_000_100.5):
        clock.now = now
        journal = Journal(path, INSTANCE, str(uuid4()), clock=clock)
        accept(journal, ping())
        accept(journal, ping())
        seqs += [report.seq for report in drain(journal)]
        journal.close()
    assert seqs == sorted(set(seqs))
    assert seqs[0] == 1_700_000_000_000
    assert seqs[-2] == 1_700_000_100_500
    for file in path.parent.iterdir():
        file.unlink()
    clock.now += 1
    journal = Journal(path, INSTANCE, RUN, clock=clock)
    accept(journal, ping())
    (report,) = drain(journal)
    assert report.seq > seqs[-1]
    assert report.at == "2023-11-14T22:15:01Z"
    journal.close()


def test_ended_tasks_are_forgotten_oldest_first(path: Path) -> None:
    journal = Journal(path, INSTANCE, RUN, keep_ended=3)
    waiting = ping()
    accept(journal, waiting)
    tasks = [ping() for _ in range(6)]
    for task in tasks:
        journal.accept(task, draft(task, TaskStatus.DONE))
    known = [task for task in tasks if journal.status(task.task_id)]
    assert known == tasks[3:]
    assert journal.status(waiting.task_id) is TaskStatus.ACCEPTED
    assert unsent(journal) == 7
    journal.close()


def test_the_finished_record_is_kept_to_the_byte_until_the_end(
    path: Path, journal: Journal
) -> None:
    task = ping()
    accept(journal, task)
    journal.claim()
    assert journal.kept_note(task.task_id) is None
    journal.keep_note(task.task_id, '{"a":  "é"}')
    journal.report(draft(task, TaskStatus.RUNNING))
    journal.close()
    again = Journal(path, INSTANCE, RUN)
    assert again.kept_note(task.task_id) == '{"a":  "é"}'
    again.report(draft(task, TaskStatus.DONE))
    assert again.kept_note(task.task_id) is None
    again.close()


def test_an_lsn_that_went_back_starts_a_generation(path: Path, journal: Journal) -> None:
    assert [journal.observe_lsn("a", lsn) for lsn in (100, 100, 200)] == ["", "", ""]
    first = journal.observe_lsn("a", 199)
    assert len(first) == 16
    assert journal.observe_lsn("a", 200) == first
    assert journal.observe_lsn("b", 1) == ""
    journal.close()
    again = Journal(path, INSTANCE, RUN)
    assert again.observe_lsn("a", 300) == first
    second = again.observe_lsn("a", 250)
    assert second not in ("", first)
    again.close()


def test_only_the_lineages_seen_last_are_remembered(journal: Journal) -> None:
    for number in range(100):
        journal.observe_lsn("in use", 1000 + number)
        journal.observe_lsn(f"old {number}", 1000)
    assert journal.observe_lsn("old 0", 1) == ""
    assert journal.observe_lsn("in use", 1) != ""


def _foreign(path: Path) -> None:
    path.write_bytes(b"this is no database at all, whatever its name says" * 100)


def _torn(path: Path) -> None:
    """Cut off the second half of the file, as a disk error may."""
    journal = Journal(path, INSTANCE, RUN)
    for _ in range(200):
        accept(journal, ping())
    journal.close()
    os.truncate(path, path.stat().st_size // 2)


def _flipped(path: Path) -> None:
    journal = Journal(path, INSTANCE, RUN)
    for _ in range(200):
        accept(journal, ping())
    journal.close()
    pages = bytearray(path.read_bytes())
    pages[4096 * 2 : 4096 * 8] = b"\xa5" * (4096 * 6)
    path.write_bytes(pages)


def _later(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()


def test_tasks_of_a_store_that_was_typed_are_for_runs_with_that_store(tmp_path: Path) -> None:
    path, daemons, typed = tmp_path / "journal", ping(), ping()

    def running(store: str, task: Task | None = None, *, named: bool) -> list[Task]:
        journal = Journal(path, INSTANCE, RUN, store=store, store_override=named)
        if task:
            journal.accept(task, draft(task, TaskStatus.RUNNING))
        found = [one.task for one in journal.running()]
        journal.close()
        return found

    assert running("a", daemons, named=False) == [daemons]
    assert running("b", typed, named=True) == [typed]
    assert running("c", named=True) == []
    assert running("a", named=True) == []
    assert running("c", named=False) == [daemons]
    assert running("b", named=False) == [daemons, typed]


def _a_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_foreign, "is damaged: file is not a database"),
        (_torn, "is damaged"),
        (_flipped, "is damaged"),
        (_later, "is of version 99"),
        (_a_folder, "can't be used"),
    ],
)
def test_a_file_that_is_no_journal_is_told_clearly(
    path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    path.parent.mkdir()
    spoil(path)
    with pytest.raises(JournalError, match=says) as caught:
        Journal(path, INSTANCE, RUN)
    assert str(path) in str(caught.value)
    assert caught.value.hint


def test_a_full_disk_is_told_and_loses_nothing(path: Path, journal: Journal) -> None:
    kept = ping()
    accept(journal, kept)
    with journal._file.transaction() as db:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages}")

    def fill() -> None:
        for _ in range(1000):
            accept(journal, ping())

    with pytest.raises(JournalError, match="no space is left"):
        fill()
    unfinished = journal.unfinished()
    assert unfinished == unsent(journal)
    assert accept(journal, kept) is Acceptance.KNOWN


def test_a_failure_half_way_undoes_the_whole_call(journal: Journal) -> None:
    kept, refused = ping(), ping()
    accept(journal, kept)
    assert journal.claim() == kept
    drain(journal)
    with journal._file.transaction() as db:
        db.execute(
            "CREATE TRIGGER broken BEFORE INSERT ON outbox BEGIN SELECT RAISE(ABORT, 'broken'); END"
        )
    with pytest.raises(JournalError, match="can't be used: broken"):
        accept(journal, refused)
    with pytest.raises(JournalError, match="can't be used: broken"):
        journal.report(draft(kept, TaskStatus.DONE))
    assert journal.status(refused.task_id) is None
    assert journal.running() == [InterruptedTask(kept, "", 1)]
    with journal._file.transaction() as db:
        db.execute("DROP TRIGGER broken")
    journal.report(draft(kept, TaskStatus.DONE))
    assert [report.status for report in drain(journal)] == [TaskStatus.DONE]


def test_a_link_in_its_place_is_not_followed(path: Path, tmp_path: Path) -> None:
    """The directory's owner must not be able to make root write to or chmod a file elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("x")
    elsewhere.chmod(0o644)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(elsewhere)
    with pytest.raises(JournalError):
        Journal(path, INSTANCE, RUN)
    assert elsewhere.stat().st_mode & 0o777 == 0o644


def test_a_readable_file_is_made_private(path: Path) -> None:
    Journal(path, INSTANCE, RUN).close()
    path.chmod(0o644)
    Journal(path, INSTANCE, RUN).close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_threads_share_it(journal: Journal) -> None:
    tasks = [ping() for _ in range(40)]
    claimed: list[Task] = []

    def work(part: list[PingTask]) -> None:
        for task in part:
            accept(journal, task)
            mine = journal.claim()
            assert mine is not None  # pytest fails on an exception in a thread.
            claimed.append(mine)
            journal.report(draft(mine, TaskStatus.DONE))

    threads = [threading.Thread(target=work, args=(tasks[n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(task.task_id for task in claimed) == sorted(task.task_id for task in tasks)
    seqs = [report.seq for report in drain(journal)]
    assert len(seqs) == 80
    assert seqs == sorted(set(seqs))


_CHILD = """
import sys
from pathlib import Path
from uuid import uuid4
from agent.journal import Journal
from agent.model import PingTask, ReportDraft, TaskStatus

def draft(task, status):
    return ReportDraft(task_id=task.task_id, type=task.type, status=status)

journal = Journal(Path(sys.argv[1]), sys.argv[2], str(uuid4()), max_tasks=100000)
while True:
    task = PingTask(task_id=str(uuid4()))
    journal.accept(task, draft(task, TaskStatus.ACCEPTED))
    print("ACCEPTED", task.task_id, flush=True)
    mine = journal.claim()
    print("RUNNING", mine.task_id, flush=True)
    journal.report(draft(mine, TaskStatus.DONE))
    print("DONE", mine.task_id, flush=True)
"""


def _killed_amid_work(path: Path, lines: int) -> dict[str, TaskStatus]:
    """Run a child that prints each commit, and kill it after `lines` lines.

    Return the last printed status of each task.
    """
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(path), INSTANCE], stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        said = [child.stdout.readline() for _ in range(lines)]
        child.send_signal(signal.SIGKILL)
        said += child.stdout.read().splitlines()
    whole = [line.split() for line in said if len(line.split()) == 2]
    return {task_id: TaskStatus(word) for word, task_id in whole if len(task_id) == 36}


def test_a_killed_agent_loses_nothing_it_committed(path: Path) -> None:
    said: dict[str, TaskStatus] = {}
    for lines in (50, 101, 77):
        said |= _killed_amid_work(path, lines)
        journal = Journal(path, INSTANCE, RUN, max_tasks=100_000)
        for one in journal.running():
            journal.report(draft(one.task, TaskStatus.FAILED))
            said[one.task.task_id] = TaskStatus.FAILED
        while task_left := journal.claim():
            journal.report(draft(task_left, TaskStatus.CANCELLED))
            said[task_left.task_id] = TaskStatus.CANCELLED
        journal.close()
    journal = Journal(path, INSTANCE, RUN)
    stored = {task_id: journal.status(task_id) for task_id in said}
    told: dict[str, list[TaskStatus]] = {}
    reports = drain(journal)
    for report in reports:
        told.setdefault(report.task_id, []).append(report.status)
    journal.close()
    assert [report.seq for report in reports] == sorted({report.seq for report in reports})
    for task_id, status in said.items():
        # The last printed status may be one step behind the last committed one.
        assert stored[task_id] in ({status} if status.final else {status, TaskStatus.DONE})
        assert told[task_id] == [TaskStatus.ACCEPTED, stored[task_id]]
    assert all(statuses[-1].final for statuses in told.values())


class JournalMachine(RuleBasedStateMachine):
    """A state machine that compares the journal with a model in plain Python.

    It makes calls and reopens the journal in any order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp(prefix="journal-machine-")) / "journal.sqlite"
        self.journal = Journal(self.path, INSTANCE, RUN, max_tasks=5)
        self.statuses: dict[str, TaskStatus] = {}
        self.tasks: list[PingTask] = []
        self.last_seq = 0

    def teardown(self) -> None:
        self.journal.close()
        for file in self.path.parent.iterdir():
            file.unlink()
        self.path.parent.rmdir()

    def unfinished(self) -> int:
        return sum(not status.final for status in self.statuses.values())

    @rule()
    def offer_a_task(self) -> None:
        task = ping()
        if self.unfinished() < 5:
            assert accept(self.journal, task) is Acceptance.NEW
            self.tasks.append(task)
            self.statuses[task.task_id] = TaskStatus.ACCEPTED
        else:
            with pytest.raises(JournalFull):
                accept(self.journal, task)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def offer_it_again(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(self.tasks))
        assert accept(self.journal, task) is Acceptance.KNOWN

    @rule()
    def claim(self) -> None:
        waiting = [t for t in self.tasks if self.statuses[t.task_id] is TaskStatus.ACCEPTED]
        assert self.journal.claim() == (waiting[0] if waiting else None)
        if waiting:
            self.statuses[waiting[0].task_id] = TaskStatus.RUNNING

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), status=st.sampled_from([TaskStatus.RUNNING, TaskStatus.DONE]))
    def report(self, data: st.DataObject, status: TaskStatus) -> None:
        task = data.draw(st.sampled_from(self.tasks))
        before = self.statuses[task.task_id]
        size = unsent(self.journal)
        self.journal.report(draft(task, status, raw_bytes=None if status.final else 1))
        if before.final:
            assert unsent(self.journal) == size
        else:
            self.statuses[task.task_id] = status

    @rule()
    def send_one(self) -> None:
        item = self.journal.next_report()
        if item:
            assert item.seq > self.last_seq
            self.last_seq = item.seq
            self.journal.sent(item.seq)

    @rule()
    def reopen(self) -> None:
        self.journal.close()
        self.journal = Journal(self.path, INSTANCE, RUN, max_tasks=5)

    @invariant()
    def statuses_agree(self) -> None:
        assert self.journal.unfinished() == self.unfinished()
        for task in self.tasks[-3:]:
            assert self.journal.status(task.task_id) is self.statuses[task.task_id]


JournalMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestJournalMachine = JournalMachine.TestCase
