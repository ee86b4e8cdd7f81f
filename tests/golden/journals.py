"""Make the golden journal of the present version: `python -m tests.golden.journals`.

Do it in the commit that raises SCHEMA_VERSION, and again if a journal can hold another kind of row.
The agents of the older versions made the other golden journals, which must stay as they are. The
ids and times are always the same.
"""

import itertools
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final
from unittest import mock

from agent.journal import Journal
from agent.journal.file import SCHEMA_VERSION
from agent.model import (
    TASK,
    BackupStatus,
    CancelTask,
    Datastore,
    ErrorInfo,
    Lineage,
    ListRef,
    Progress,
    Record,
    ReportDraft,
    StageTotal,
    Stored,
    Task,
    TaskStatus,
    WrappedKey,
)
from tests.golden import make

_INSTANCE: Final = "6523132a-21a6-49f5-a2f8-c3e32d60983d"
_RUN: Final = "00000000-0000-4000-8000-00000000000a"
_ATTEMPT: Final = "c17461ab-6c97-8abf-8890-9f8b10886ecc"
_SIZES: Final = {"raw_bytes": 300, "compressed_bytes": 200, "stored_bytes": 210}


def _task_id(number: int) -> str:
    return f"000000{number:02d}-0000-4000-8000-000000000000"


def _backup(number: int) -> str:
    return f"000000{number:02d}-0000-4000-8000-0000000000bb"


def _task(number: int, kind: str, **fields: Any) -> Task:
    return TASK.validate_python({"task_id": _task_id(number), "type": kind, **fields})


def _create(number: int, parent: int | None = None, **fields: Any) -> Task:
    wanted = {"id": _backup(number), "name": "bäse", "parent_id": parent and _backup(parent)}
    return _task(number, "backup.create", backup=wanted, **fields)


def _record(number: int, status: BackupStatus, parent: int | None = None) -> Record:
    lists = (ListRef(count=1, sha256="0" * 64),)
    stored = Stored(**_SIZES, segment_size=1 << 20, segment_count=1, lists=lists, slo_etag="0" * 32)
    return Record(
        id=_backup(number),
        name="bäse",
        instance_id=_INSTANCE,
        parent_id=parent and _backup(parent),
        datastore=Datastore(type="mariadb", version="10.11"),
        status=status,
        size=None if status is BackupStatus.FAILED else 0.5,
        created="2025-10-09T08:53:20Z",
        updated="2025-10-09T08:55:20Z",
        attempt=_ATTEMPT,
        lineage=Lineage(inode=12, birth=1_700_000_000),
        from_lsn=0,
        to_lsn=47119,
        server_version="10.11.6-MariaDB",
        engine="mariadb-backup",
        engine_version="10.11.6",
        keys=(WrappedKey(id="k1", wrapped="AAAA"),),
        stored=None if status is BackupStatus.FAILED else stored,
    )


def _say(journal: Journal, task: Task, status: TaskStatus, **fields: Any) -> None:
    journal.report(ReportDraft(task_id=task.task_id, type=task.type, status=status, **fields))


def _accept(journal: Journal, task: Task) -> Task:
    first = ReportDraft(task_id=task.task_id, type=task.type, status=TaskStatus.ACCEPTED)
    journal.accept(task, first)
    return task


def _begin(journal: Journal, task: Task) -> Task:
    """Accept and claim a task. No other may wait."""
    _accept(journal, task)
    assert journal.claim() == task
    _say(journal, task, TaskStatus.RUNNING)
    return task


def _ended_and_sent(journal: Journal) -> None:
    _say(journal, _accept(journal, _task(1, "agent.ping")), TaskStatus.DONE)
    view = _record(2, BackupStatus.COMPLETED).view()
    _say(journal, _begin(journal, _create(2)), TaskStatus.DONE, backup=view, sizes=_SIZES)
    journal.take_reports()


def _ended(journal: Journal) -> None:
    error = ErrorInfo(code="engine_failed", message="it ended", hint="look")
    view = _record(3, BackupStatus.FAILED, 2).view()
    _say(journal, _begin(journal, _create(3, 2)), TaskStatus.FAILED, backup=view, error=error)


def _about_to_be_committed(journal: Journal) -> Task:
    task = _begin(journal, _create(4, 2, retry=True, store={"container": "other"}))
    journal.keep_attempt(task.task_id, _ATTEMPT)
    progress = Progress(raw_bytes=1, stored_bytes=0, bytes_per_second=1.5)
    _say(journal, task, TaskStatus.RUNNING, progress=progress)
    finished = _record(4, BackupStatus.COMPLETED, 2)
    journal.keep_note(task.task_id, finished.model_dump_json())
    return task


def _begun_delete(journal: Journal) -> None:
    task = _begin(journal, _task(6, "backup.delete", backup_id=_backup(2)))
    root = _record(2, BackupStatus.DELETING).model_dump_json()
    journal.keep_note(task.task_id, f'{root}\n["{_backup(3)}", "{_backup(2)}"]')


def _waiting(journal: Journal, running: Task) -> None:
    restored = {"backup_id": _backup(2), "target": "/srv/restored"}
    _accept(journal, _task(7, "backup.restore", **restored))
    _accept(journal, _task(8, "agent.ping"))
    _cancel(journal, 9, running)
    _cancel(journal, 11, _accept(journal, _create(10)))


def _cancel(journal: Journal, number: int, task: Task) -> None:
    cancel = CancelTask(task_id=_task_id(number), cancels=task.task_id)
    _accept(journal, cancel)
    journal.cancel(cancel)


def fill(path: Path) -> None:
    """Make a journal with rows of all kinds in the file `path`."""
    ticks = itertools.count(1_760_000_000)

    @contextmanager
    def opened(**changes: Any) -> Iterator[Journal]:
        journal = Journal(path, _INSTANCE, _RUN, clock=lambda: float(next(ticks)), **changes)
        with closing(journal):
            yield journal

    with opened() as journal:
        _ended_and_sent(journal)
        _ended(journal)
        running = _about_to_be_committed(journal)
    with opened(store="file:///elsewhere", store_override=True) as journal:
        _begin(journal, _create(5))
    with opened() as journal:
        _begun_delete(journal)
        _waiting(journal, running)
        error = ErrorInfo(code="message_unreadable", message="m", hint="h")
        status, refused = TaskStatus.FAILED, _task_id(12)
        journal.refuse(ReportDraft(task_id=refused, type="backup.move", status=status, error=error))
        journal.add_stages({"read": StageTotal(1.5, 10)})
        with mock.patch("secrets.token_hex", return_value="5eed" * 4):
            for inode, lsn in ((12, 47119), (12, 47200), (13, 500), (13, 400)):
                journal.observe_lsn(f"uuid:{inode}:1700000000", lsn)


def dump(path: Path) -> str:
    """Return the SQL that makes the journal again, with the text of BLOBs in readable form."""
    with closing(sqlite3.connect(path)) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        lines = [f"-- A journal as version {version} of its schema left it.", "BEGIN TRANSACTION;"]
        made = "SELECT name, sql FROM sqlite_master WHERE type = ? AND sql IS NOT NULL"
        made += " AND name NOT LIKE 'sqlite_%' ORDER BY name"
        for name, sql in db.execute(made, ("table",)).fetchall():
            lines.append(f"{sql};")
            for row in db.execute(f"SELECT * FROM {name}"):
                lines.append(f'INSERT INTO "{name}" VALUES({",".join(map(_literal, row))});')
        lines += [f"{sql};" for _, sql in db.execute(made, ("index",))]
        return "\n".join([*lines, "COMMIT;", f"PRAGMA user_version = {version};", ""])


def _literal(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f"CAST({_literal(value.decode())} AS BLOB)"
    if isinstance(value, str):
        return "'" + value.replace("'", "''").replace("\n", "'||char(10)||'") + "'"
    return repr(value)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="golden-") as scratch:
        fill(Path(scratch) / "journal")
        text = dump(Path(scratch) / "journal")
    (make.HOME / f"journal-{SCHEMA_VERSION}.sql").write_text(text)
    make.SUMS.write_text(make.sums())
