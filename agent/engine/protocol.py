"""The interface that every engine implements."""

from pathlib import Path
from typing import Protocol, Self

from agent.engine.runs import BackupRun, ExtractRun, PrepareRun
from agent.machine.os_user import OsUser


class Engine(Protocol):
    """A program that copies a running database into an xbstream, and can restore the copy.

    A datadir is restored from one such stream, or from the streams of a chain.
    """

    @property
    def name(self) -> str:
        """Return the engine's name in records, such as `mariadb-backup`."""

    @property
    def extractor(self) -> str:
        """Return the name or path of the program that extracts a stream, such as `mbstream`."""

    @property
    def takes_hidden_names(self) -> bool:
        """Return True if the extractor takes names of schemas that begin with a dot."""

    @property
    def escapes_names(self) -> bool:
        """Return True if a backup works with backticks in the names of tables that aren't InnoDB's.

        It doesn't if the engine locks such tables one by one and doesn't escape their names.
        """

    def leaving_out(self, folders: tuple[str, ...]) -> Self:
        """Return this engine with `folders`, directories of the datadir, left out of backups."""

    def for_datadir(self, datadir: Path) -> Self:
        """Return this engine for the server with this datadir.

        If this process is root, the engine's programs run as the owner of the datadir.
        """

    def run_as(self, user: OsUser | None) -> Self:
        """Return this engine with programs that run as `user`.

        None means this process's own user.
        """

    def version(self) -> str:
        """Return the version that the program states.

        Raises:
            EngineMissing: the program can't be found or started.
            EngineFailed: the program states no version of this engine.
            EngineSilent: the program does not end in time.
        """

    def start_backup(self, workdir: Path, from_lsn: int | None) -> BackupRun:
        """Start a full backup, or an incremental backup of the changes since `from_lsn`.

        `workdir` is a directory that only this run uses.

        Raises:
            EngineMissing: the program can't be found or started.
            EngineFailed: the backup can't be started for another reason.
        """

    def start_extract(self, folder: Path) -> ExtractRun:
        """Start unpacking a stream into `folder`, an existing and empty directory."""

    def start_prepare(
        self, target: Path, incremental: Path | None, memory_bytes: int, *, last: bool
    ) -> PrepareRun:
        """Start making an extracted full backup in `target` consistent.

        With `incremental`, the directory of an extracted incremental backup, apply that backup
        to `target`. First prepare the full backup. Then call this once for each incremental
        backup of the chain, in order. `last` means that no further backup follows. The result is
        then a datadir, and no further incremental backup can be applied to it.
        """
