"""Reads of a journal by a process that is not the agent that owns it."""

from pathlib import Path
from typing import NamedTuple

from agent.errors import JournalError
from agent.journal.file import read_only
from agent.journal.form import read_report, read_task
from agent.journal.parents import parents


class Unfinished(NamedTuple):
    """A task that has not ended. `updated` is the time of its last report (RFC 3339)."""

    task_id: str
    type: str
    status: str
    backup_id: str | None
    updated: str


class Overview(NamedTuple):
    """The unfinished tasks in order, and the number of unconfirmed reports."""

    tasks: list[Unfinished]
    unsent: int


def overview(path: Path) -> Overview:
    """Return the unfinished tasks and the number of unsent reports, none if there is no journal.

    Raises:
        JournalError: the journal can't be read.
    """
    if not _exists(path):
        return Overview([], 0)
    with read_only(path) as db:
        rows = db.execute(
            "SELECT body, last_report FROM tasks WHERE ended IS NULL ORDER BY position"
        ).fetchall()
        (unsent,) = db.execute("SELECT count(*) FROM outbox").fetchone()
        return Overview([_unfinished(*row) for row in rows], int(unsent))


def _unfinished(body: bytes, last_report: bytes) -> Unfinished:
    task, report = read_task(body), read_report(last_report)
    return Unfinished(task.task_id, task.type, report.status.value, task.subject, report.at)


def busy_backups(path: Path) -> frozenset[str] | None:
    """Return the ids of the backups of unfinished tasks, or None if there is no journal.

    There are at most as many ids as unfinished tasks.

    Raises:
        JournalError: the journal can't be read.
    """
    if not _exists(path):
        return None
    with read_only(path) as db:
        rows = db.execute("SELECT body FROM tasks WHERE ended IS NULL")
        return frozenset(one for (body,) in rows if (one := read_task(body).subject))


def known_parents(path: Path) -> dict[str, str]:
    """Return the parent of each incremental that the journal knows, none if there is no journal.

    Raises:
        JournalError: the journal can't be read.
    """
    if not _exists(path):
        return {}
    with read_only(path) as db:
        return parents(db)


def _exists(path: Path) -> bool:
    """Return True if the file exists.

    Raises:
        JournalError: this user may not enter its directory.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise JournalError(
            f"the journal {path} can't be read: {error.strerror}",
            hint="run the command as root, or as the agent's own user",
        ) from error
    return True
