"""mariadb-backup and mbstream: their command lines, their secrets, and their failures.

Options as `mariadb-backup --help` of 10.11 lists them.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from agent.engine.process import Child
from agent.engine.runs import BackupRun, Cause, ExtractRun, PrepareRun
from agent.errors import (
    ConfigInvalid,
    DatabaseDenied,
    DatabaseUnreachable,
    EngineError,
    EngineFailed,
)

_SETTING = "[engine] program"
_EXTRACTOR = "[engine] extractor"
_VERSION_SECONDS = 10.0
_COMPLETED = re.compile(r"\[00\] \d{4}-\d\d-\d\d \d\d:\d\d:\d\d completed OK!")
_TELLING = re.compile(
    r"ERROR|Error:|denied|Failed to connect|missing required|only able to copy|Can't|"
    r"impossible|No space left|xtrabackup_copy_datafile|Errcode|Too many open files"
)
_GRANTS = "grant the agent's database user RELOAD, PROCESS, BINLOG MONITOR and REPLICA MONITOR"
_CAUSES = (
    Cause(
        re.compile(r"Was only able to copy log"),
        EngineFailed,
        "the server overwrote its redo log before it was copied: raise innodb_log_file_size,"
        " or back up at a quieter time or with a higher byte rate",
    ),
    Cause(
        re.compile(r"Access denied; you need|missing required privilege"), DatabaseDenied, _GRANTS
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
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b"}


@dataclass(frozen=True)
class MariadbBackupSettings:
    """How to run the programs and reach the server; times in the unit that the name says.

    `parallel` is threads that read tables. A short `log_copy_interval_ms` matters: the
    engine's default of 1000 holds the commit lock for up to a second at the end of a run.
    """

    socket: Path
    user: str
    password: str = field(repr=False)
    program: str = "mariadb-backup"
    extractor: str = "mbstream"
    parallel: int = 2
    log_copy_interval_ms: int = 20
    open_files_limit: int = 65_535
    lock_wait_seconds: int = 300
    niceness: int = 10
    grace_seconds: float = 3.0


class MariadbBackup:
    """The engine of MariaDB servers."""

    name = "mariadb-backup"

    def __init__(self, settings: MariadbBackupSettings) -> None:
        self._settings = settings

    def version(self) -> str:
        """The version that mariadb-backup states, such as `10.11.6-MariaDB`."""
        argv = [self._settings.program, "--version"]
        with Child(argv, setting=_SETTING) as child:
            child.wait(_VERSION_SECONDS)
        # it goes to standard error
        found = re.search(r"server (\S+)", "\n".join(child.log.lines()))
        if found is None:
            raise EngineFailed(f"{self._settings.program} --version doesn't state a version")
        return found[1]

    def start_backup(self, workdir: Path, from_lsn: int | None) -> BackupRun:
        """Start streaming; the password goes by a 0600 file in `workdir`, removed at the end.

        The parent's `from_lsn` has to be checked against the server's own LSN before: the
        engine takes one from the future, exits 0 and says `completed OK!`.
        """
        secret_file = workdir / "engine.cnf"
        _write_options(secret_file, self._settings)
        argv = self._backup_argv(secret_file, workdir, from_lsn)
        try:
            child = self._child(argv, stdout=True, keep=_TELLING)
        except EngineError:
            secret_file.unlink()
            raise
        return BackupRun(child, secret_file, _COMPLETED, _CAUSES)

    def extract(self, folder: Path) -> ExtractRun:
        """Start `mbstream -x` into `folder`."""
        argv = [self._settings.extractor, "-x", "-C", str(folder)]
        return ExtractRun(self._child(argv, setting=_EXTRACTOR, stdin=True))

    def prepare(self, target: Path, incremental: Path | None, memory_bytes: int) -> PrepareRun:
        """Start `--prepare`; mariadb-backup needs no --apply-log-only between the links."""
        argv = [self._settings.program, "--prepare", f"--target-dir={target}"]
        argv += [f"--use-memory={memory_bytes}"]
        argv += [f"--incremental-dir={incremental}"] if incremental is not None else []
        return PrepareRun(self._child(argv, keep=_TELLING), _COMPLETED)

    def _backup_argv(self, secret_file: Path, workdir: Path, from_lsn: int | None) -> list[str]:
        settings = self._settings
        # the option file is only honoured as the first argument
        argv = [settings.program, f"--defaults-extra-file={secret_file}", "--backup"]
        argv += ["--stream=xbstream", f"--target-dir={workdir / 'target'}"]
        argv += [f"--parallel={settings.parallel}"]
        argv += [f"--log-copy-interval={settings.log_copy_interval_ms}"]
        argv += [f"--open-files-limit={settings.open_files_limit}"]
        argv += [f"--startup-wait-timeout={settings.lock_wait_seconds}"]
        # both are ignored, with a line in the log, where the server has no such position
        argv += ["--slave-info", "--galera-info"]
        argv += [f"--incremental-lsn={from_lsn}"] if from_lsn is not None else []
        return argv

    def _child(
        self,
        argv: list[str],
        *,
        setting: str = _SETTING,
        stdin: bool = False,
        stdout: bool = False,
        keep: re.Pattern[str] | None = None,
    ) -> Child:
        return Child(
            argv,
            setting=setting,
            stdin=stdin,
            stdout=stdout,
            keep=keep,
            niceness=self._settings.niceness,
            grace=self._settings.grace_seconds,
        )


def quote_option(value: str) -> str:
    """`value` as an option file wants it, whatever it holds; ConfigInvalid for a NUL."""
    if "\0" in value:
        raise ConfigInvalid("the database user's name or password holds a NUL byte")
    return '"' + "".join(_ESCAPES.get(char, char) for char in value) + '"'


def _write_options(path: Path, settings: MariadbBackupSettings) -> None:
    options = {
        "user": settings.user,
        "password": settings.password,
        "socket": str(settings.socket),
    }
    lines = [f"{name}={quote_option(value)}\n" for name, value in options.items()]
    try:
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write("[mariadb-backup]\n" + "".join(lines))
    except OSError as error:
        raise EngineFailed(
            f"can't write the engine's option file {path}: {error.strerror}",
            hint="check the free space and permissions of [agent] state_folder",
        ) from error
