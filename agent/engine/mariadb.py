"""mariadb-backup and mbstream: what is theirs alone of arguments, log and failures.

Options as `mariadb-backup --help` of 10.11 lists them.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from agent.engine.common import CopyingEngine, EngineSettings
from agent.engine.runs import Cause
from agent.errors import (
    DatabaseDenied,
    DatabaseUnreachable,
    EngineFailed,
    LockTimeout,
    RedoOverwritten,
)

# INSTALL_PLUGINDIR of the layouts DEB, RPM, and STANDALONE in cmake/install_layout.cmake, and
# what Fedora and openSUSE make of it.
_PLUGIN_PLACES = (
    "lib/mysql/plugin",
    "lib64/mysql/plugin",
    "lib64/mariadb/plugin",
    "lib/mariadb/plugin",
    "lib/plugin",
)
_GRANTS = (
    "grant the agent's database user RELOAD, PROCESS, BINLOG MONITOR and REPLICA MONITOR, and "
    "REPLICATION SLAVE ADMIN where [engine] safe_slave_backup is on"
)


@dataclass(frozen=True, kw_only=True)
class MariadbBackupSettings(EngineSettings):
    """The programs by their usual names."""

    program: str = "mariadb-backup"
    extractor: str = "mbstream"


class MariadbBackup(CopyingEngine):
    """The engine of MariaDB servers."""

    name = "mariadb-backup"
    group = "mariadb-backup"
    stated = re.compile(r"based on MariaDB server (\S+)")
    completed = re.compile(r"\[00\] \d{4}-\d\d-\d\d \d\d:\d\d:\d\d completed OK!")
    telling = re.compile(
        r"ERROR|Error:|denied|Failed to connect|missing required|only able to copy|Can't|"
        r"impossible|No space left|xtrabackup_copy_datafile|Errcode|Too many open files|"
        r"gone away|Lost connection|Lock wait timeout|Unable to obtain lock|Permission denied|"
        # extra/mariabackup/aria_backup_client.cc, common_engine.cc, backup_copy.cc, xtrabackup.cc
        r"Error (\d+ )?on|cannot (open|stat)|Failed to copy|table was dropped|aria_\w+ .*failed|"
        r"Aria .* error|Aria log file .* failed|corruption is ignored|"
        # ddl_log.cc
        r"Failed to re-copy|Failed to (remove|rename) |DDL log file "
    )
    # With these it goes on, and a table that lasts is incomplete. It also goes on after it couldn't
    # open or lock a table, which may have been dropped; the proof by names finds out. Where it
    # gives up the server's list of DDL, tables that were altered meanwhile have their old rows.
    losses = re.compile(
        r"error: aria_(read|write)\b.*failed|Aria log file .*(copy error|open failed)|"
        r"Aria lsn store read error|LSN write error for aria|Failed to re-copy |"
        r"\s*WARNING!!! The corruption is ignored|"
        r"Failed to (remove|rename) .*\.$|DDL log file .*(open|read) "
    )
    # new_table() of storage/maria/ma_recovery.c: that table stays as it was, and the rest goes on.
    # Not `may be crashed`: the table has become one without a log since, so all of it is in its
    # files. Nor `is crashed`: so it is on the server. Names are those of files, without blanks.
    unapplied = re.compile(
        r"\*\*\*WARNING: ((?!\./[^/]+/#sql)\S+ (could not be opened|may be corrupted)|"
        r"Can't read length of file)"
    )
    causes = (
        Cause(
            re.compile(r"Was only able to copy log"),
            RedoOverwritten,
            "the server overwrote its redo log before it was copied: raise "
            "innodb_log_file_size, or back up at a quieter time or with a higher byte rate",
        ),
        Cause(
            re.compile(r"Access denied; you need|missing required privilege"),
            DatabaseDenied,
            _GRANTS,
        ),
        Cause(re.compile(r"Failed to connect.*Access denied"), DatabaseDenied),
        Cause(re.compile(r"Failed to connect to"), DatabaseUnreachable),
        Cause(
            re.compile(r"[Ss]erver has gone away|Lost connection to"),
            DatabaseUnreachable,
            "the server ended or closed the engine's connection: see the server's error log",
        ),
        Cause(re.compile(r"Lock wait timeout exceeded|Unable to obtain lock"), LockTimeout),
        Cause(
            re.compile(r"query BACKUP LOCK \.\.\.' at line \d"),
            EngineFailed,
            "rename the table: mariadb-backup can't copy a table that isn't InnoDB's and has a "
            "backtick in its name or its schema's",
        ),
        Cause(
            re.compile(r"Too many open files"),
            EngineFailed,
            "raise LimitNOFILE of the agent's systemd unit",
        ),
        Cause(
            re.compile(
                r"cannot open file|Failed to copy file|Can't open (dir|datafile)|"
                r"Error 13 on file|[Ee]rrno:? 13\b|Aria log file .* open failed"
            ),
            EngineFailed,
            "make the named file or directory readable for the OS user that runs the engine (chown "
            "it to the server's own user), or remove it if it is no table's",
        ),
    )

    def _backup_options(self) -> list[str]:
        # Not --startup-wait-timeout: it makes the engine wait for a moment without any running
        # query, which a busy server never has, and leaves the later stages without a limit.
        # operations/lock_watch.py looks after all of them.
        return []

    def _prepare_options(self, *, last: bool) -> list[str]:
        """The installation's plugins; mariadb-backup needs no --apply-log-only within a chain.

        Without a directory it takes the one that the backup's own option file names, and
        with neither it loads plugins from the root folder.
        """
        return [f"--plugin-dir={plugin_dir(self._settings.program)}"]


def plugin_dir(program: str) -> Path:
    """Return where the installation that `program` belongs to keeps its plugins.

    One of the layouts of MariaDB's packages and archives; the first of them if none is there.
    """
    prefix = Path(shutil.which(program) or program).resolve().parent.parent
    places = [prefix / place for place in _PLUGIN_PLACES]
    return next((place for place in places if place.is_dir()), places[0])
