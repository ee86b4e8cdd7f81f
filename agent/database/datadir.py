"""A survey of the table files in a datadir that are not InnoDB's own tablespaces.

A backup must hold these files, too. The server has no list of them that an account without rights
on tables could read. So the agent lists them by name before the run, and looks for them in the
stream after the run.
"""

import ctypes
import os
import pwd
import re
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from agent.codec.frm import table_engine
from agent.codec.stream_paths import path_digest
from agent.errors import DatadirUnfit

LOST_FOUND: Final = "lost+found"
# The endings of the files that the engines copy by name. Sources:
# extra/mariabackup/backup_copy.cc of MariaDB, storage/innobase/xtrabackup/src/backup_copy.cc of
# Percona. InnoDB's own files are not in this list, because they are proved by their number. A
# stray InnoDB file belongs to no table.
_DATA: Final = frozenset({".MYD", ".MYI", ".MAD", ".MAI", ".MRG", ".ARM", ".ARZ", ".CSM", ".CSV"})
_COPIED: Final = _DATA | {".frm", ".TRG", ".TRN", ".opt", ".par", ".sdi"}
_INNODB: Final = frozenset({".ibd", ".isl"})
# Names of files at the top of a stream or of a prepared backup. No schema may have such a name. The
# undo tablespaces and the list of corrupted pages are here because the engine looks for them even
# if they don't exist.
_TAKEN: Final = re.compile(
    r"(xtrabackup|mariadb_backup)_(checkpoints|info|binlog_info|binlog_pos_innodb|slave_info|"
    r"galera_info|logfile|binary|master_key_id|tablespaces|keys)|"
    r"innodb_corrupted_pages|undo[01]\d\d|"
    r"backup-my\.cnf|ibdata\d+|ib_logfile\d+|ib_buffer_pool|ib_lru_dump|aria_log_control"
)
# Engines with tables that have all their data in the files above or in the own files of InnoDB or
# MyRocks, or have no data in this server. A table of FEDERATED or SPIDER is only a definition.
# FederatedX has the name FEDERATED, too.
_WHOLE: Final = frozenset(
    {"innodb", "rocksdb", "myisam", "mrg_myisam", "aria", "archive", "csv"}
    | {"memory", "blackhole", "sequence", "oqgraph", "performance_schema", "example"}
    | {"federated", "federatedx", "spider"}
)
_ROCKSDB: Final = ("#rocksdb/CURRENT", ".rocksdb/CURRENT")
_FRM_BYTES: Final = 1 << 18
_CURE: Final = (
    "move it out of the datadir, name it in the server's ignore_db_dirs, or make it readable for "
    "the OS user that runs the engine"
)

# The server's own schemas. They must not be moved out of the datadir, and the server must not
# ignore them. So the hint for them is _READABLE, not _CURE.
_SYSTEM: Final = frozenset({"mysql", "performance_schema", "sys"})
_READABLE: Final = "make it readable for the datadir's owner, who runs the server and the engine"

_LIBC: Final = ctypes.CDLL(None)

Held = Callable[[str], bool]


class TableFile(NamedTuple):
    """A table file. `path` is its name in a stream, such as `schema/table.MAI`."""

    path: str
    inode: int

    @property
    def folder(self) -> str:
        """Return the name of the file's directory."""
        return self.path.partition("/")[0]

    @property
    def name(self) -> str:
        """Return the file's name without its directory."""
        return self.path.partition("/")[2]

    @property
    def table(self) -> str:
        """Return the table's name as in SQL, without quotes.

        The result has no meaning for a schema's own file, such as `db.opt`.
        """
        return f"{_decoded(self.folder)}.{_decoded(_stem(self.name))}"


def in_words(path: str) -> str:
    """Return `the table d.t` for the path of its file, or `the schema d` for a directory's name."""
    return (
        f"the table {TableFile(path, 0).table}" if "/" in path else f"the schema {_decoded(path)}"
    )


class Rules(NamedTuple):
    """The contents that a datadir may have.

    The directories in `ignored` are skipped. If `hidden` is set, names of schemas may begin with a
    dot. A backup may lack the data of tables of the engines in `accepted` (lower case). If
    `backticks` is set, tables that aren't InnoDB's may have a backtick in their names.
    """

    ignored: frozenset[str] = frozenset()
    hidden: bool = False
    accepted: frozenset[str] = frozenset()
    backticks: bool = False


class Survey:
    """The table files in a datadir, as they were when the survey was made.

    The survey keeps 8 bytes of memory a file. While it reads a directory, it needs some 400 bytes
    for each file of that directory. `began` is the time when it was made (Unix seconds). `left_out`
    names the directories that the engine must be instructed to leave out. `hidden_allowed` is the
    rule `hidden`.

    Raises:
        DatadirUnfit: a backup of the datadir could not be complete, or could not be restored.
    """

    def __init__(self, datadir: Path, rules: Rules) -> None:
        self.began = time.time()
        self.left_out: tuple[str, ...] = ()
        self.hidden_allowed = rules.hidden
        self._datadir = datadir
        self._rules = rules
        self._rocksdb = False
        self._identities: dict[str, array[int]] = {}  # sorted digests, by directory
        for folder in _directories(datadir, rules.ignored):
            self._note(folder)

    def _note(self, folder: str) -> None:
        if _TAKEN.fullmatch(folder):
            raise DatadirUnfit(
                f"the schema {folder} has the name of a file that the engine creates or looks "
                "for, so a restore of both may fail",
                hint=f"move the tables of {folder} into a schema with another name, and drop "
                f"{folder}",
            )
        names = _names(self._datadir, folder)
        files = [
            TableFile(f"{folder}/{name}", inode) for name, inode in names or () if _counts(name)
        ]
        if folder == LOST_FOUND and not files:
            self.left_out += (folder,)
            return
        if names is None:
            cure = _READABLE if folder in _SYSTEM else _CURE
            raise DatadirUnfit(
                f"the directory {self._datadir / folder} can't be read",
                hint=_run_as(self._datadir) or cure,
            )
        if folder.startswith(".") and not self._rules.hidden and (files or not names):
            raise DatadirUnfit(
                f"the engine copies the directory {self._datadir / folder} as if it were a "
                "schema, and a backup can't be restored if a name in it begins with a dot",
                hint="move it out of the datadir, or name it in the server's ignore_db_dirs",
            )
        for file in files:
            self._check_name(file)
            self._check_readable(file)
        defined = {_stem(name) for name, _ in names if _suffix(name) == ".frm"}
        self._identities[folder] = array(
            "Q", sorted(_identity(one, defined=_stem(one.name) in defined) for one in files)
        )
        self._check_engines(folder, [name for name, _ in names])

    def _check_name(self, file: TableFile) -> None:
        if not self._rules.backticks and _suffix(file.path) in _DATA and "`" in file.table:
            raise DatadirUnfit(
                f"the table {file.table} has a backtick in its name, and mariadb-backup can copy "
                "such a table only if it is an InnoDB table",
                hint="rename the table, move it into a schema without a backtick, or alter it to "
                "InnoDB",
            )

    def _check_readable(self, file: TableFile) -> None:
        path = f"{self._datadir}/{file.path}"
        if not os.access(path, os.R_OK, effective_ids=True) and os.path.lexists(path):
            raise DatadirUnfit(
                f"the file {path} can't be read",
                hint=_run_as(self._datadir) or _READABLE,
            )

    def _check_engines(self, folder: str, names: list[str]) -> None:
        """Raise DatadirUnfit for a table with data neither in InnoDB nor in a copied file.

        Note also whether there are MyRocks tables.
        """
        stored = {_stem(name) for name in names if _suffix(name) in _DATA | _INNODB}
        for name in names:
            if _suffix(name) != ".frm" or _stem(name) in stored or name.startswith("#sql"):
                continue
            engine = _engine_of(self._datadir / folder / name)
            self._rocksdb |= engine == "ROCKSDB"
            if engine and engine.lower() not in _WHOLE | self._rules.accepted:
                table = TableFile(f"{folder}/{name}", 0).table
                raise DatadirUnfit(
                    f"the table {table} is of the engine {engine}, and no backup holds the data of "
                    "that engine",
                    hint=f"alter the table to another engine, or add {engine} to [engine] "
                    "uncopied_engines if its data may be missing in backups",
                )

    def lost(self, held: Held, reported: Held) -> Iterator[TableFile]:
        """Yield the files that have existed since the survey and are not in the stream.

        `held` returns True for a path that is in the stream. `reported` returns True for a path if
        the engine has reported that it could not copy the file.

        DDL deletes files and renames them. So a file is skipped if DDL has touched its table since
        the survey, unless the engine has reported the file.
        """
        for folder in _directories(self._datadir, self._rules.ignored):
            if folder in self.left_out:
                continue
            for name, inode in _names(self._datadir, folder) or ():
                file = TableFile(f"{folder}/{name}", inode)
                if _counts(name) and not held(file.path) and self._lasted(file, reported):
                    yield file

    def broken(self, definitions: Mapping[int, bytes]) -> Iterator[str]:
        """Yield the names of the tables of `.frm` files in a stream that lacks the tables' data.

        `definitions` are the paths of those files by their digests.

        A table is skipped if it has no data file in the datadir either and DDL has not touched it
        since the survey. Such a table is broken on the server, too.
        """
        unseen = set(definitions)
        for folder in _directories(self._datadir, self._rules.ignored):
            names = [name for name, _ in _names(self._datadir, folder) or ()]
            stored = {_stem(name) for name in names if _suffix(name) in _DATA}
            for name in names:
                path = f"{folder}/{name}"
                if name.endswith(".frm") and (digest := path_digest(os.fsencode(path))) in unseen:
                    unseen.remove(digest)
                    if _stem(name) in stored or self._touched(self._datadir / path):
                        yield TableFile(path, 0).table
        # These have another name by now, or were dropped.
        yield from (TableFile(os.fsdecode(definitions[one]), 0).table for one in unseen)

    def rocksdb_lost(self, held: Held) -> bool:
        """Return True if there are MyRocks tables but the stream has no MyRocks files."""
        return self._rocksdb and not any(map(held, _ROCKSDB))

    def _lasted(self, file: TableFile, reported: Held) -> bool:
        """Return True if the survey saw this file and DDL has not touched its table since then.

        The second condition does not apply to a file that the engine has reported.
        """
        defined = self._was_there(file, defined=True)
        if not defined and not self._was_there(file, defined=False):
            return False
        path = self._datadir / file.path
        born = birth_time(path)
        if born is None or born >= self.began:
            return False
        # MySQL 8 has no .frm. There the name, the inode and the birth time of a data file decide.
        if not defined and _suffix(file.name) in _DATA:
            return True
        return reported(file.path) or not self._touched(path)

    def _was_there(self, file: TableFile, *, defined: bool) -> bool:
        """Return True if the survey saw the file, together with a `.frm` of its table or without.

        `defined` selects which of the two is tested.
        """
        identities = self._identities.get(file.folder, ())
        identity = _identity(file, defined=defined)
        at = bisect_left(identities, identity)
        return at < len(identities) and identities[at] == identity

    def _touched(self, path: Path) -> bool:
        """Return True if DDL has changed the file's table since the survey.

        The change time of the `.frm` shows this, because only DDL writes that file. For a file
        that is not a data file, its own change time is used. A deleted file counts as changed.
        """
        definition = path
        if path.suffix in _DATA:
            definition = path.with_name(_stem(path.name) + ".frm")
        try:
            return definition.lstat().st_ctime >= self.began
        except FileNotFoundError:
            return True


def _run_as(datadir: Path) -> str | None:
    """Return the hint for a user that is neither root nor the datadir's owner.

    Return None for these two users.
    """
    owner = datadir.stat().st_uid
    if os.geteuid() in (0, owner):
        return None
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = f"with the number {owner}"
    return f"run this as root, or as the datadir's owner, the OS user {name}"


def birth_time(path: Path) -> float | None:
    """Return the time when a file was created, in seconds since 1970, from statx(2).

    Return 0 if the filesystem does not report it. Return None if statx fails, for example because
    the file was deleted.
    """
    answer = ctypes.create_string_buffer(256)
    where, flags, wanted = -100, 0x100, 0x800  # AT_FDCWD, AT_SYMLINK_NOFOLLOW, STATX_BTIME
    if _LIBC.statx(where, os.fsencode(path), flags, wanted, answer):
        return None
    if not int.from_bytes(answer.raw[:4], "little") & wanted:
        return 0.0
    seconds = int.from_bytes(answer.raw[80:88], "little", signed=True)
    return seconds + int.from_bytes(answer.raw[88:92], "little") / 1e9


def longest_path(datadir: Path, ignored: frozenset[str]) -> str:
    """Return the longest path of a file that is copied, as `schema/name`; "" without one."""
    paths = (
        f"{folder}/{name}"
        for folder in _directories(datadir, ignored)
        for name, _ in _names(datadir, folder) or ()
        if _counts(name)
    )
    return max(paths, key=lambda path: len(os.fsencode(path)), default="")


def _directories(datadir: Path, ignored: frozenset[str]) -> Iterator[str]:
    """Yield the names of the directories that the server and the engines treat as schemas."""
    with _scanned(datadir) as entries:
        for entry in entries:
            if entry.is_dir() and entry.name not in ignored:
                yield entry.name


def _scanned(datadir: Path) -> "os.ScandirIterator[str]":  # type: ignore[name-defined]
    try:
        return os.scandir(datadir)
    except OSError as error:
        raise DatadirUnfit(f"can't read the datadir {datadir}: {error.strerror}") from error


def _names(datadir: Path, folder: str) -> list[tuple[str, int]] | None:
    """Return the names and inodes of a directory's files, or None if it can't be read."""
    try:
        with os.scandir(datadir / folder) as entries:
            return [
                (entry.name, entry.inode())
                for entry in entries
                if not entry.is_dir(follow_symlinks=False)
            ]
    except FileNotFoundError:  # the schema was dropped in the meantime
        return []
    except OSError:
        return None


def _counts(name: str) -> bool:
    return _suffix(name) in _COPIED and not name.startswith("#sql")


def _suffix(name: str) -> str:
    return name[name.rfind(".") :] if "." in name else ""


def _stem(name: str) -> str:
    """Return the table's part of a file's name, which is `t` for a partition's `t#P#p0.MAD`."""
    stem = name[: name.rfind(".")]
    return re.split("#[Pp]#", stem, maxsplit=1)[0] if "#" in stem else stem


def _identity(file: TableFile, *, defined: bool) -> int:
    """Return a digest of a file's path, its inode, and the flag `defined`.

    `defined` is True if the file's table has a `.frm`.
    """
    return path_digest(os.fsencode(file.path) + b"\0%d\0%d" % (file.inode, defined))


def _decoded(name: str) -> str:
    """Decode the escapes of a file's name, such as `@002d`, which the server puts there."""
    return re.sub("@([0-9a-f]{4})", lambda found: chr(int(found[1], 16)), name)


def _engine_of(path: Path) -> str | None:
    """Return the engine that a `.frm` names.

    Return None for a view, and if the file was deleted in the meantime or can't be read.
    """
    try:
        with path.open("rb") as file:
            return table_engine(file.read(_FRM_BYTES))
    except OSError:
        return None
