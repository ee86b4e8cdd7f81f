"""The table files in a datadir: what a backup must hold beside InnoDB's own tablespaces.

The server has no list of these files that an account without rights on tables could read. So
they are listed by name before the run, and looked for in the stream after it.
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
# What the engines copy by name: extra/mariabackup/backup_copy.cc of MariaDB,
# storage/innobase/xtrabackup/src/backup_copy.cc of Percona. InnoDB's own files are proved by
# number; a stray one is nobody's table.
_DATA: Final = frozenset({".MYD", ".MYI", ".MAD", ".MAI", ".MRG", ".ARM", ".ARZ", ".CSM", ".CSV"})
_COPIED: Final = _DATA | {".frm", ".TRG", ".TRN", ".opt", ".par", ".sdi"}
_INNODB: Final = frozenset({".ibd", ".isl"})
# Names at the top of a stream, or of a prepared backup, that are files; the engine also looks for
# undo tablespaces and for a list of corrupted pages that aren't there.
_TAKEN: Final = re.compile(
    r"(xtrabackup|mariadb_backup)_(checkpoints|info|binlog_info|binlog_pos_innodb|slave_info|"
    r"galera_info|logfile|binary|master_key_id|tablespaces|keys)|"
    r"innodb_corrupted_pages|undo[01]\d\d|"
    r"backup-my\.cnf|ibdata\d+|ib_logfile\d+|ib_buffer_pool|ib_lru_dump|aria_log_control"
)
# Engines whose tables are all in the files above, in InnoDB's or MyRocks' own, or not in this
# server: a table of FEDERATED (FederatedX has that name, too) or SPIDER is a definition alone.
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

# Nobody moves these out of a datadir, or has the server ignore them.
_SYSTEM: Final = frozenset({"mysql", "performance_schema", "sys"})
_READABLE: Final = "make it readable for the datadir's owner, who runs server and engine"

_LIBC: Final = ctypes.CDLL(None)

Held = Callable[[str], bool]


class TableFile(NamedTuple):
    """One file by its name in a stream, `schema/table.MAI`."""

    path: str
    inode: int

    @property
    def folder(self) -> str:
        """The directory's name."""
        return self.path.partition("/")[0]

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.path.partition("/")[2]

    @property
    def table(self) -> str:
        """The table as SQL names it, without quotes; a schema's own file has none."""
        return f"{_decoded(self.folder)}.{_decoded(_stem(self.name))}"


def named(path: str) -> str:
    """Return `the table d.t` for the name of its file, `the schema d` for that of a directory."""
    return (
        f"the table {TableFile(path, 0).table}" if "/" in path else f"the schema {_decoded(path)}"
    )


class Rules(NamedTuple):
    """What may be in a datadir: `ignored` directories, and names that begin with a dot.

    Tables of the engines in `accepted` (lower case) may be left without their data. `backticks`
    may be in the names of tables that aren't InnoDB's.
    """

    ignored: frozenset[str] = frozenset()
    hidden: bool = False
    accepted: frozenset[str] = frozenset()
    backticks: bool = False


class Survey:
    """The table files of a datadir as they were when this was made.

    It keeps 8 bytes a file, and needs some 400 for each file of one directory at a time.
    `left_out` names the directories that the engine has to be told to leave out. DatadirUnfit
    if a backup of that datadir can't be made whole, or not be restored.
    """

    def __init__(self, datadir: Path, rules: Rules) -> None:
        self.began = time.time()
        self.left_out: tuple[str, ...] = ()
        self.hidden_allowed = rules.hidden
        self._datadir = datadir
        self._rules = rules
        self._rocksdb = False
        self._identities: dict[str, array[int]] = {}  # sorted, by directory
        for folder in _directories(datadir, rules.ignored):
            self._note(folder)

    def _note(self, folder: str) -> None:
        if _TAKEN.fullmatch(folder):
            raise DatadirUnfit(
                f"the schema {folder} has the name of a file that the engine makes or looks for, "
                "so that no backup of both is sure to be restored",
                hint=f"move the tables of {folder} into a schema with another name, and drop it",
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
                "schema, and no backup with a name that begins with a dot can be restored",
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
                "none such that isn't InnoDB's",
                hint="rename the table, or move it into a schema without a backtick; or alter it "
                "to InnoDB",
            )

    def _check_readable(self, file: TableFile) -> None:
        path = f"{self._datadir}/{file.path}"
        if not os.access(path, os.R_OK, effective_ids=True) and os.path.lexists(path):
            raise DatadirUnfit(
                f"the file {path} can't be read",
                hint=_run_as(self._datadir) or _READABLE,
            )

    def _check_engines(self, folder: str, names: list[str]) -> None:
        """Refuse a table whose data is neither InnoDB's nor in a file that is copied."""
        stored = {_stem(name) for name in names if _suffix(name) in _DATA | _INNODB}
        for name in names:
            if _suffix(name) != ".frm" or _stem(name) in stored or name.startswith("#sql"):
                continue
            engine = _engine_of(self._datadir / folder / name)
            self._rocksdb |= engine == "ROCKSDB"
            if engine and engine.lower() not in _WHOLE | self._rules.accepted:
                table = TableFile(f"{folder}/{name}", 0).table
                raise DatadirUnfit(
                    f"the table {table} is of the engine {engine}, whose data no backup holds",
                    hint=f"alter it to another engine, or add {engine} to [engine] "
                    "uncopied_engines if its data may be missing in backups",
                )

    def lost(self, held: Held, told: Held) -> Iterator[TableFile]:
        """Yield the files that lasted since the survey and aren't `held` by the stream.

        DDL takes files away or gives them other names, so those whose table it has touched are
        passed over unless the engine has `told` that it couldn't copy them.
        """
        for folder in _directories(self._datadir, self._rules.ignored):
            if folder in self.left_out:
                continue
            for name, inode in _names(self._datadir, folder) or ():
                file = TableFile(f"{folder}/{name}", inode)
                if _counts(name) and not held(file.path) and self._lasted(file, told):
                    yield file

    def broken(self, definitions: Mapping[int, bytes]) -> Iterator[str]:
        """Yield the tables of these `.frm` files, whose keys are the digests of their paths.

        One that has no data here either is broken on the server, too, and passed over.
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
        # they have another name by now, or are gone
        yield from (TableFile(os.fsdecode(definitions[one]), 0).table for one in unseen)

    def rocksdb_lost(self, held: Held) -> bool:
        """Tell whether there are MyRocks tables, and the stream has no MyRocks."""
        return self._rocksdb and not any(map(held, _ROCKSDB))

    def _lasted(self, file: TableFile, told: Held) -> bool:
        defined = self._was_there(file, defined=True)
        if not defined and not self._was_there(file, defined=False):
            return False
        path = self._datadir / file.path
        born = birth_time(path)
        if born is None or born >= self.began:
            return False
        # MySQL 8 has no .frm: there the name, inode and birth time of a file of data decide
        if not defined and _suffix(file.name) in _DATA:
            return True
        return told(file.path) or not self._touched(path)

    def _was_there(self, file: TableFile, *, defined: bool) -> bool:
        """Tell whether the survey saw the file, with a `.frm` of its table or without."""
        identities = self._identities.get(file.folder, ())
        identity = _identity(file, defined=defined)
        at = bisect_left(identities, identity)
        return at < len(identities) and identities[at] == identity

    def _touched(self, path: Path) -> bool:
        """Tell whether DDL has changed the table since the survey, by what only DDL writes."""
        definition = path
        if path.suffix in _DATA:
            definition = path.with_name(_stem(path.name) + ".frm")
        try:
            return definition.lstat().st_ctime >= self.began
        except FileNotFoundError:
            return True


def _run_as(datadir: Path) -> str | None:
    """Return what to do for who is neither root nor the datadir's owner; None for these two."""
    owner = datadir.stat().st_uid
    if os.geteuid() in (0, owner):
        return None
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = f"with number {owner}"
    return f"run this as root, or as the datadir's owner, the OS user {name}"


def birth_time(path: Path) -> float | None:
    """Return when a file was made (statx(2)), 0 if its filesystem doesn't say; None if gone."""
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
    """Yield the names of the directories that the server and the engines take for schemas."""
    with _scanned(datadir) as entries:
        for entry in entries:
            if entry.is_dir() and entry.name not in ignored:
                yield entry.name


def _scanned(datadir: Path) -> "os.ScandirIterator[str]":  # type: ignore[name-defined]
    try:
        return os.scandir(datadir)
    except OSError as error:
        raise DatadirUnfit(f"can't read {datadir}: {error.strerror}") from error


def _names(datadir: Path, folder: str) -> list[tuple[str, int]] | None:
    """Return the names and inodes of a directory's files; None if it can't be read."""
    try:
        with os.scandir(datadir / folder) as entries:
            return [
                (entry.name, entry.inode())
                for entry in entries
                if not entry.is_dir(follow_symlinks=False)
            ]
    except FileNotFoundError:  # dropped meanwhile
        return []
    except OSError:
        return None


def _counts(name: str) -> bool:
    return _suffix(name) in _COPIED and not name.startswith("#sql")


def _suffix(name: str) -> str:
    return name[name.rfind(".") :] if "." in name else ""


def _stem(name: str) -> str:
    """Return the table's part of a file's name; a partition's file is `t#P#p0.MAD`."""
    stem = name[: name.rfind(".")]
    return re.split("#[Pp]#", stem, maxsplit=1)[0] if "#" in stem else stem


def _identity(file: TableFile, *, defined: bool) -> int:
    """Return a digest of a file, and of whether its table is `defined` by a `.frm`."""
    return path_digest(os.fsencode(file.path) + b"\0%d\0%d" % (file.inode, defined))


def _decoded(name: str) -> str:
    """Return a name without the escapes that the server gives it in a file's name."""
    return re.sub("@([0-9a-f]{4})", lambda found: chr(int(found[1], 16)), name)


def _engine_of(path: Path) -> str | None:
    """Return the engine that a `.frm` names; None for a view, or if it is gone meanwhile."""
    try:
        with path.open("rb") as file:
            return table_engine(file.read(_FRM_BYTES))
    except OSError:
        return None
