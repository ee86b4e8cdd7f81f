"""Cancels in the journal's file, and their answers.

A cancel is a task that no worker claims. The transaction that ends the named task also ends the
cancel. So a crash loses neither, and each has one final report.

Functions with a parameter `db` work inside a transaction of the journal, on that connection.
"""

import sqlite3

from agent.errors import AgentError, Cancelled, TaskUnknown, TooLate
from agent.journal.form import read_cancel, read_task
from agent.model import CancelTask, ErrorInfo, ReportDraft, TaskStatus


def open_cancels(db: sqlite3.Connection, task_id: str | None = None) -> list[CancelTask]:
    """Return the unanswered cancels of one task, or of all tasks, in order."""
    rows = db.execute(
        "SELECT body FROM tasks WHERE cancels IS NOT NULL AND ended IS NULL"
        " AND (? IS NULL OR cancels = ?) ORDER BY position",
        (task_id, task_id),
    )
    return [read_cancel(body) for (body,) in rows]


def ended_by(db: sqlite3.Connection, cancel: CancelTask) -> ReportDraft | None:
    """Return the final report that a cancel causes at once, or None if the named task runs.

    If the named task still waits, it is that task's report, which also answers the cancel. In all
    other cases it is the cancel's own.
    """
    row = db.execute(
        "SELECT status, body, cancels FROM tasks WHERE task_id = ?", (cancel.cancels,)
    ).fetchone()
    if row is None:
        return refusal_report(cancel, TaskUnknown(f"there is no task {cancel.cancels} here"))
    status, body, cancels = row
    if cancels is not None:
        return refusal_report(cancel, TooLate(f"task {cancel.cancels} is itself a cancel"))
    if TaskStatus(status).final:
        return answer_report(cancel, TaskStatus(status))
    if status == TaskStatus.RUNNING:
        return None
    return ReportDraft(
        task_id=cancel.cancels,
        type=read_task(body).type,
        status=TaskStatus.CANCELLED,
        error=ErrorInfo.of(cancelled_error(cancel)),
    )


def cancelled_error(cancel: CancelTask) -> Cancelled:
    """Return the error of a cancelled task."""
    return Cancelled(f"the task was cancelled by task {cancel.task_id}")


def answer_report(cancel: CancelTask, ended: TaskStatus) -> ReportDraft:
    """Return a cancel's final report after its task ended with the status `ended`."""
    if ended is TaskStatus.CANCELLED:
        return ReportDraft(task_id=cancel.task_id, type=cancel.type, status=TaskStatus.DONE)
    return refusal_report(cancel, TooLate(f"task {cancel.cancels} has ended: it is {ended}"))


def refusal_report(cancel: CancelTask, error: AgentError) -> ReportDraft:
    """Return the final report of a cancel that failed with `error`."""
    return ReportDraft(
        task_id=cancel.task_id,
        type=cancel.type,
        status=TaskStatus.FAILED,
        error=ErrorInfo.of(error),
    )
