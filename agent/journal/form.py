"""Tasks and reports as the journal's file keeps them: the JSON of their models, in UTF-8."""

from agent.model import TASK, Report, Task


def task_bytes(task: Task) -> bytes:
    """Return a task as bytes, without its token. Tokens are kept in memory only."""
    return task.model_dump_json(exclude_none=True, exclude={"store": {"token"}}).encode()


def read_task(stored: bytes) -> Task:
    """Return the task of these bytes. Raise pydantic's ValidationError if they are none."""
    return TASK.validate_json(stored)


def report_bytes(report: Report) -> bytes:
    """Return a report as bytes."""
    return report.model_dump_json(exclude_none=True).encode()


def read_report(stored: bytes) -> Report:
    """Return the report of these bytes. Raise pydantic's ValidationError if they are none."""
    return Report.model_validate_json(stored)
