"""The parents of incrementals, as far as the journal remembers them.

The listing of a container may lag behind, so it does not prove that a backup has no children.
"""

import json
import sqlite3
from collections.abc import Iterator

from agent.journal.form import read_task
from agent.model import CreateTask

_CREATE = CreateTask.model_fields["type"].default


def parents(db: sqlite3.Connection) -> dict[str, str]:
    """Return the parent of each incremental that a task of the journal made or will make."""
    rows = db.execute("SELECT ended IS NULL, body, last_report FROM tasks")
    return dict(pair for row in rows for pair in _pairs_of(*row))


def _pairs_of(unfinished: int, body: bytes, last_report: bytes) -> Iterator[tuple[str, str]]:
    if unfinished:
        task = read_task(body)
        if task.subject is not None and task.parent_id is not None:
            yield task.subject, task.parent_id
        return
    # The journal drops the body of an ended task, but the last report has the backup.
    report = json.loads(last_report)
    backup = report.get("backup") or {}
    if report.get("type") == _CREATE and backup.get("parent_id"):
        yield backup["id"], backup["parent_id"]
