"""A cache of the bytes of records, so that the next listing is quick.

There is one file for each container. Its records are in order of their ids, each after a line with
its id, its MD5 and its length. A listing reads this file and writes the next one at the same time.
So records that are not listed any more are dropped, and only one record is in memory. The MD5 of
each record is compared. Reading ends at the first record with a wrong MD5, so a torn file is used
up to there. Several processes may use the cache at once, because each renames a file of its own
into place.

Nothing depends on the cache. If it can't be read or written, it isn't used. Its records are checked
like all others. So a user who can write to the cache can do no more than a user who can write to
the store.
"""

import hashlib
import logging
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, NamedTuple, cast

_log = logging.getLogger(__name__)
# A record has about 2 KiB. One of more than this many bytes is read from the store each time.
_RECORD_BYTES = 64 << 10
_FILE_BYTES = 256 << 20
_SUFFIX = ".records"
_DRAFT = ".draft"
# The age in seconds after which a file is deleted. Old caches are of containers that are not listed
# any more, old drafts are of processes that were killed.
_STALE_SECONDS = {_SUFFIX: 30 * 86400, _DRAFT: 86400}
_HEAD = b"backup-agent records 1\n"
_LINE = re.compile(rb"([0-9a-f-]{36}) ([0-9a-f]{32}) ([0-9]{1,6})\n")
_LINE_BYTES = 100


class _Entry(NamedTuple):
    backup_id: str
    md5: str
    raw: bytes


class CachePass:
    """One pass over the cache in order of ids, which reads the old file and writes the next one."""

    def __init__(self, old: IO[bytes] | None, draft: IO[bytes] | None) -> None:
        self._old = old
        self._draft = draft
        self._room = _FILE_BYTES
        self._entry = self._next()
        self._write(_HEAD)

    @property
    def written(self) -> bool:
        """Return True if the next file was written without an error."""
        return self._draft is not None

    def find(self, backup_id: str, md5: str) -> bytes | None:
        """Return the bytes of a record if the cache has it with this MD5 (hex), else None.

        The ids of the calls must be in ascending order.
        """
        while self._entry is not None and self._entry.backup_id < backup_id:
            self._entry = self._next()
        if self._entry is not None and self._entry[:2] == (backup_id, md5):
            return self._entry.raw
        return None

    def keep(self, backup_id: str, raw: bytes) -> None:
        """Write a record to the next file, if there is room for it.

        The ids of the calls must be in ascending order.
        """
        if len(raw) <= _RECORD_BYTES:
            self._write(b"%s %s %d\n%s" % (backup_id.encode(), _md5(raw).encode(), len(raw), raw))

    def _next(self) -> _Entry | None:
        """Return the next entry of the old file, or None at its end or if the entry is damaged."""
        if self._old is None:
            return None
        try:
            found = _LINE.fullmatch(self._old.readline(_LINE_BYTES))
            if found is None or int(found[3]) > _RECORD_BYTES:
                return None
            entry = _Entry(found[1].decode(), found[2].decode(), self._old.read(int(found[3])))
        except OSError as error:
            _log.debug("can't read the cache of records: %s", error)
            return None
        return entry if entry.md5 == _md5(entry.raw) else None

    def _write(self, piece: bytes) -> None:
        if self._draft is None or len(piece) > self._room:
            return
        self._room -= len(piece)
        try:
            whole = self._draft.write(piece) == len(piece)
        except OSError as error:
            _log.debug("can't write the cache of records: %s", error)
            whole = False
        if not whole:
            self._draft = None


class RecordCache:
    """The cache in one file, which need not exist, in a directory that must exist."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def use(self) -> Iterator[CachePass]:
        """Yield one pass over the cache, and replace the file if the block succeeds."""
        with ExitStack() as stack:
            draft = self._open_draft(stack)
            walk = CachePass(self._open_old(stack), draft)
            yield walk
            if draft is not None and walk.written:
                self._replace(Path(draft.name))

    def _open_old(self, stack: ExitStack) -> IO[bytes] | None:
        try:
            # The path may be a link, which must not be followed, or a pipe, which must not block.
            number = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            stack.callback(os.close, number)
            found = os.fstat(number)
            if stat.S_ISREG(found.st_mode) and found.st_size <= _FILE_BYTES:
                old = stack.enter_context(os.fdopen(number, "rb", closefd=False))
                return old if old.readline(_LINE_BYTES) == _HEAD else None
        except OSError as error:
            _log.debug("can't read the cache of records: %s", error)
        return None

    def _open_draft(self, stack: ExitStack) -> IO[bytes] | None:
        try:
            # The mode is 0600. Without a buffer a full disk causes an error at once.
            draft = NamedTemporaryFile(  # noqa: SIM115 - the stack closes it
                buffering=0, suffix=_DRAFT, dir=self._path.parent, delete=False
            )
        except OSError as error:
            _log.debug("can't write the cache of records: %s", error)
            return None
        stack.callback(Path(draft.name).unlink, missing_ok=True)
        stack.enter_context(draft)
        return cast("IO[bytes]", draft)

    def _replace(self, draft: Path) -> None:
        """Move the draft into place and delete stale files.

        It needs no fsync. If a crash of the machine tears the file, its MD5s show it.
        """
        try:
            draft.replace(self._path)
            for path in self._path.parent.iterdir():
                seconds = _STALE_SECONDS.get(path.suffix)
                if seconds is not None and path.lstat().st_mtime < time.time() - seconds:
                    path.unlink(missing_ok=True)
        except OSError as error:
            _log.debug("can't write the cache of records: %s", error)


def open_cache(name: str, state_folder: Path, environment: Mapping[str, str]) -> RecordCache | None:
    """Return the cache of the container `name`, or None if no directory can hold it.

    The cache is in `state_folder` if that belongs to this user. Otherwise it is in the user's own
    cache directory (https://specifications.freedesktop.org/basedir-spec/latest/).
    """
    digest = hashlib.sha256(name.encode()).hexdigest()[:32]
    for folder in _folders(state_folder, environment):
        try:
            if _nearest(folder).stat().st_uid != os.geteuid():
                # Files of this user in another user's directory would prevent that user from
                # having a cache.
                continue
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            _log.debug("can't make a cache of records in %s: %s", folder, error)
            continue
        if os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            return RecordCache(folder / f"{digest}{_SUFFIX}")
    return None


def _folders(state_folder: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    # os.path.isdir returns False if this user has no right to look. Path.is_dir raises an error.
    if os.path.isdir(state_folder):
        yield state_folder / "cache"
    asked, home = Path(environment.get("XDG_CACHE_HOME", "")), Path(environment.get("HOME", ""))
    if asked.is_absolute():
        yield asked / "backup-agent"
    elif home.is_absolute():
        yield home / ".cache" / "backup-agent"


def _nearest(folder: Path) -> Path:
    """Return the directory itself, or its nearest parent that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _md5(raw: bytes) -> str:
    return hashlib.md5(raw, usedforsecurity=False).hexdigest()
