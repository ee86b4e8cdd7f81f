"""Requests to end other tasks, in the journal's file: which are open, and their answers.

A cancel is a task that no worker claims. It ends in the transaction that ends the task which
it names, so that a crash loses neither of the two, and each has one final report.

Everything here happens inside a transaction of the journal, whose connection is handed in.
"""

import sqlite3

from agent.errors import AgentError, Cancelled, TaskUnknown, TooLate
from agent.journal.form import read_task
from agent.model import CancelTask, ErrorInfo, ReportDraft, Task, TaskStatus


def target_of(task: Task) -> str | None:
    """The id of the task that a cancel names; None for any other task."""
    return task.cancels if isinstance(task, CancelTask) else None


def open_cancels(db: sqlite3.Connection, task_id: str | None = None) -> list[CancelTask]:
    """The cancels that have no answer: of one task, or of all, in order."""
    rows = db.execute(
        "SELECT body FROM tasks WHERE cancels IS NOT NULL AND ended IS NULL"
        " AND (? IS NULL OR cancels = ?) ORDER BY position",
        (task_id, task_id),
    )
    found = [read_task(body) for (body,) in rows]
    return [task for task in found if isinstance(task, CancelTask)]


def ended_by(db: sqlite3.Connection, cancel: CancelTask) -> ReportDraft | None:
    """The final report that a cancel brings about now; None where its task runs.

    It is the task's own where that still waits (and answers the cancel, too), else the cancel's.
    """
    row = db.execute(
        "SELECT status, body, cancels FROM tasks WHERE task_id = ?", (cancel.cancels,)
    ).fetchone()
    if row is None:
        return refused(cancel, TaskUnknown(f"there is no task {cancel.cancels} here"))
    status, body, cancels = row
    if cancels is not None:
        return refused(cancel, TooLate(f"task {cancel.cancels} is itself a cancel"))
    if TaskStatus(status).final:
        return answered(cancel, TaskStatus(status))
    if status == TaskStatus.RUNNING:
        return None
    return ReportDraft(
        task_id=cancel.cancels,
        type=read_task(body).type,
        status=TaskStatus.CANCELLED,
        error=ErrorInfo.of(cancellation(cancel)),
    )


def cancellation(cancel: CancelTask) -> Cancelled:
    """What the task that a cancel names ends with."""
    return Cancelled(f"the task was cancelled by task {cancel.task_id}")


def answered(cancel: CancelTask, ended: TaskStatus) -> ReportDraft:
    """A cancel's final report, once its task has ended in the status `ended`."""
    if ended is TaskStatus.CANCELLED:
        return ReportDraft(task_id=cancel.task_id, type=cancel.type, status=TaskStatus.DONE)
    return refused(cancel, TooLate(f"task {cancel.cancels} has ended: it is {ended}"))


def refused(cancel: CancelTask, error: AgentError) -> ReportDraft:
    """The final report of a cancel that comes to nothing."""
    return ReportDraft(
        task_id=cancel.task_id,
        type=cancel.type,
        status=TaskStatus.FAILED,
        error=ErrorInfo.of(error),
    )
