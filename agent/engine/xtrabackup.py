"""The arguments, log lines and failures that only Percona XtraBackup and xbstream have.

The supported versions are 2.4, 8.0 and 8.4. Version 2.4.20 was tried with MySQL 5.7.32. For 8.0 and
8.4, the options, log lines and failures come from Percona's option references and source, of which
docs/engines.md names the pages.
"""

import logging
import math
import re
from dataclasses import dataclass

from agent.database.flavours import numbers
from agent.engine.common import CopyingEngine, EngineSettings
from agent.engine.runs import Cause
from agent.errors import (
    DatabaseDenied,
    DatabaseUnreachable,
    EngineFailed,
    EngineUnsupported,
    LockTimeout,
    RedoOverwritten,
)

log = logging.getLogger(__name__)

# The first release with --register-redo-log-consumer.
_CONSUMER_SINCE = (8, 0, 30)
_LATER_SECONDS = 5
_QUIETER = "back up at a quieter time or with a higher byte rate"
_REDO_LOST = (
    "the server overwrote its redo log before it was copied: raise innodb_redo_log_capacity "
    "(innodb_log_file_size before 8.0.30), set [engine] register_redo_log_consumer = true, or "
    f"{_QUIETER}"
)
# XtraBackup 2.4 copies MySQL 5.7 and earlier. These servers have neither innodb_redo_log_capacity
# nor redo log consumers.
_OLD_REDO_LOST = (
    "the server overwrote its redo log before it was copied: raise innodb_log_file_size, or "
    f"{_QUIETER}"
)
# The engine does not start FLUSH TABLES WITH READ LOCK while a query runs that has lasted longer
# than these seconds. While that statement waits for a query, each write to the query's tables waits
# for both. Such writes continue to wait after the engine has given up. With 60 here, waits of 89 s
# were seen, and with 2 waits of 0.06 s.
_LONG_QUERY_SECONDS = 2
# The error numbers are matched, because the server writes the texts of these errors in its own
# language. 1045 is also the error of a failed login, and the answer of MySQL 5.7 to STOP SLAVE
# without SUPER.
_DENIED = r"failed to execute query .*: (1044|1045|1142|1143|1227) \("


@dataclass(frozen=True, kw_only=True)
class XtraBackupSettings(EngineSettings):
    """The settings of XtraBackup, with the usual names of its programs.

    With `register_redo_log_consumer` the engine makes the server keep redo log that isn't copied
    yet. If the redo log is full, the server then delays its writes.
    """

    program: str = "xtrabackup"
    extractor: str = "xbstream"
    register_redo_log_consumer: bool = False


class XtraBackup(CopyingEngine):
    """The engine of MySQL and Percona Server."""

    name = "xtrabackup"
    group = "xtrabackup"
    # xbstream takes names that begin with a dot, and MyRocks needs one.
    takes_hidden_names = True
    escapes_names = True
    version_line = re.compile(r"\bversion (\S+) based on MySQL server")
    # The first form is that of 2.4, and of 8.0 before 8.0.28. The second form is that of the
    # server's own log, in later versions.
    completed = re.compile(
        r"(\d{6} \d\d:\d\d:\d\d|\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-]\d\d:\d\d) \d+ "
        r"\[Note\] \[MY-\d{6}\] \[Xtrabackup\]) completed OK!"
    )
    kept_lines = re.compile(
        r"\[ERROR\]|[Ee]rror:|denied|Failed to connect|missing required|[Uu]nsupported|"
        r"wrapped around|log block no|No space left|Errcode|[Oo][Ss] errno|Too many open files|"
        r"Unable to obtain lock|did not become zero|gone away|Lost connection|Lock wait timeout|"
        r"optimized \(without redo logging\)|cannot open file|Failed to copy|Can't open|"
        r"failed to execute query|can't find master key|can't be decrypted"
    )
    causes = (
        Cause(
            re.compile(
                r"log block numbers mismatch|log has wrapped around|could not find redo log file|"
                r"redo log files have been removed"
            ),
            RedoOverwritten,
            _REDO_LOST,
        ),
        Cause(
            re.compile(r"[Uu]nsupported server version|[Uu]nsupported redo log format"),
            EngineUnsupported,
        ),
        Cause(
            re.compile(r"An optimized \(without redo logging\) DDL operation"),
            EngineFailed,
            "an index was built or a table rebuilt in place while the backup ran: run no ADD "
            "INDEX, OPTIMIZE or in-place ALTER TABLE during a backup, and back up again",
        ),
        Cause(
            re.compile(
                r"missing required privilege|Access denied; you need|command denied to user|"
                + _DENIED
            ),
            DatabaseDenied,
            "grant the agent's database user the privileges that docs/engines.md lists",
        ),
        Cause(re.compile(r"Failed to connect.*Access denied"), DatabaseDenied),
        Cause(re.compile(r"Failed to connect to MySQL server"), DatabaseUnreachable),
        Cause(
            re.compile(r"requires GTID enabled or --safe-slave-backup"),
            EngineFailed,
            "set [engine] safe_slave_backup = true, or gtid_mode = ON on the server",
        ),
        Cause(
            re.compile(r"open_temp_tables did not become zero"),
            EngineFailed,
            "the replica had open temporary tables all the time: use row-based replication, or try "
            "again later",
        ),
        Cause(
            re.compile(r"[Ss]erver has gone away|Lost connection to|query .*: 20(06|13) \("),
            DatabaseUnreachable,
            "the server ended or closed the engine's connection: see the server's error log",
        ),
        Cause(
            re.compile(r"Lock wait timeout exceeded|Unable to obtain lock|query .*: 1205 \("),
            LockTimeout,
        ),
        Cause(
            re.compile(r"Encryption can't find master key|can't be decrypted"),
            EngineFailed,
            "the engine needs the server's keyring for encrypted tablespaces: name it in [engine] "
            "options (--keyring-file-data=..., --component-keyring-config=...)",
        ),
        Cause(
            re.compile(r"Too many open files"),
            EngineFailed,
            "raise LimitNOFILE of the agent's systemd unit",
        ),
    )

    def __init__(self, settings: XtraBackupSettings) -> None:
        super().__init__(settings)
        self._register_consumer = settings.register_redo_log_consumer
        self._stated = ""

    def version(self) -> str:
        """Return the version that the program states, and remember it."""
        self._stated = super().version()
        return self._stated

    def _causes(self) -> tuple[Cause, ...]:
        if numbers(self._stated)[:1] != (2,):
            return self.causes
        return tuple(
            one._replace(hint=_OLD_REDO_LOST) if one.error is RedoOverwritten else one
            for one in self.causes
        )

    def _backup_options(self) -> list[str]:
        wait = math.ceil(self._settings.lock_wait_seconds)
        argv = [f"--ftwrl-wait-timeout={wait}", f"--ftwrl-wait-threshold={_LONG_QUERY_SECONDS}"]
        if self._settings.datadir is not None:
            # Without this option, the datadir of an option file would replace the server's own.
            argv += [f"--datadir={self._settings.datadir}"]
        # These limits end a little later than that of operations/backup/lock_watch.py, which can
        # name the holder of the lock.
        late = wait + _LATER_SECONDS
        argv += [f"--lock-ddl-timeout={late}", f"--backup-lock-timeout={late}"]
        # The version check contacts a host of Percona to find newer releases.
        argv += ["--no-version-check"]
        if self._register_consumer and self._has_consumer():
            argv += ["--register-redo-log-consumer"]
        return argv

    def _has_consumer(self) -> bool:
        """Return True if this version has --register-redo-log-consumer, or else log a warning."""
        version = self._stated or self.version()
        if numbers(version) >= _CONSUMER_SINCE:
            return True
        log.warning(
            "xtrabackup %s has no --register-redo-log-consumer: the backup runs without it", version
        )
        return False

    def _prepare_options(self, *, last: bool) -> list[str]:
        # Without --apply-log-only, a prepare rolls back open transactions. An incremental backup
        # that continues such a transaction could then not be applied.
        return [] if last else ["--apply-log-only"]
