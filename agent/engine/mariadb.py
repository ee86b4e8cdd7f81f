"""mariadb-backup and mbstream: what is theirs alone of arguments, log and failures.

Options as `mariadb-backup --help` of 10.11 lists them.
"""

import re
from dataclasses import dataclass

from agent.engine.common import CopyingEngine, EngineSettings
from agent.engine.runs import Cause
from agent.errors import DatabaseDenied, DatabaseUnreachable, EngineFailed

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
        r"impossible|No space left|xtrabackup_copy_datafile|Errcode|Too many open files"
    )
    causes = (
        Cause(
            re.compile(r"Was only able to copy log"),
            EngineFailed,
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
            re.compile(r"BACKUP STAGE .*Lock wait timeout exceeded"),
            EngineFailed,
            "a session holds LOCK TABLES: find it with SHOW PROCESSLIST and end it",
        ),
        Cause(
            re.compile(r"Too many open files"),
            EngineFailed,
            "raise LimitNOFILE of the agent's systemd unit",
        ),
    )

    def _backup_options(self) -> list[str]:
        return [f"--startup-wait-timeout={self._settings.lock_wait_seconds}"]

    def _prepare_options(self, *, last: bool) -> list[str]:
        """None: mariadb-backup needs no --apply-log-only between the links of a chain."""
        return []
