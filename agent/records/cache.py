"""The bytes of records as they were last read, so that listing them again is quick.

One file a container, records in order of their ids, each behind a line with its id, its MD5
and its length. It is read along with the listing while the next one is written: what isn't
listed any more falls out, and memory holds one record. The MD5 of each is compared, and
reading ends at the first that is wrong, so that a torn file is a short one. Several processes
may use it at once: each renames a file of its own into place.

Nothing depends on it: where it can't be read or written it isn't used. Who can write it can
do no more than who can write the store, because its records are checked like any others.
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
# A record is about 2 KiB; what is much larger is read from the store each time.
_RECORD_BYTES = 64 << 10
_FILE_BYTES = 256 << 20
_SUFFIX = ".records"
_DRAFT = ".draft"
# Of containers that nobody lists any more, and of processes that were killed.
_STALE_SECONDS = {_SUFFIX: 30 * 86400, _DRAFT: 86400}
_HEAD = b"backup-agent records 1\n"
_LINE = re.compile(rb"([0-9a-f-]{36}) ([0-9a-f]{32}) ([0-9]{1,6})\n")
_LINE_BYTES = 100


class _Entry(NamedTuple):
    backup_id: str
    md5: str
    raw: bytes


class CachePass:
    """One walk along the cache, in order of ids: what it has, and what it is to have next."""

    def __init__(self, old: IO[bytes] | None, draft: IO[bytes] | None) -> None:
        self._old = old
        self._draft = draft
        self._room = _FILE_BYTES
        self._entry = self._next()
        self._write(_HEAD)

    @property
    def written(self) -> bool:
        """Whether what was kept can be used next time."""
        return self._draft is not None

    def find(self, backup_id: str, md5: str) -> bytes | None:
        """The bytes of a record whose MD5 (hex) is `md5`; ids must come in ascending order."""
        while self._entry is not None and self._entry.backup_id < backup_id:
            self._entry = self._next()
        if self._entry is not None and self._entry[:2] == (backup_id, md5):
            return self._entry.raw
        return None

    def keep(self, backup_id: str, raw: bytes) -> None:
        """Have these bytes next time, if there is room; ids must come in ascending order."""
        if len(raw) <= _RECORD_BYTES:
            self._write(b"%s %s %d\n%s" % (backup_id.encode(), _md5(raw).encode(), len(raw), raw))

    def _next(self) -> _Entry | None:
        """The next entry of the old file; None at its end, or where it can't be trusted."""
        if self._old is None:
            return None
        try:
            found = _LINE.fullmatch(self._old.readline(_LINE_BYTES))
            if found is None or int(found[3]) > _RECORD_BYTES:
                return None
            entry = _Entry(found[1].decode(), found[2].decode(), self._old.read(int(found[3])))
        except OSError as error:
            _log.debug("the cache of records can't be read: %s", error)
            return None
        return entry if entry.md5 == _md5(entry.raw) else None

    def _write(self, piece: bytes) -> None:
        if self._draft is None or len(piece) > self._room:
            return
        self._room -= len(piece)
        try:
            whole = self._draft.write(piece) == len(piece)
        except OSError as error:
            _log.debug("the cache of records can't be written: %s", error)
            whole = False
        if not whole:
            self._draft = None


class RecordCache:
    """The cache in one file, which need not exist; its folder does."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def use(self) -> Iterator[CachePass]:
        """One walk; what it kept replaces the file if the block ends well."""
        with ExitStack() as stack:
            draft = self._open_draft(stack)
            walk = CachePass(self._open_old(stack), draft)
            yield walk
            if draft is not None and walk.written:
                self._replace(Path(draft.name))

    def _open_old(self, stack: ExitStack) -> IO[bytes] | None:
        try:
            # what lies there must neither lead elsewhere nor keep us waiting
            number = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            stack.callback(os.close, number)
            found = os.fstat(number)
            if stat.S_ISREG(found.st_mode) and found.st_size <= _FILE_BYTES:
                old = stack.enter_context(os.fdopen(number, "rb", closefd=False))
                return old if old.readline(_LINE_BYTES) == _HEAD else None
        except OSError as error:
            _log.debug("the cache of records can't be read: %s", error)
        return None

    def _open_draft(self, stack: ExitStack) -> IO[bytes] | None:
        try:
            # mode 0600; without a buffer, so that a full disk shows at once
            draft = NamedTemporaryFile(  # noqa: SIM115 - the stack closes it
                buffering=0, suffix=_DRAFT, dir=self._path.parent, delete=False
            )
        except OSError as error:
            _log.debug("the cache of records can't be written: %s", error)
            return None
        stack.callback(Path(draft.name).unlink, missing_ok=True)
        stack.enter_context(draft)
        return cast("IO[bytes]", draft)

    def _replace(self, draft: Path) -> None:
        """No fsync: what a crash of the machine tears is noticed by its MD5."""
        try:
            draft.replace(self._path)
            for path in self._path.parent.iterdir():
                seconds = _STALE_SECONDS.get(path.suffix)
                if seconds is not None and path.lstat().st_mtime < time.time() - seconds:
                    path.unlink(missing_ok=True)
        except OSError as error:
            _log.debug("the cache of records can't be written: %s", error)


def open_cache(name: str, state_folder: Path, environment: Mapping[str, str]) -> RecordCache | None:
    """The cache of the container that `name` stands for, or None where there is no place for it.

    In `state_folder` where that is ours, else in the user's own cache folder
    (https://specifications.freedesktop.org/basedir-spec/latest/).
    """
    digest = hashlib.sha256(name.encode()).hexdigest()[:32]
    for folder in _folders(state_folder, environment):
        try:
            if _nearest(folder).stat().st_uid != os.geteuid():
                # files of ours among another user's would keep that user from having any
                continue
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            _log.debug("no cache of records in %s: %s", folder, error)
            continue
        if os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            return RecordCache(folder / f"{digest}{_SUFFIX}")
    return None


def _folders(state_folder: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    # unlike Path.is_dir this is False where nobody lets us look
    if os.path.isdir(state_folder):
        yield state_folder / "cache"
    asked, home = Path(environment.get("XDG_CACHE_HOME", "")), Path(environment.get("HOME", ""))
    if asked.is_absolute():
        yield asked / "backup-agent"
    elif home.is_absolute():
        yield home / ".cache" / "backup-agent"


def _nearest(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _md5(raw: bytes) -> str:
    return hashlib.md5(raw, usedforsecurity=False).hexdigest()
