"""The arguments, log lines and failures that only mariadb-backup and mbstream have.

The options are those that `mariadb-backup --help` of 10.11 lists.
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

# INSTALL_PLUGINDIR of the layouts DEB, RPM, and STANDALONE in cmake/install_layout.cmake, and the
# directories that Fedora and openSUSE use instead.
_PLUGIN_PLACES = (
    "lib/mysql/plugin",
    "lib64/mysql/plugin",
    "lib64/mariadb/plugin",
    "lib/mariadb/plugin",
    "lib/plugin",
)
_GRANTS = (
    "grant the agent's database user RELOAD, PROCESS, BINLOG MONITOR and REPLICA MONITOR, and "
    "REPLICATION SLAVE ADMIN if [engine] safe_slave_backup is true"
)


@dataclass(frozen=True, kw_only=True)
class MariadbBackupSettings(EngineSettings):
    """The settings of mariadb-backup, with the usual names of its programs."""

    program: str = "mariadb-backup"
    extractor: str = "mbstream"


class MariadbBackup(CopyingEngine):
    """The engine of MariaDB servers."""

    name = "mariadb-backup"
    group = "mariadb-backup"
    takes_hidden_names = False
    # It locks tables one by one, and doesn't escape their names.
    escapes_names = False
    version_line = re.compile(r"based on MariaDB server (\S+)")
    completed = re.compile(r"\[00\] \d{4}-\d\d-\d\d \d\d:\d\d:\d\d completed OK!")
    kept_lines = re.compile(
        r"ERROR|Error:|denied|Failed to connect|missing required|only able to copy|Can't|"
        r"impossible|No space left|xtrabackup_copy_datafile|Errcode|Too many open files|"
        r"gone away|Lost connection|Lock wait timeout|Unable to obtain lock|Permission denied|"
        # extra/mariabackup/aria_backup_client.cc, common_engine.cc, backup_copy.cc, xtrabackup.cc
        r"Error (\d+ )?on|cannot (open|stat)|Failed to copy|table was dropped|aria_\w+ .*failed|"
        r"Aria .* error|Aria log file .* failed|corruption is ignored|"
        # ddl_log.cc
        r"Failed to re-copy|Failed to (remove|rename) |DDL log file "
    )
    # The engine continues after these messages, and the copy of an existing table is incomplete.
    # The engine also continues if it can't open or lock a table. Such a table may have been
    # dropped, and the proof by names decides that. If the engine gives up the server's list of DDL
    # statements, tables that were altered during the run have their old rows.
    backup_losses = re.compile(
        r"error: aria_(read|write)\b.*failed|Aria log file .*(copy error|open failed)|"
        r"Aria lsn store read error|LSN write error for aria|Failed to re-copy |"
        r"\s*WARNING!!! The corruption is ignored|"
        r"Failed to (remove|rename) .*\.$|DDL log file .*(open|read) "
    )
    # The messages are those of new_table() in storage/maria/ma_recovery.c. The named table stays as
    # it was copied, and the recovery of the other tables continues. `may be crashed` is left out,
    # because that table has since become one without a log, so all its rows are in its files.
    # `is crashed` is left out, because the table is crashed on the server, too. Names are file
    # names, without blanks.
    prepare_losses = re.compile(
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
            "backtick in its own name or in the name of its schema",
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
            "it to the server's own user), or remove it if it belongs to no table",
        ),
    )

    def _backup_options(self) -> list[str]:
        # Don't use --startup-wait-timeout. It makes the engine wait for a moment without any
        # running query, and a busy server never has such a moment. It also leaves the later stages
        # without a time limit. operations/backup/lock_watch.py limits all of them.
        return []

    def _prepare_options(self, *, last: bool) -> list[str]:
        """Return --plugin-dir with the installation's plugin directory.

        Without this option, mariadb-backup uses the directory that the backup's own option file
        names. If that names none either, it loads plugins from the root directory `/`.
        mariadb-backup needs no --apply-log-only within a chain.
        """
        return [f"--plugin-dir={plugin_dir(self._settings.program)}"]


def plugin_dir(program: str) -> Path:
    """Return the plugin directory of the installation that `program` belongs to.

    It is one of the directories that MariaDB's packages and archives use, or the first of them if
    none exists.
    """
    prefix = Path(shutil.which(program) or program).resolve().parent.parent
    places = [prefix / place for place in _PLUGIN_PLACES]
    return next((place for place in places if place.is_dir()), places[0])
