"""What both engines share: option file, common arguments, versions, how a child is started."""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

from agent.engine.loan import Loan
from agent.engine.options import options_of
from agent.engine.os_user import OsUser, owner_of
from agent.engine.process import Child
from agent.engine.runs import BackupRun, Cause, ExtractRun, PrepareRun
from agent.errors import ConfigInvalid, EngineFailed, PrepareFailed

_SETTING = "[engine] program"
_EXTRACTOR = "[engine] extractor"
_OPTION_FILE = "engine.cnf"
_VERSION_SECONDS = 10.0
_NO_KEY = (
    "the backup is encrypted by the database server, and its keys are not here: put the server's "
    "key file (of MariaDB where file_key_management_filename in backup-my.cnf says) or keyring on "
    "this machine, readable for the user that restores, and restore again"
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
        "or keyring here is that server's; else restore again, or an earlier backup",
    ),
    # It asks for the status of the path that a tablespace was renamed to before it was dropped.
    Cause(
        re.compile(r"Operating system error number 13\b"),
        PrepareFailed,
        "most likely a table with a DATA DIRECTORY was truncated or rebuilt shortly before the "
        "backup, and the engine looks for its former file there, which the OS user of the restore "
        "may not: restore on a machine that has no such directory, or into a folder of the "
        "server's OS user, or let the user pass through that directory (chmod o+x)",
    ),
)
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b"}


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How to run the programs and reach the server; times in the unit that the name says.

    `parallel` is threads that read tables. A short `log_copy_interval_ms` matters: the
    engines' default of 1000 holds the commit lock for up to a second at the end of a run.
    `safe_slave_backup` stops a replica's SQL thread for the run. `environment` is added to that
    of the programs. `options` are those of [engine] options, checked. `datadir` is that of the
    server, once it is known. `run_as` is who the programs run as: this process's own user if None.
    `left_out` are directories in the datadir that aren't schemas and must not be copied.
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
    """An engine of the family: what its members say for themselves, and what they all do."""

    name: ClassVar[str]
    group: ClassVar[str]
    """The option file's group that the program reads."""
    completed: ClassVar[re.Pattern[str]]
    """The program's closing line, whole."""
    telling: ClassVar[re.Pattern[str]]
    """Lines of its log that are kept because they may tell why it failed."""
    causes: ClassVar[tuple[Cause, ...]]
    losses: ClassVar[re.Pattern[str]] = re.compile("(?!)")
    """Starts of messages of a backup that mean lost data however well the program ends."""
    unapplied: ClassVar[re.Pattern[str]] = re.compile("(?!)")
    """The same of a prepare."""
    stated: ClassVar[re.Pattern[str]]
    """Where the output of `--version` states the version."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings

    @abstractmethod
    def _backup_options(self) -> Sequence[str]:
        """The options of a backup that only this engine has."""

    @abstractmethod
    def _prepare_options(self, *, last: bool) -> Sequence[str]:
        """The options of a prepare that only this engine has."""

    def _causes(self) -> tuple[Cause, ...]:
        return self.causes

    def beside(self, datadir: Path) -> Self:
        """Return this engine for the server with that datadir.

        As root the agent runs it as the datadir's owner: it loads plugins from folders that the
        server's OS user may write to. EngineFailed if the datadir can't be looked at.
        """
        return self._changed(replace(self._settings, datadir=datadir, run_as=owner_of(datadir)))

    def run_as(self, user: OsUser | None) -> Self:
        """Return this engine with programs that run as `user`; None is this process's own."""
        return self._changed(replace(self._settings, run_as=user))

    def leaving_out(self, folders: tuple[str, ...]) -> Self:
        """Return this engine for backups without these directories of the datadir."""
        return self._changed(replace(self._settings, left_out=folders))

    def _changed(self, settings: EngineSettings) -> Self:
        other = copy(self)
        other._settings = settings
        return other

    def version(self) -> str:
        """The version that the program states, such as `10.11.6-MariaDB` or `8.0.35-30`."""
        # an option file that can't be parsed makes xtrabackup 2.4 end without its version
        with self._child([self._settings.program, "--no-defaults", "--version"]) as child:
            child.wait(_VERSION_SECONDS)
        # it goes to standard error
        said = child.log.lines()
        found = self.stated.search("\n".join(said))
        if found is None:
            raise EngineFailed(
                f"{self._settings.program} --version doesn't state a version of {self.name}: "
                f"{'; '.join(said[-3:]) or 'it said nothing'}",
                hint="set [engine] program to the engine that [engine] kind names",
            )
        return found[1]

    def start_backup(self, workdir: Path, from_lsn: int | None) -> BackupRun:
        """Start streaming; the password goes by a 0600 file in `workdir`, removed at the end.

        That file is the only option file that the program reads: those of the machine could
        leave tables out of the copy. The parent's `from_lsn` has to be checked against the
        server's own LSN before: the engines take one from the future, exit with 0 and say
        `completed OK!`.
        """
        settings, secret_file = self._settings, workdir / _OPTION_FILE
        loan = Loan(workdir, settings.socket, settings.run_as, relayed=not settings.password)
        with ExitStack() as undo:
            undo.callback(secret_file.unlink, missing_ok=True)
            undo.callback(loan.close)
            _write_options(secret_file, self.group, settings, loan.socket)
            loan.give(secret_file, workdir)
            argv = self._backup_argv(loan.path, from_lsn)
            child = self._child(argv, stdout=True, keep=self.telling, losses=self.losses, loan=loan)
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
        # the option file is only honoured as the first argument
        argv = [self._settings.program, f"--defaults-file={workdir / _OPTION_FILE}", "--backup"]
        # nothing is written there while it streams, but it is looked for
        argv += [f"--target-dir={workdir}", *self._common_options()]
        argv += self._backup_options()
        # of two with one name the last one counts
        argv += options_of(self._settings.options, self.name)
        return argv + ([f"--incremental-lsn={from_lsn}"] if from_lsn is not None else [])

    def extract(self, folder: Path) -> ExtractRun:
        """Start the extractor with `-x` into `folder`, the only place that it may write to."""
        place = folder.resolve()
        argv = [self._settings.extractor, "-x", "-C", str(place)]
        child = self._child(argv, setting=_EXTRACTOR, stdin=True, writable=[place])
        return ExtractRun(child, self._settings.silent_seconds)

    def prepare(
        self, target: Path, incremental: Path | None, memory_bytes: int, *, last: bool
    ) -> PrepareRun:
        """Start `--prepare` of one link of a chain; it may write to its folders only."""
        # a link may lead through directories that are closed to the user
        writable = [folder.resolve() for folder in (target, incremental) if folder is not None]
        path, *beside = writable
        argv = [self._settings.program, "--prepare", f"--target-dir={path}"]
        argv += [f"--use-memory={memory_bytes}", f"--tmpdir={path}"]
        argv += self._prepare_options(last=last)
        argv += options_of(self._settings.options, self.name, prepare=True)
        argv += [f"--incremental-dir={one}" for one in beside]
        child = self._child(argv, keep=self.telling, losses=self.unapplied, writable=writable)
        return PrepareRun(child, self.completed, _PREPARE_CAUSES)

    def _common_options(self) -> list[str]:
        settings = self._settings
        argv = ["--stream=xbstream", f"--parallel={settings.parallel}"]
        argv += [f"--log-copy-interval={settings.log_copy_interval_ms}"]
        argv += [f"--open-files-limit={settings.open_files_limit}"]
        # both are ignored, with a line in the log, where the server has no such position
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
        loan: Loan | None = None,
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
    """`value` as an option file wants it, whatever it holds; ConfigInvalid for a NUL."""
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
