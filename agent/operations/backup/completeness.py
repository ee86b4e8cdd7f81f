"""Prove that a stream holds every table that the server had both before and after the run.

InnoDB's tablespaces are identified by their numbers, from the server's own list. All other tables
are identified by the names of their files (agent/database/datadir.py). Tables that DDL makes,
drops or renames during the run may be missing from the stream.
"""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from agent.codec.mariadb_stream import MendingParser
from agent.codec.xbstream import XbstreamParser
from agent.database.datadir import Survey, TableFile, in_words
from agent.database.flavours import half_made, truncates_in_place
from agent.database.server import ServerInfo, Tablespace
from agent.errors import DatadirUnfit, StreamIncomplete
from agent.operations.backup.imports import Check, has_old_page, tablespace_file

# Tablespaces are copied as whole files. So a stream with less than this share of the bytes that
# the server has allocated for them is not a copy of that server.
_PLAUSIBLE_SHARE = 0.5
# The record keeps at most this many ids of absent tables. Each makes it some 8 bytes longer. A
# record has 2 KiB and is read for every list of backups. An ALTER of a table with one partition
# for each day of a year has all of these partitions half-made at the same time.
_MOST_ABSENT = 500
_IMPORTED = (
    "the engine leaves out a table that was imported after the server's last checkpoint: run SET "
    "GLOBAL innodb_log_checkpoint_now = ON, or wait for the next checkpoint, then back up again"
)
_MEANWHILE = "import no tablespace while a backup runs, and back up again"
_FINISHED = "make a full backup, because the parent lacks the table, too"
_UNREAD = (
    "make the file readable for the OS user that runs the engine. If it is an Aria table behind a "
    "symbolic link (DATA DIRECTORY), which mariadb-backup doesn't follow, move its files into the "
    "datadir. If the table was renamed during the backup, back up again at a quieter time"
)

Listing = Mapping[int, Tablespace]
Tablespaces = Callable[[], Listing]
WordsAbout = Callable[[str], str]


class Tables(NamedTuple):
    """The ids of the InnoDB tables in a backup, in the form that its record keeps.

    A backup has all tables with an id up to `last_table_id`, except those in `absent_table_ids`,
    which is in ascending order. The server listed the tables at `listed_at` (Unix seconds).
    """

    last_table_id: int
    absent_table_ids: tuple[int, ...]
    listed_at: float


class Completeness:
    """The proof that one run copied every table.

    Make it before the engine starts, because it lists the tablespaces that the stream must hold.
    Call `prove` after the engine has ended.

    `from_lsn` is the LSN at which an incremental begins, None for a full backup.
    `checked_spaces` is the list of tablespaces from before `check_imports` read their files, which
    may take hours. `prove` reads the tablespaces that came after that list. `checked_spaces` is
    None for a full backup. `check` is called repeatedly, and raises the cause if the task is
    stopped.
    """

    def __init__(
        self,
        server: ServerInfo,
        tablespaces: Tablespaces,
        survey: Survey,
        from_lsn: int | None,
        check: Check,
        checked_spaces: Listing | None = None,
    ) -> None:
        self.survey = survey
        self.tablespaces = tablespaces
        self._server = server
        self._from_lsn = from_lsn
        self._check = check
        self._before = tablespaces()
        self._checked_spaces = self._before if checked_spaces is None else checked_spaces

    def prove(self, parser: MendingParser, words_about: WordsAbout) -> Tables:
        """Check that a complete stream holds every table, and return the tables in it.

        `words_about` returns the engine's own message about a file, an empty text if there is none.

        Raises:
            StreamIncomplete: the stream is not a complete copy.
            DatadirUnfit: the file of a table that was made meanwhile can't be read.
        """
        listed_at = time.time()
        after = self.tablespaces()
        held = _Held(parser)
        self._check_tablespaces(after, held, words_about)
        self._check_made(after)
        self._check_files(parser, words_about)
        if self._from_lsn is None:
            self._check_volume(after, parser.raw_bytes)
        _check_renames(parser, after)
        return _tables(after, held, listed_at)

    def _check_tablespaces(self, after: Listing, held: "_Held", words_about: WordsAbout) -> None:
        """Check by number that no InnoDB tablespace is missing from the stream.

        The name doesn't identify a table: it may have been dropped and recreated under the same
        name right after the engine released the DDL.
        """
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
                f"{first.path} among them{_words(words_about, first.path)}",
                hint=_IMPORTED if self._looks_imported(first) else None,
            )

    def _is_replaced(self, before: Tablespace, after: Tablespace) -> bool:
        """Return True if a table's file was replaced by another file with the same number.

        The engine removes its copy of such a file at its end, or a prepare does, because the redo
        log has the end of the old file. This holds even if all pages of the file are newer than
        the LSN at which the backup begins.
        """
        if not before.table_id or not after.table_id or before.table_id == after.table_id:
            return False
        return not truncates_in_place(self._server.type, self._server.number)

    def _is_due(self, space: Tablespace, last_id: int) -> bool:
        """Return True if the stream must hold a tablespace that wasn't listed before the run.

        Two kinds must be there. The first is a tablespace that was imported during the run into a
        table that existed before, with a discarded tablespace. The second is a general tablespace:
        the record has no id for it, so the next incremental could not find it.
        """
        if space.table_id:
            return space.table_id <= last_id
        return last_id > 0 and tablespace_file(self._server.datadir, space.path) is not None

    def _looks_imported(self, space: Tablespace) -> bool:
        try:
            return self._is_imported(space, 0)
        except DatadirUnfit:
            # This only selects a hint. The failure that has the hint is the one to report.
            return False

    def _is_imported(self, space: Tablespace, limit: int) -> bool:
        file = tablespace_file(self._server.datadir, space.path)
        return file is not None and has_old_page(file, limit, self._check)

    def _check_made(self, after: Listing) -> None:
        """Check that tables that were made or finished during the run have no old pages.

        Such tables are few, so the check reads little.
        """
        last_id = _last_id(self._checked_spaces)
        for number, space in after.items():
            old = self._checked_spaces.get(number)
            finished = old is not None and half_made(old.path)
            came = space.table_id > last_id or (old is not None and not old.whole)
            if not came or not space.whole:
                continue
            if self._is_imported(space, self._from_lsn or 0):
                how = "made by an ALTER that ended" if finished else "imported"
                raise StreamIncomplete(
                    f"the tablespace {space.path} was {how} during the backup, so the backup lacks "
                    "some of its pages",
                    hint=_FINISHED if finished else _MEANWHILE,
                )

    def _check_files(self, parser: XbstreamParser, words_about: WordsAbout) -> None:
        def held(path: str) -> bool:
            self._check()
            return parser.contains(path)

        lost = list(self.survey.lost(held, lambda path: bool(words_about(path))))
        if lost:
            first: TableFile = min(lost, key=lambda file: (not words_about(file.path), file))
            raise StreamIncomplete(
                f"of the tables' files {len(lost)} are not in the stream, {first.path} of the "
                f"table {first.table} among them{_words(words_about, first.path)}",
                hint=_UNREAD,
            )
        if self.survey.rocksdb_lost(parser.contains):
            raise StreamIncomplete(
                "there are MyRocks tables, and none of their data is in the stream",
                hint="look for RocksDB in the engine's messages, or alter the tables to InnoDB",
            )

    def _check_volume(self, after: Listing, raw_bytes: int) -> None:
        allocated = sum(
            min(space.allocated, self._before[number].allocated)
            for number, space in after.items()
            if number in self._before
        )
        if raw_bytes < _PLAUSIBLE_SHARE * allocated:
            raise StreamIncomplete(
                f"the stream has only {raw_bytes} bytes, but the server's tablespaces have "
                f"{allocated}"
            )


class _Held:
    """The tablespaces in a stream.

    Call it to check if one is there, by its number or its name.
    """

    def __init__(self, parser: XbstreamParser) -> None:
        self._parser = parser
        self._numbers = set(parser.spaces.values())

    def __call__(self, number: int, space: Tablespace) -> bool:
        if number in self._numbers:
            return True
        # A tablespace that the server has made but not written has no number on its first page.
        names = (space.path, f"{space.path}.meta", f"{space.path.removesuffix('.ibd')}.new")
        return any(map(self._parser.contains, names))


def _check_renames(parser: MendingParser, after: Listing) -> None:
    """Look for renames that the server wrote to its log and then refused."""
    name = parser.untrue_name(space.path for space in after.values())
    if name is not None:
        raise StreamIncomplete(
            f"a RENAME to {in_words(name)} was refused by the server, but the engine applies it: "
            "this backup could not be restored",
            hint="run SET GLOBAL innodb_log_checkpoint_now = ON, or wait for the server's next "
            "checkpoint, then back up again",
        )


def _tables(after: Listing, held: _Held, listed_at: float) -> Tables:
    # An absent table was made too late for the stream, or an ALTER is still making it.
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


def _words(words_about: WordsAbout, path: str) -> str:
    words = words_about(path)
    return f"; the engine says: {words}" if words else ""
