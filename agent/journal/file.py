"""The journal's SQLite file with its schema, transactions and errors.

The durability of a commit: https://www.sqlite.org/pragma.html#pragma_synchronous
"""

import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

from pydantic import ValidationError

from agent.errors import JournalError
from agent.journal.labels import code_label, type_label

# Raise it also if a task, a report or a kept record gets a field, because an older agent can't read
# that. Then make its golden journal (tests/golden/journals.py).
SCHEMA_VERSION: Final = 5
# The totals behind the metrics (agent/journal/totals.py).
_TOTALS: Final = """
CREATE TABLE ends (
    type TEXT NOT NULL,
    status TEXT NOT NULL,
    code TEXT NOT NULL,
    count INTEGER NOT NULL,
    last INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (type, status, code)
) WITHOUT ROWID;
CREATE TABLE stages (
    stage TEXT PRIMARY KEY,
    seconds REAL NOT NULL,
    bytes INTEGER NOT NULL
) WITHOUT ROWID
"""
# Counts the tasks that an older agent has ended and not forgotten.
_COUNT_ENDS: Final = """
INSERT INTO ends SELECT type, status, code, count(*), ifnull(max(at), 0), max(ended) FROM (
    SELECT status, ended,
        type_label(json_extract(report, '$.type')) AS type,
        code_label(ifnull(json_extract(report, '$.error.code'), '')) AS code,
        CAST(strftime('%s', json_extract(report, '$.at')) AS INTEGER) AS at
    FROM (
        SELECT status, ended, CAST(last_report AS TEXT) AS report
        FROM tasks WHERE ended IS NOT NULL
    ) WHERE json_valid(report)
) GROUP BY type, status, code
"""
_SCHEMA: Final = """
CREATE TABLE tasks (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    task_id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL,
    body BLOB NOT NULL,
    last_seq INTEGER NOT NULL,
    last_report BLOB NOT NULL,
    record TEXT,
    ended INTEGER,
    store TEXT NOT NULL DEFAULT '',
    attempt TEXT NOT NULL DEFAULT '',
    runs INTEGER NOT NULL DEFAULT 0,
    cancels TEXT
);
CREATE INDEX tasks_by_cancelled ON tasks (cancels) WHERE cancels IS NOT NULL AND ended IS NULL;
CREATE INDEX tasks_by_status ON tasks (status, position);
CREATE INDEX tasks_by_end ON tasks (ended) WHERE ended IS NOT NULL;
CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY,
    task_id TEXT NOT NULL,
    weight INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX outbox_by_weight ON outbox (weight, seq);
CREATE INDEX outbox_by_task ON outbox (task_id);
CREATE TABLE sequence (last INTEGER NOT NULL);
INSERT INTO sequence VALUES (0);
CREATE TABLE lineages (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    lineage TEXT NOT NULL UNIQUE,
    lsn INTEGER NOT NULL,
    generation TEXT NOT NULL
);
"""
# The attempt of a create that was about to be committed. Without it, a backup that the store has as
# COMPLETED would be reported as FAILED.
_FIND_ATTEMPTS: Final = """
UPDATE tasks SET attempt = CASE
    WHEN NOT json_valid(record) OR NOT json_valid(CAST(body AS TEXT)) THEN ''
    WHEN json_extract(CAST(body AS TEXT), '$.type') <> 'backup.create' THEN ''
    ELSE ifnull(json_extract(record, '$.attempt'), '') END
WHERE status = 'RUNNING' AND record IS NOT NULL
"""
# The first makes version 2 of a journal of version 1, and so on.
_UPGRADES: Final = (
    "ALTER TABLE tasks ADD COLUMN store TEXT NOT NULL DEFAULT ''",
    """
    ALTER TABLE tasks ADD COLUMN attempt TEXT NOT NULL DEFAULT '';
    ALTER TABLE tasks ADD COLUMN runs INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE tasks ADD COLUMN cancels TEXT;
    CREATE INDEX tasks_by_cancelled ON tasks (cancels)
        WHERE cancels IS NOT NULL AND ended IS NULL;
    """
    + _FIND_ATTEMPTS,
    "ALTER TABLE outbox DROP COLUMN routing_key",
    _TOTALS + ";" + _COUNT_ENDS,
)
_LOCK_SECONDS: Final = 10.0
_UNREADABLE_HINT: Final = (
    "move the journal file away; unfinished tasks are lost then and must be sent again"
)


class JournalFile:
    """One connection to the file `path`, which the process's threads use one at a time.

    A missing file is created with mode 0600, and its directory with mode 0700.

    Raises:
        JournalError: the file can't be used, is damaged, or was written by a later version.
    """

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.Lock()
        with self._translated():
            self._db = _open(path)
        try:
            self._prepare()
        except JournalError:
            self._db.close()
            raise

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection, commit to the disk at the end, and roll back on any exception."""
        with self._lock, self._translated(), self._db as db:
            db.execute("BEGIN IMMEDIATE")
            yield db

    def check_disk(self, size: int) -> None:
        """Raise JournalError if the disk has less than `size` bytes free.

        The write-ahead log may have room in itself even if the disk has none. A task could then be
        kept, but it would fail, because it needs files of its own.
        """
        with self._translated():
            if shutil.disk_usage(self._path.parent).free < size:
                raise _no_space(self._path)

    def try_room(self, size: int) -> None:
        """Write `size` bytes to the disk and drop them.

        The write-ahead log is emptied before, so that these bytes do not make it longer.

        Raises:
            JournalError: there is no room.
        """
        self.check_disk(size)
        with self._lock, self._translated():
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        with self.transaction() as db:
            db.execute("CREATE TABLE IF NOT EXISTS room (filler BLOB)")
            db.execute("INSERT INTO room VALUES (zeroblob(?))", (size,))
        with self.transaction() as db:
            db.execute("DROP TABLE room")

    def _prepare(self) -> None:
        with self._translated():
            # In WAL mode, FULL syncs the log at each commit, so a commit survives a power cut.
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
        with self.transaction() as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            _check_version(self._path, version)
            for script in [_SCHEMA + _TOTALS] if version == 0 else _UPGRADES[version - 1 :]:
                _execute(db, script)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise JournalError(
                    f"the journal {self._path} is damaged: {verdict[:200]}", hint=_UNREADABLE_HINT
                )

    def _translated(self) -> AbstractContextManager[None]:
        return _translated(self._path)


@contextmanager
def read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """Yield a read-only connection to an existing journal, while an agent may write to it.

    Nothing is created or upgraded, with one exception: SQLite may create the files that it shares
    with the writer. They get the journal's owner, even if root reads.

    Raises:
        JournalError: the journal can't be read.
    """
    with (
        _translated(path),
        closing(
            sqlite3.connect(
                f"file:{quote(str(path))}?mode=ro",
                uri=True,
                timeout=_LOCK_SECONDS,
                isolation_level=None,
            )
        ) as db,
    ):
        _check_version(path, db.execute("PRAGMA user_version").fetchone()[0])
        yield db


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Translate errors of SQLite and of the file to JournalError."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise _journal_error(path, error) from error
    except ValidationError as error:
        raise JournalError(
            f"the journal {path} holds a task or report that can't be read",
            hint=_UNREADABLE_HINT,
        ) from error


def _check_version(path: Path, version: int) -> None:
    if version > SCHEMA_VERSION:
        raise JournalError(
            f"the journal {path} is of version {version}; this agent knows {SCHEMA_VERSION}",
            hint="run the agent's version that wrote it, or a later one",
        )


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite would create the file with the umask's mode.
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(handle, 0o600)
    finally:
        os.close(handle)
    db = sqlite3.connect(path, timeout=_LOCK_SECONDS, isolation_level=None, check_same_thread=False)
    for function in (type_label, code_label):
        db.create_function(function.__name__, 1, function, deterministic=True)
    return db


def _execute(db: sqlite3.Connection, script: str) -> None:
    """Execute statements without `executescript`, which would commit the open transaction."""
    for statement in script.split(";"):
        db.execute(statement)


def _no_space(path: Path) -> JournalError:
    return JournalError(f"the journal {path} can't be written: no space is left")


def _journal_error(path: Path, error: sqlite3.Error | OSError) -> JournalError:
    code = getattr(error, "sqlite_errorcode", 0)
    if code == sqlite3.SQLITE_FULL:
        return _no_space(path)
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return JournalError(f"the journal {path} is damaged: {error}", hint=_UNREADABLE_HINT)
    return JournalError(f"the journal {path} can't be used: {error}")
