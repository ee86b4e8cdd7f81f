"""The values of the metrics come from the journal and the stages."""

import os
import time
from pathlib import Path
from threading import Event, Thread
from uuid import uuid4

import pytest

from agent.errors import JournalError
from agent.journal import Journal
from agent.metrics.export import exported
from agent.metrics.families import Source, exposition
from agent.metrics.textfile import Textfile, write
from agent.model import (
    STAGES,
    TASK_TYPES,
    ErrorInfo,
    PingTask,
    ReportDraft,
    StageTotal,
    TaskStatus,
    VerifyTask,
)
from tests.metrics.prometheus import promtool
from tests.metrics.samples import samples
from tests.stack.process import poll

_IDS = (str(uuid4()), str(uuid4()))


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal", *_IDS)


def source(tmp_path: Path) -> Source:
    return Source(tmp_path / "journal", lambda: True, 1_800_000_000.5)


def end(journal: Journal, task: PingTask | VerifyTask, code: str) -> None:
    error = ErrorInfo(code=code, message="m", hint="h") if code else None
    status = TaskStatus.FAILED if code else TaskStatus.DONE
    draft = ReportDraft(task_id=task.task_id, type=task.type, status=status, error=error)
    journal.accept(task, draft)


def test_an_agent_that_has_done_nothing(journal: Journal, tmp_path: Path) -> None:
    text = exposition(source(tmp_path)).decode()
    found = samples(text)
    assert found["backup_agent_last_success_timestamp_seconds"] == 0
    assert found["backup_agent_start_timestamp_seconds"] == 1_800_000_000.5
    assert 0 <= time.time() - found["backup_agent_written_timestamp_seconds"] < 10
    for kind in TASK_TYPES:
        for status in ("DONE", "FAILED", "CANCELLED"):
            name = "backup_agent_task_last_end_timestamp_seconds"
            assert found[f'{name}{{status="{status}",type="{kind}"}}'] == 0
    for stage in STAGES:
        assert found[f'backup_agent_stage_bytes_total{{stage="{stage}"}}'] == 0
    checked = promtool("check", "metrics", text=text)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_the_work_of_the_stages(journal: Journal, tmp_path: Path) -> None:
    journal.add_stages({stage: StageTotal(0.25, n) for n, stage in enumerate(STAGES)})
    journal.add_stages({"attic": StageTotal(9, 9)})  # a stage of another version
    found = samples(exposition(source(tmp_path)).decode())
    for number, stage in enumerate(STAGES):
        assert found[f'backup_agent_stage_bytes_total{{stage="{stage}"}}'] == number
        assert found[f'backup_agent_stage_seconds_total{{stage="{stage}"}}'] == 0.25
    assert not any("attic" in name for name in found)


def test_verifications_are_shown_as_soon_as_there_are_any(journal: Journal, tmp_path: Path) -> None:
    good, bad = (VerifyTask(task_id=str(uuid4()), backup_id=str(uuid4())) for _ in range(2))
    end(journal, good, "")
    end(journal, bad, "data_damaged")
    found = samples(exposition(source(tmp_path)).decode())
    total = "backup_agent_task_total"
    assert found[f'{total}{{code="",status="DONE",type="backup.verify"}}'] == 1
    assert found[f'{total}{{code="data_damaged",status="FAILED",type="backup.verify"}}'] == 1
    assert found["backup_agent_last_verify_timestamp_seconds"] > 1_700_000_000
    assert found["backup_agent_last_success_timestamp_seconds"] == 0


def test_an_agent_without_a_broker_says_nothing_about_one(journal: Journal, tmp_path: Path) -> None:
    alone = source(tmp_path)._replace(consuming=None)
    assert "backup_agent_consuming" not in samples(exposition(alone).decode())


@pytest.mark.parametrize(("ahead", "shown"), [(86_400, 0), (300, 1)])
def test_a_time_in_the_future_does_not_silence_an_alert(
    tmp_path: Path, ahead: int, shown: int
) -> None:
    """`shown` is 0 for no time, and 1 for the present."""
    began = int(time.time())
    journal = Journal(tmp_path / "journal", *_IDS, clock=lambda: time.time() + ahead)
    end(journal, VerifyTask(task_id=str(uuid4()), backup_id=str(uuid4())), "")
    found = samples(exposition(source(tmp_path)).decode())
    journal.close()
    last = "backup_agent_task_last_end_timestamp_seconds"
    for name in (
        "backup_agent_last_verify_timestamp_seconds",
        f'{last}{{status="DONE",type="backup.verify"}}',
        "backup_agent_outbox_oldest_report_timestamp_seconds",
    ):
        assert shown * began <= found[name] <= shown * time.time(), name


def test_without_a_journal_there_are_no_values(tmp_path: Path) -> None:
    with pytest.raises(JournalError):
        exposition(source(tmp_path))


def test_the_file_that_is_left_says_that_no_task_is_taken(journal: Journal, tmp_path: Path) -> None:
    """This holds even if the link to the broker did not end in time."""
    path = tmp_path / "a.prom"
    with exported(source(tmp_path), None, path):
        poll("the file is written", path.exists, 10)
        assert samples(path.read_text())["backup_agent_consuming"] == 1
    assert samples(path.read_text())["backup_agent_consuming"] == 0


def test_the_end_during_a_write_is_written(tmp_path: Path) -> None:
    path, value, reads = tmp_path / "a.prom", ["b 1\n"], [Event(), Event()]

    def text() -> bytes:
        content = value[0]
        reads[0].set()
        assert reads[1].wait(10)
        return content.encode()

    file = Textfile(path, text)
    assert reads[0].wait(10)
    value[0] = "b 0\n"
    closer = Thread(target=file.close)
    closer.start()
    poll("it is about to end", lambda: file._ending, 10)
    reads[1].set()
    closer.join(10)
    assert path.read_text() == "b 0\n"


def test_the_file_is_readable_for_others_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write(tmp_path / "a.prom", lambda: b"a 1\n")
    finally:
        os.umask(before)
    assert (tmp_path / "a.prom").stat().st_mode & 0o777 == 0o644


def test_a_file_that_cannot_be_written_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    path, texts = folder / "a.prom", iter(range(100))
    file = Textfile(path, lambda: f"a {next(texts)}\n".encode())
    poll("the file is written", path.exists, 10)
    assert path.read_text() == "a 0\n"
    path.unlink()
    folder.rmdir()

    def woken() -> bool:
        file.wake()
        return next(texts) > 10

    poll("it has failed several times", woken, 10)
    folder.mkdir()
    file.close()
    assert path.exists()
    errors = [one for one in caplog.records if one.levelname == "ERROR"]
    assert len(errors) == 1
    assert f"can't write {path}" in errors[0].message
    assert "ReadWritePaths=" in errors[0].message
