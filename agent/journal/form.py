"""The bytes of tasks and reports in the journal's file, which are JSON of their models in UTF-8."""

from agent.model import TASK, CancelTask, Report, Task


def task_bytes(task: Task) -> bytes:
    """Return a task as bytes, without its token, which is kept in memory only."""
    return task.model_dump_json(exclude_none=True, exclude={"store": {"token"}}).encode()


def read_task(stored: bytes) -> Task:
    """Return the task of these bytes.

    Raises:
        pydantic.ValidationError: the bytes are not a task.
    """
    return TASK.validate_json(stored)


def read_cancel(stored: bytes) -> CancelTask:
    """Return the cancel of these bytes.

    Raises:
        pydantic.ValidationError: the bytes are not a cancel.
    """
    return CancelTask.model_validate_json(stored)


def report_bytes(report: Report) -> bytes:
    """Return a report as bytes."""
    return report.model_dump_json(exclude_none=True).encode()


def read_report(stored: bytes) -> Report:
    """Return the report of these bytes.

    Raises:
        pydantic.ValidationError: the bytes are not a report.
    """
    return Report.model_validate_json(stored)
