"""What every engine promises, whichever program does the work."""

from pathlib import Path
from typing import Protocol, Self

from agent.engine.runs import BackupRun, ExtractRun, PrepareRun
from agent.machine.os_user import OsUser


class Engine(Protocol):
    """Copies a running database into an xbstream, and makes a datadir of such streams."""

    @property
    def name(self) -> str:
        """What records call it: `mariadb-backup` or `xtrabackup`."""

    def leaving_out(self, folders: tuple[str, ...]) -> Self:
        """Return this engine for backups without these directories of the datadir."""

    def beside(self, datadir: Path) -> Self:
        """Return this engine for the server with that datadir, started as its owner if root."""

    def run_as(self, user: OsUser | None) -> Self:
        """Return this engine with programs that run as `user`; None is this process's own."""

    def version(self) -> str:
        """What the program calls its version; EngineMissing or EngineFailed."""

    def start_backup(self, workdir: Path, from_lsn: int | None) -> BackupRun:
        """Start a full backup, or an incremental one of what changed since `from_lsn`.

        `workdir` is a folder of this run's own; EngineMissing or EngineFailed.
        """

    def extract(self, folder: Path) -> ExtractRun:
        """Start unpacking a stream into `folder`, which exists and is empty."""

    def prepare(
        self, target: Path, incremental: Path | None, memory_bytes: int, *, last: bool
    ) -> PrepareRun:
        """Start making an extracted full backup in `target` consistent.

        With `incremental`, the folder of an extracted incremental, apply that to it: once
        for each of the chain, in order, after the full one has been prepared. `last` tells
        that no further one follows: what is prepared so is a datadir, and takes no more.
        """
