"""Check each block of an xbstream before the extractor gets it.

The extractor acts on a chunk as soon as it has read its head, and checks less than this parser.
"""

import os
from collections.abc import Callable
from pathlib import Path

from agent.codec.mariadb_stream import MendingParser
from agent.codec.stream_paths import MAX_FULL, MAX_OPENED
from agent.errors import ContentRefused, DataDamaged, StreamInvalid, TargetRefused
from agent.operations.restore.target import too_long


class Gate:
    """A gate that passes an xbstream on to `write`, each block only after all of it was checked.

    Engines write some streams that mbstream can't read. Backups may be stored in this form, so such
    a stream is repaired on the way.

    Raises ContentRefused for each of these:

    - a path that leads out of the directory
    - bytes that are no xbstream
    - more bytes than the record states, if it states a number
    - more files than MOST_FILES, or more directories than MOST_FOLDERS
    - a path of a full backup that is longer than MAX_FULL

    Raises TargetRefused if a path of an incremental, behind its directory, is longer than
    MAX_OPENED.
    """

    def __init__(
        self,
        write: Callable[[bytes], None],
        backup_id: str,
        raw_bytes: int | None,
        folder: Path | None = None,
    ) -> None:
        """Prepare to judge one backup.

        `raw_bytes` is the number of bytes that its record states. It is None if no record states
        it. Any number of bytes is taken then. `folder` is the directory of an incremental. It is
        None for a full backup, in whose directory the engine works.
        """
        self._write = write
        self._folder = folder
        self._longest = MAX_OPENED - len(os.fsencode(folder)) - 1 if folder else MAX_FULL
        self._backup_id = backup_id
        self._raw_bytes = raw_bytes
        # Without the checks of a proof: the extractor checks the checksums, and sealed or signed
        # bytes were not changed after they were stored.
        self._parser = MendingParser(proving=False)

    def write(self, block: bytes) -> None:
        """Check the next block and pass it on."""
        stated = self._raw_bytes
        if stated is not None and self._parser.raw_bytes + len(block) > stated:
            raise self._refused(f"it has more than the {stated} bytes of its record")
        try:
            mended = self._parser.mend(memoryview(block))
        except StreamInvalid as error:
            raise self._refused(str(error)) from error
        incremental = self._folder is not None
        path = self._parser.unopenable(longest=self._longest, incremental=incremental)
        if path is not None:
            raise self._unopenable(path)
        self._write(block if mended is None else mended)

    def finish(self) -> None:
        """Check that the stream ended between two chunks, with the number of bytes in the record.

        Raises:
            DataDamaged: the number of bytes differs.
            ContentRefused: the last chunk or a file is incomplete.
        """
        found = self._parser.raw_bytes
        if self._raw_bytes not in (None, found):
            raise DataDamaged(
                f"backup {self._backup_id} has {found} bytes, but its record says {self._raw_bytes}"
            )
        try:
            self._parser.finish()
        except StreamInvalid as error:
            raise self._refused(str(error)) from error

    def _unopenable(self, path: bytes) -> ContentRefused | TargetRefused:
        excess = len(path) - self._longest
        if self._folder is not None and excess > 0:
            return too_long(excess)
        return ContentRefused(
            f"backup {self._backup_id} holds the path {path!r} of {len(path)} bytes, which no "
            "engine can open"
        )

    def _refused(self, why: str) -> ContentRefused:
        return ContentRefused(f"backup {self._backup_id} holds data that no engine writes: {why}")
