"""Backups and restores of a real server, through the operations and a store in a directory."""

import shutil
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from agent.database.server import Database, DatabaseSettings
from agent.engine.choice import Engines
from agent.engine.mariadb import MariadbBackup, MariadbBackupSettings
from agent.model import BackupRequest, CreateTask, Record
from agent.operations.backup.create import BackupOperation
from agent.operations.resources import BackupResources, PathSettings
from agent.operations.restore.chain import RestoreOperation
from agent.pipeline.meter import Meter
from agent.records.catalogue import Catalogue
from agent.stop import Stop
from agent.store.directory.store import DirectoryStore
from tests.records.made import INSTANCE, keyring
from tests.stack.mariadb import AGENT_PASSWORD, MariaDB

MIB = 1 << 20


class Workshop:
    """One server, with a store for its backups."""

    def __init__(self, server: MariaDB, folder: Path, **changes: Any) -> None:
        self.server = server
        self.folder = folder
        store = DirectoryStore(folder / "store", "database_backups_x")
        store.open()
        login: dict[str, Any] = {
            "socket": server.socket,
            "user": server.agent_user,
            "password": AGENT_PASSWORD,
        }
        engine = MariadbBackup(MariadbBackupSettings(**login))
        keys = keyring()
        self.database = Database(DatabaseSettings(**login))
        self.parts = BackupResources(
            store=store,
            catalogue=Catalogue(store, keys),
            keyring=keys,
            engines=Engines({"mariadb-backup": engine}),
            path=PathSettings(
                memory_bytes=64 * MIB, segment_bytes=MIB, connections=1, cores=1, level=1
            ),
            prepare_memory_bytes=16 * MIB,
            instance_id=INSTANCE,
            database=self.database,
            scratch=folder / "scratch",
            **changes,
        )

    def backup(
        self,
        parent: Record | None = None,
        on_broken_chain: Literal["fail", "full"] = "fail",
    ) -> Record:
        """Make a backup and return its record. Raise the error that stops it."""
        return self.operation(parent, on_broken_chain).run()

    def operation(
        self,
        parent: Record | None = None,
        on_broken_chain: Literal["fail", "full"] = "fail",
        backup_id: str = "",
    ) -> BackupOperation:
        """Return the operation that makes a backup, which has not begun."""
        request = BackupRequest(
            id=backup_id or str(uuid4()), name="b", parent_id=parent.id if parent else None
        )
        task = CreateTask(task_id=str(uuid4()), backup=request, on_broken_chain=on_broken_chain)
        return BackupOperation(
            self.parts,
            task,
            meter=Meter(),
            stop=Stop(),
            observe_lsn=lambda _key, _lsn: "",
            on_begin=lambda _record: None,
            on_finished=lambda _record: None,
        )

    def restored(
        self, backup: Record, *queries: str, folder: Path | None = None
    ) -> tuple[dict[str, int], list[Any]]:
        """Restore a backup, start a server on it, and return the server's answers.

        These are the CHECKSUM TABLE of all tables, and the results of the queries.
        """
        target = folder or self.folder / "restored"
        shutil.rmtree(target, ignore_errors=True)
        RestoreOperation(self.parts, meter=Meter(), stop=Stop()).run(backup.id, target)
        server = MariaDB(self.folder / "of-restored", datadir=target)
        try:
            server.start()
            return server.checksums(), [server.query(query) for query in queries]
        finally:
            server.stop()
            shutil.rmtree(target, ignore_errors=True)
