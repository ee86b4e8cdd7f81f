"""Tests of cancels of waiting and running tasks, and of the answers to them."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from agent.errors import Cancelled, Interrupted
from agent.journal import Journal
from agent.model import CancelTask, PingTask, Report, ReportDraft, Task, TaskStatus
from agent.stop import Stop
from agent.tasks.cancellation import Cancellation

S = TaskStatus


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.sqlite", str(uuid4()), str(uuid4()))
    yield journal
    journal.close()


@pytest.fixture
def cancellation(journal: Journal) -> Cancellation:
    return Cancellation(journal)


def ping() -> PingTask:
    return PingTask(task_id=str(uuid4()))


def cancel_of(task_id: str) -> CancelTask:
    return CancelTask(task_id=str(uuid4()), cancels=task_id)


def tell(journal: Journal, task: Task, status: TaskStatus) -> None:
    journal.report(ReportDraft(task_id=task.task_id, type=task.type, status=status))


def accept(journal: Journal, task: Task) -> None:
    journal.accept(task, ReportDraft(task_id=task.task_id, type=task.type, status=S.ACCEPTED))


def running(journal: Journal) -> PingTask:
    task = ping()
    accept(journal, task)
    assert journal.claim() == task
    return task


def finals(journal: Journal) -> dict[str, Report]:
    """Take the reports from the outbox and return the final ones by task id.

    Check that no task has more than one.
    """
    told = [report for report in journal.take_reports() if report.status.final]
    assert len({report.task_id for report in told}) == len(told)
    return {report.task_id: report for report in told}


def code(report: Report) -> str:
    assert report.error is not None
    return report.error.code


def test_a_task_that_waits_ends_in_the_journal_and_is_never_claimed(
    journal: Journal, cancellation: Cancellation
) -> None:
    first, second = ping(), ping()
    cancel = cancel_of(first.task_id)
    for task in (first, second, cancel):
        accept(journal, task)
    cancellation.handle(cancel)
    told = finals(journal)
    assert (told[first.task_id].status, code(told[first.task_id])) == (S.CANCELLED, "cancelled")
    assert told[cancel.task_id].status is S.DONE
    assert journal.claim() == second
    assert journal.claim() is None


def test_a_task_that_is_unknown_here(journal: Journal, cancellation: Cancellation) -> None:
    cancel = cancel_of(str(uuid4()))
    accept(journal, cancel)
    cancellation.handle(cancel)
    told = finals(journal)[cancel.task_id]
    assert (told.status, code(told)) == (S.FAILED, "task_unknown")


@pytest.mark.parametrize(
    ("ended", "answer"), [(S.CANCELLED, S.DONE), (S.DONE, S.FAILED), (S.FAILED, S.FAILED)]
)
def test_a_task_that_has_ended(
    journal: Journal, cancellation: Cancellation, ended: TaskStatus, answer: TaskStatus
) -> None:
    task = running(journal)
    tell(journal, task, ended)
    cancel = cancel_of(task.task_id)
    accept(journal, cancel)
    cancellation.handle(cancel)
    told = finals(journal)[cancel.task_id]
    assert told.status is answer
    if answer is S.FAILED:
        assert code(told) == "too_late"
        assert told.error is not None
        assert f"it is {ended}" in told.error.message


@pytest.mark.parametrize(
    ("ended", "answer"), [(S.CANCELLED, S.DONE), (S.DONE, S.FAILED), (S.FAILED, S.FAILED)]
)
def test_the_end_of_the_running_task_answers_all_its_cancels_with_it(
    journal: Journal, cancellation: Cancellation, ended: TaskStatus, answer: TaskStatus
) -> None:
    task, stop = running(journal), Stop()
    cancels = [cancel_of(task.task_id) for _ in range(2)]
    with cancellation.registered(task, stop):
        for cancel in cancels:
            accept(journal, cancel)
            cancellation.handle(cancel)
        assert isinstance(stop.cause, Cancelled)
        assert finals(journal) == {}
        assert journal.cancels(task.task_id) == cancels
        # The worker must not claim a cancel, although it is ACCEPTED.
        assert journal.claim() is None
        tell(journal, task, ended)
    told = finals(journal)
    assert told.pop(task.task_id).status is ended
    assert {report.status for report in told.values()} == {answer}
    assert list(told) == [cancel.task_id for cancel in cancels]
    assert journal.cancels() == []


def test_past_the_point_of_no_return_it_is_too_late_at_once(
    journal: Journal, cancellation: Cancellation
) -> None:
    task, stop, cancel = running(journal), Stop(), None
    with cancellation.registered(task, stop):
        stop.ignore()
        cancel = cancel_of(task.task_id)
        accept(journal, cancel)
        cancellation.handle(cancel)
        told = finals(journal)[cancel.task_id]
        assert (told.status, code(told)) == (S.FAILED, "too_late")
        tell(journal, task, S.DONE)
    assert list(finals(journal)) == [task.task_id]
    assert stop.cause is None


def test_a_cancel_that_comes_between_the_claim_and_the_work(
    journal: Journal, cancellation: Cancellation
) -> None:
    task = running(journal)
    cancel = cancel_of(task.task_id)
    accept(journal, cancel)
    cancellation.handle(cancel)
    assert finals(journal) == {}
    with cancellation.registered(task, stop := Stop()):
        assert isinstance(stop.cause, Cancelled)


def test_what_is_being_brought_to_its_end_can_only_be_interrupted(
    journal: Journal, cancellation: Cancellation
) -> None:
    task = running(journal)
    journal.keep_note(task.task_id, "{}")
    waiting, during = cancel_of(task.task_id), cancel_of(task.task_id)
    accept(journal, waiting)
    with cancellation.registered(task, stop := Stop()):
        accept(journal, during)
        cancellation.handle(during)
        assert stop.cause is None
        stop.request(Interrupted("the agent ends"))
        assert isinstance(stop.cause, Interrupted)
    cancellation.handle(waiting)
    assert {code(report) for report in finals(journal).values()} == {"too_late"}


def test_a_cancel_of_a_cancel_and_of_itself(journal: Journal, cancellation: Cancellation) -> None:
    task = running(journal)
    first = cancel_of(task.task_id)
    second = cancel_of(first.task_id)
    own = str(uuid4())
    itself = CancelTask(task_id=own, cancels=own)
    for cancel in (first, second, itself):
        accept(journal, cancel)
    for cancel in (second, itself):
        cancellation.handle(cancel)
    told = finals(journal)
    assert set(told) == {second.task_id, own}
    assert {code(report) for report in told.values()} == {"too_late"}
    assert journal.cancels() == [first]


def test_an_agent_takes_the_cancels_that_a_crash_left(
    journal: Journal, cancellation: Cancellation, tmp_path: Path
) -> None:
    crashed, waits = running(journal), ping()
    of_waiting, of_crashed = cancel_of(waits.task_id), cancel_of(crashed.task_id)
    for task in (waits, of_waiting, of_crashed):
        accept(journal, task)
    finals(journal)
    journal.close()
    again = Journal(tmp_path / "journal.sqlite", str(uuid4()), str(uuid4()))
    try:
        assert [cut.task for cut in again.running()] == [crashed]  # without the cancels
        Cancellation(again).resume()
        assert finals(again)[of_waiting.task_id].status is S.DONE
        assert again.claim() is None
        assert again.cancels(crashed.task_id) == [of_crashed]
    finally:
        again.close()


def test_the_same_cancel_twice_is_answered_twice(
    journal: Journal, cancellation: Cancellation
) -> None:
    cancel = cancel_of(str(uuid4()))
    for _ in range(2):
        accept(journal, cancel)
        cancellation.handle(cancel)
        assert code(finals(journal)[cancel.task_id]) == "task_unknown"
