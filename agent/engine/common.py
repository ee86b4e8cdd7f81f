"""The code that all engines share, for option files, arguments, versions and program starts."""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

from agent.engine.loan import LentWorkdir
from agent.engine.options import options_of
from agent.engine.process import Child
from agent.engine.runs import BackupRun, Cause, ExtractRun, PrepareRun
from agent.errors import ConfigInvalid, EngineFailed, PrepareFailed
from agent.machine.os_user import OsUser, owner_of

_SETTING = "[engine] program"
_EXTRACTOR = "[engine] extractor"
_OPTION_FILE = "engine.cnf"
_VERSION_SECONDS = 10.0
_NO_KEY = (
    "the backup is encrypted by the database server, and its keys are not here: put the server's "
    "key file or keyring on this machine, readable for the user that restores, and restore again. "
    "MariaDB's key file belongs at the path that file_key_management_filename in backup-my.cnf "
    "names"
)
_PREPARE_CAUSES = (
    Cause(
        re.compile(
            r"as a ENCRYPTION failed|encryption key version|key management plugin was not found|"
            r"can't find master key|can't be decrypted|cannot be decrypted"
        ),
        PrepareFailed,
        _NO_KEY,
    ),
    Cause(
        re.compile(r"Malformed log record|Missing FILE_CHECKPOINT|Log scan aborted"),
        PrepareFailed,
        "the redo log can't be read. If the database server encrypts it, check that the key file "
        "or keyring on this machine is that server's. If not, restore again, or restore an "
        "earlier backup",
    ),
    # The engine reads the status of the path to which a tablespace was renamed before its drop.
    Cause(
        re.compile(r"Operating system error number 13\b"),
        PrepareFailed,
        "most likely a table with a DATA DIRECTORY was truncated or rebuilt shortly before the "
        "backup, and the engine looks for its former file there, but the restore's OS user may not "
        "enter that directory: restore on a machine without it, or into a directory of the "
        "server's OS user, or let the user enter it (chmod o+x)",
    ),
)
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b"}


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """The settings to run the programs and to reach the server.

    The name of a time states its unit. `grace_seconds` are the seconds between SIGINT and SIGKILL.

    `parallel` is the number of threads that read tables. A short `log_copy_interval_ms` matters:
    with the engines' default of 1000, a run holds the commit lock for up to a second at its end.
    `safe_slave_backup` stops a replica's SQL thread during the run. `environment` is added to the
    environment of the programs. `options` are the options of [engine] options, already checked.
    `datadir` is the server's, and None until it is known. `run_as` is the OS user that the
    programs run as, and None means this process's own user. `left_out` are directories in the
    datadir that aren't schemas and must not be copied.
    """

    socket: Path
    user: str
    password: str = field(repr=False)
    program: str
    extractor: str
    parallel: int = 2
    log_copy_interval_ms: int = 20
    open_files_limit: int = 65_535
    lock_wait_seconds: float = 60.0
    silent_seconds: float = 3600.0
    safe_slave_backup: bool = False
    safe_slave_backup_seconds: int = 300
    niceness: int = 10
    grace_seconds: float = 3.0
    environment: Mapping[str, str] = field(default_factory=dict)
    options: Sequence[str] = ()
    datadir: Path | None = None
    run_as: OsUser | None = None
    left_out: tuple[str, ...] = ()


class CopyingEngine(ABC):
    """The base class of all engines.

    A subclass sets the class variables, and adds the options that only its engine has.
    """

    name: ClassVar[str]
    group: ClassVar[str]
    """The group of the option file that the program reads."""
    takes_hidden_names: ClassVar[bool]
    escapes_names: ClassVar[bool]
    completed: ClassVar[re.Pattern[str]]
    """The pattern of the program's whole closing line."""
    kept_lines: ClassVar[re.Pattern[str]]
    """The pattern of log lines that are kept because they may explain a failure."""
    causes: ClassVar[tuple[Cause, ...]]
    backup_losses: ClassVar[re.Pattern[str]] = re.compile("(?!)")
    """The pattern of the start of a backup's messages that mean lost data.

    The data are lost even if the program reports success.
    """
    prepare_losses: ClassVar[re.Pattern[str]] = re.compile("(?!)")
    """The pattern of the start of a prepare's messages that mean lost data."""
    version_line: ClassVar[re.Pattern[str]]
    """The pattern of the output of `--version`. Its first group is the version."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings

    @property
    def extractor(self) -> str:
        return self._settings.extractor

    @abstractmethod
    def _backup_options(self) -> Sequence[str]:
        """Return the options of a backup that only this engine has."""

    @abstractmethod
    def _prepare_options(self, *, last: bool) -> Sequence[str]:
        """Return the options of a prepare that only this engine has."""

    def _causes(self) -> tuple[Cause, ...]:
        return self.causes

    def for_datadir(self, datadir: Path) -> Self:
        """Return this engine for the server with this datadir.

        If this process is root, the programs run as the owner of the datadir, because they load
        plugins from directories that the server's OS user may write to.

        Raises:
            EngineFailed: the owner of the datadir can't be read.
        """
        return self._changed(replace(self._settings, datadir=datadir, run_as=owner_of(datadir)))

    def run_as(self, user: OsUser | None) -> Self:
        """Return this engine with programs that run as `user`.

        None means this process's own user.
        """
        return self._changed(replace(self._settings, run_as=user))

    def leaving_out(self, folders: tuple[str, ...]) -> Self:
        """Return this engine with `folders`, directories of the datadir, left out of backups."""
        return self._changed(replace(self._settings, left_out=folders))

    def _changed(self, settings: EngineSettings) -> Self:
        other = copy(self)
        other._settings = settings
        return other

    def version(self) -> str:
        """Return the version that the program states, such as `10.11.6-MariaDB` or `8.0.35-30`.

        Raises:
            EngineMissing: the program can't be found or started.
            EngineFailed: the program states no version of this engine.
            EngineSilent: the program does not end within 10 seconds.
        """
        # If an option file can't be parsed, xtrabackup 2.4 ends without stating its version.
        with self._child([self._settings.program, "--no-defaults", "--version"]) as child:
            child.wait(_VERSION_SECONDS)
        # The programs write their version to standard error.
        output = child.log.lines()
        found = self.version_line.search("\n".join(output))
        if found is None:
            raise EngineFailed(
                f"{self._settings.program} --version doesn't state a version of {self.name}: "
                f"{'; '.join(output[-3:]) or 'it wrote nothing to standard error'}",
                hint="set [engine] program to the engine that [engine] kind names",
            )
        return found[1]

    def start_backup(self, workdir: Path, from_lsn: int | None) -> BackupRun:
        """Start a backup that writes its stream to standard output.

        The program reads the password from an option file in `workdir`. The file's mode is 0600,
        and it is removed at the end of the run. The program reads no other option file, because
        the machine's own option files could leave tables out of the copy.

        The caller must check the parent's `from_lsn` against the server's own LSN before. The
        engines accept an LSN that the server has not reached yet, exit with status 0 and print
        `completed OK!`.

        Raises:
            EngineMissing: the program can't be found or started.
            EngineFailed: the backup can't be started for another reason.
            ConfigInvalid: the database user's name or password holds a NUL byte.
        """
        settings, secret_file = self._settings, workdir / _OPTION_FILE
        loan = LentWorkdir(workdir, settings.socket, settings.run_as, relayed=not settings.password)
        with ExitStack() as undo:
            undo.callback(secret_file.unlink, missing_ok=True)
            undo.callback(loan.close)
            _write_options(secret_file, self.group, settings, loan.socket)
            loan.give(secret_file, workdir)
            argv = self._backup_argv(loan.path, from_lsn)
            child = self._child(
                argv, stdout=True, keep=self.kept_lines, losses=self.backup_losses, loan=loan
            )
            undo.pop_all()
        return BackupRun(
            child,
            secret_file,
            self.completed,
            self._causes(),
            settings.silent_seconds,
            release=loan.close,
        )

    def _backup_argv(self, workdir: Path, from_lsn: int | None) -> list[str]:
        # The programs honour --defaults-file only as the first argument.
        argv = [self._settings.program, f"--defaults-file={workdir / _OPTION_FILE}", "--backup"]
        # A program that streams writes nothing into this directory, but checks that it exists.
        argv += [f"--target-dir={workdir}", *self._common_options()]
        argv += self._backup_options()
        # If an option is given twice, the last one counts. So the operator's options come after the
        # agent's.
        argv += options_of(self._settings.options, self.name)
        return argv + ([f"--incremental-lsn={from_lsn}"] if from_lsn is not None else [])

    def start_extract(self, folder: Path) -> ExtractRun:
        """Start the extractor with `-x` into `folder`, the only directory that it may write to.

        Raises:
            EngineMissing, EngineFailed: the extractor can't be started.
        """
        place = folder.resolve()
        argv = [self._settings.extractor, "-x", "-C", str(place)]
        child = self._child(argv, setting=_EXTRACTOR, stdin=True, writable=[place])
        return ExtractRun(child, self._settings.silent_seconds)

    def start_prepare(
        self, target: Path, incremental: Path | None, memory_bytes: int, *, last: bool
    ) -> PrepareRun:
        """Start `--prepare` of one backup of a chain.

        The program may write only to `target` and to `incremental`.

        Raises:
            EngineMissing, EngineFailed: the program can't be started.
        """
        # Resolve the paths, because a symbolic link may lead through directories that are closed to
        # the program's user.
        writable = [folder.resolve() for folder in (target, incremental) if folder is not None]
        path, *beside = writable
        argv = [self._settings.program, "--prepare", f"--target-dir={path}"]
        argv += [f"--use-memory={memory_bytes}", f"--tmpdir={path}"]
        argv += self._prepare_options(last=last)
        argv += options_of(self._settings.options, self.name, prepare=True)
        argv += [f"--incremental-dir={one}" for one in beside]
        child = self._child(
            argv, keep=self.kept_lines, losses=self.prepare_losses, writable=writable
        )
        return PrepareRun(child, self.completed, _PREPARE_CAUSES)

    def _common_options(self) -> list[str]:
        settings = self._settings
        argv = ["--stream=xbstream", f"--parallel={settings.parallel}"]
        argv += [f"--log-copy-interval={settings.log_copy_interval_ms}"]
        argv += [f"--open-files-limit={settings.open_files_limit}"]
        # If the server has no such position, the programs ignore the option and log a line.
        argv += ["--slave-info", "--galera-info"]
        if settings.left_out:
            argv += [f"--databases-exclude={' '.join(settings.left_out)}"]
        if settings.safe_slave_backup:
            argv += ["--safe-slave-backup"]
            argv += [f"--safe-slave-backup-timeout={settings.safe_slave_backup_seconds}"]
        return argv

    def _child(
        self,
        argv: list[str],
        *,
        setting: str = _SETTING,
        stdin: bool = False,
        stdout: bool = False,
        keep: re.Pattern[str] | None = None,
        losses: re.Pattern[str] | None = None,
        loan: LentWorkdir | None = None,
        writable: Sequence[Path] | None = None,
    ) -> Child:
        own = {"HOME": str(loan.path), "TMPDIR": str(loan.path)} if loan is not None else {}
        return Child(
            argv,
            setting=setting,
            stdin=stdin,
            stdout=stdout,
            keep=keep,
            losses=losses,
            niceness=self._settings.niceness,
            grace=self._settings.grace_seconds,
            environment={**own, **self._settings.environment},
            user=self._settings.run_as,
            folders=(loan.folder,) if loan and loan.folder is not None else (),
            writable=writable,
        )


def quote_option(value: str) -> str:
    """Return `value` quoted and escaped for an option file.

    Raises:
        ConfigInvalid: the value holds a NUL byte, which no option file can hold.
    """
    if "\0" in value:
        raise ConfigInvalid("the database user's name or password holds a NUL byte")
    return '"' + "".join(_ESCAPES.get(char, char) for char in value) + '"'


def _write_options(path: Path, group: str, settings: EngineSettings, socket: Path) -> None:
    options = {
        "user": settings.user,
        "password": settings.password,
        "socket": str(socket),
    }
    lines = [f"{name}={quote_option(value)}\n" for name, value in options.items()]
    try:
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"[{group}]\n" + "".join(lines))
    except OSError as error:
        raise EngineFailed(
            f"can't write the engine's option file {path}: {error.strerror}",
            hint="check the free space and permissions of [agent] state_folder",
        ) from error
