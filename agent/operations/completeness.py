"""Proof that a stream holds every table that the server had, before and after the run.

InnoDB's tablespaces are known by their numbers, from the server's own list; all other tables by
the names of their files (agent/datadir.py). What DDL makes, drops or renames meanwhile may be
missing.
"""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from agent.codec.mariadb_stream import MendedStream
from agent.codec.xbstream import XbstreamParser
from agent.database import ServerInfo, Tablespace
from agent.datadir import Survey, TableFile, named
from agent.dialect import half_made, truncates_in_place
from agent.errors import DatadirUnfit, StreamIncomplete
from agent.operations.imports import Check, imported, tablespace_file

# Copied tablespaces are whole files; a stream with less than this share of the bytes that
# the server has allocated for them is not a copy of that server.
_PLAUSIBLE_SHARE = 0.5
# Each makes the record some 8 bytes longer, which has 2 KiB and is read for every list of backups.
# An ALTER of a table with a partition for each day of a year has them all half-made at a time.
_MOST_ABSENT = 500
_IMPORTED = (
    "the engine leaves out a table that was imported since the server's last checkpoint: run SET "
    "GLOBAL innodb_log_checkpoint_now = ON, or wait for the next checkpoint, then back up again"
)
_MEANWHILE = "import no tablespace while a backup runs, and back up again"
_FINISHED = "make a full backup: the parent lacks the table, too"
_UNREAD = (
    "make the file readable for the OS user that runs the engine; mariadb-backup follows no "
    "symbolic link to an Aria table (DATA DIRECTORY): move its files into the datadir; if the "
    "table was renamed meanwhile, back up again at a quieter time"
)

Listing = Mapping[int, Tablespace]
Tablespaces = Callable[[], Listing]
Told = Callable[[str], str]


class Tables(NamedTuple):
    """Which tables are in a backup, as its record keeps it.

    All with ids up to `last_table_id` but those of `absent_table_ids`, in ascending order, as the
    server listed them at `listed_at` (Unix seconds).
    """

    last_table_id: int
    absent_table_ids: tuple[int, ...]
    listed_at: float


class Completeness:
    """The proof for one run; make it before the engine starts, and call `prove` at its end.

    `from_lsn` is where an incremental begins, None for a full backup. `read` are the tablespaces
    as they were listed before an incremental's were read for imports, which may take hours: what
    came after that is read at the end. What must be in the stream is what there is now. `check`
    is called now and then, to raise what stops the task.
    """

    def __init__(
        self,
        server: ServerInfo,
        tablespaces: Tablespaces,
        survey: Survey,
        from_lsn: int | None,
        check: Check,
        read: Listing | None = None,
    ) -> None:
        self.survey = survey
        self.tablespaces = tablespaces
        self._server = server
        self._from_lsn = from_lsn
        self._check = check
        self._before = tablespaces()
        self._read = self._before if read is None else read

    def prove(self, parser: MendedStream, told: Told) -> Tables:
        """Check the whole of a stream; return which tables are in it.

        `told` returns the engine's own words about a file, if it had any. Raises
        StreamIncomplete with the name of what is missing.
        """
        listed_at = time.time()
        after = self.tablespaces()
        held = _Held(parser)
        self._check_tablespaces(after, held, told)
        self._check_made(after)
        self._check_files(parser, told)
        if self._from_lsn is None:
            self._check_volume(after, parser.raw_bytes)
        _check_renames(parser, after)
        return _tables(after, held, listed_at)

    def _check_tablespaces(self, after: Listing, held: "_Held", told: Told) -> None:
        """By number: under the same name a table may be another one by now, dropped and made
        again right after the engine let the DDL go on."""
        missing = []
        last_id = _last_id(self._before)
        for number, space in after.items():
            before = self._before.get(number)
            if not space.whole:
                continue
            if before and self._is_replaced(before, space):
                raise StreamIncomplete(
                    f"the tablespace {space.path} was discarded and imported during the backup",
                    hint=_MEANWHILE,
                )
            if not held(number, space) and (before or self._is_due(space, last_id)):
                missing.append(space)
        if missing:
            first = min(missing)
            raise StreamIncomplete(
                f"of the server's tablespaces {len(missing)} are not in the stream, "
                f"{first.path} among them{_words(told, first.path)}",
                hint=_IMPORTED if self._looks_imported(first) else None,
            )

    def _is_replaced(self, before: Tablespace, after: Tablespace) -> bool:
        """Tell whether a table's file became another one under its number.

        The engine removes the file at its end, or a prepare does, though all its pages be newer.
        """
        if not before.table_id or not after.table_id or before.table_id == after.table_id:
            return False
        return not truncates_in_place(self._server.type, self._server.number)

    def _is_due(self, space: Tablespace, last_id: int) -> bool:
        """Tell whether a tablespace must be in the stream that wasn't listed before.

        One whose table was there, discarded, and was imported meanwhile must. So must a general
        tablespace: the record has no id of it, by which the next incremental could find it.
        """
        if space.table_id:
            return space.table_id <= last_id
        return last_id > 0 and tablespace_file(self._server.datadir, space.path) is not None

    def _looks_imported(self, space: Tablespace) -> bool:
        try:
            return self._is_imported(space, 0)
        except DatadirUnfit:
            # the hint for another failure, which is the one to be told
            return False

    def _is_imported(self, space: Tablespace, limit: int) -> bool:
        file = tablespace_file(self._server.datadir, space.path)
        return file is not None and imported(file, limit, self._check)

    def _check_made(self, after: Listing) -> None:
        """Look for old pages in tables that were made or finished meanwhile; those are few."""
        last_id = _last_id(self._read)
        for number, space in after.items():
            old = self._read.get(number)
            finished = old is not None and half_made(old.path)
            came = space.table_id > last_id or (old is not None and not old.whole)
            if not came or not space.whole:
                continue
            if self._is_imported(space, self._from_lsn or 0):
                how = "made by an ALTER that ended" if finished else "imported"
                raise StreamIncomplete(
                    f"the tablespace {space.path} was {how} during the backup, which has not all "
                    "of its pages",
                    hint=_FINISHED if finished else _MEANWHILE,
                )

    def _check_files(self, parser: XbstreamParser, told: Told) -> None:
        def held(path: str) -> bool:
            self._check()
            return parser.contains(path)

        lost = list(self.survey.lost(held, lambda path: bool(told(path))))
        if lost:
            first: TableFile = min(lost, key=lambda file: (not told(file.path), file))
            raise StreamIncomplete(
                f"of the tables' files {len(lost)} are not in the stream, {first.path} of the "
                f"table {first.table} among them{_words(told, first.path)}",
                hint=_UNREAD,
            )
        if self.survey.rocksdb_lost(parser.contains):
            raise StreamIncomplete(
                "there are MyRocks tables, and none of their data is in the stream",
                hint="look for what the engine says of RocksDB, or alter them to InnoDB",
            )

    def _check_volume(self, after: Listing, raw_bytes: int) -> None:
        allocated = sum(
            min(space.allocated, self._before[number].allocated)
            for number, space in after.items()
            if number in self._before
        )
        if raw_bytes < _PLAUSIBLE_SHARE * allocated:
            raise StreamIncomplete(
                f"the stream has {raw_bytes} bytes, the server's tablespaces have {allocated}"
            )


class _Held:
    """Tells whether a tablespace is in a stream, by its number or its name."""

    def __init__(self, parser: XbstreamParser) -> None:
        self._parser = parser
        self._numbers = set(parser.spaces.values())

    def __call__(self, number: int, space: Tablespace) -> bool:
        if number in self._numbers:
            return True
        # one that the server has made but not written yet has no number on its first page
        names = (space.path, f"{space.path}.meta", f"{space.path.removesuffix('.ibd')}.new")
        return any(map(self._parser.contains, names))


def _check_renames(parser: MendedStream, after: Listing) -> None:
    """Look for renames in the log that the server did not do."""
    name = parser.untrue_name(space.path for space in after.values())
    if name is not None:
        raise StreamIncomplete(
            f"a RENAME to {named(name)} was refused by the server, and the engine took it for "
            "done: no restore of this backup would succeed",
            hint="run SET GLOBAL innodb_log_checkpoint_now = ON, or wait for the server's next "
            "checkpoint, then back up again",
        )


def _tables(after: Listing, held: _Held, listed_at: float) -> Tables:
    # what isn't there was made too late, or isn't made yet
    present = {
        number: space for number, space in after.items() if space.whole and held(number, space)
    }
    last = _last_id(present)
    ids = (space.table_id for number, space in after.items() if number not in present)
    absent = sorted(one for one in ids if 0 < one < last)
    if len(absent) > _MOST_ABSENT:
        return Tables(absent[0] - 1, (), listed_at)
    return Tables(last, tuple(absent), listed_at)


def _last_id(listing: Listing) -> int:
    return max((space.table_id for space in listing.values()), default=0)


def _words(told: Told, path: str) -> str:
    words = told(path)
    return f"; the engine says: {words}" if words else ""
