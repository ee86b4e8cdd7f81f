"""A chain on MySQL 8.0 through the operations.

XtraBackup is replaced by its stand-in, and the server by a simulated one.
"""

from pathlib import Path
from typing import cast
from uuid import uuid4

import pytest

from agent.database.server import Database, ServerInfo, Session, Tablespace
from agent.engine.checkpoints import read_checkpoints
from agent.engine.choice import Engines
from agent.errors import Cancelled, DatabaseQueryFailed, EngineUnsupported, ParentUnusable
from agent.machine.host import sync_filesystem
from agent.model import BackupRequest, BackupStatus, CreateTask, Lineage, Record
from agent.operations.backup.create import BackupOperation
from agent.operations.resources import BackupResources, PathSettings
from agent.operations.restore.chain import RestoreOperation
from agent.pipeline.meter import Meter
from agent.records.catalogue import Catalogue
from agent.stop import Stop
from agent.store.directory.store import DirectoryStore
from tests.engine.percona import SPACES, calls, full_stream, incremental_stream, xtrabackup
from tests.operations.stored import place_record
from tests.records.made import INSTANCE, keyring

MIB = 1 << 20


class Server:
    """A simulated MySQL server. No real one can be installed here."""

    def __init__(self, datadir: Path) -> None:
        self.info = ServerInfo("mysql", "8.0.42-33", str(uuid4()), datadir)
        self.present_lsn = 50
        self.looks_that_succeed = 1000

    def server(self) -> ServerInfo:
        return self.info

    def bound(self, _on_stop: object) -> "Server":
        return self

    def sessions(self) -> list[Session]:
        return []

    def lsn(self) -> int:
        self.looks_that_succeed -= 1
        if self.looks_that_succeed < 0:
            raise DatabaseQueryFailed("2 log sequence numbers")
        return self.present_lsn

    def variables(self, *_names: str) -> dict[str, str]:
        return {"log_bin_basename": "binlog"}

    def counters(self, *_names: str) -> dict[str, int]:
        return {}

    def lineage(self) -> Lineage:
        return Lineage(server_uuid=self.info.server_uuid, inode=1, birth=2)

    def ignored_directories(self) -> frozenset[str]:
        return frozenset()

    def tablespaces(self) -> dict[int, Tablespace]:
        return {number: Tablespace(path, 16 << 10) for number, path in SPACES.items()}


@pytest.fixture
def server(tmp_path: Path) -> Server:
    datadir = tmp_path / "data"
    datadir.mkdir()
    (datadir / "ibdata1").write_bytes(bytes(MIB))
    return Server(datadir)


@pytest.fixture
def parts(tmp_path: Path, folder: DirectoryStore, server: Server) -> BackupResources:
    keys = keyring()
    return BackupResources(
        store=folder,
        catalogue=Catalogue(folder, keys),
        keyring=keys,
        engines=Engines({"xtrabackup": xtrabackup(tmp_path)}),
        path=PathSettings(
            memory_bytes=64 * MIB, segment_bytes=MIB, connections=1, cores=1, level=1
        ),
        prepare_memory_bytes=16 * MIB,
        instance_id=INSTANCE,
        database=cast(Database, server),
        scratch=tmp_path / "scratch",
    )


def backup(parts: BackupResources, tmp_path: Path, stream: bytes, parent: Record | None) -> Record:
    """Make a backup with an engine that writes `stream`."""
    (tmp_path / "stream").write_bytes(stream)
    request = BackupRequest(id=str(uuid4()), name="b", parent_id=parent.id if parent else None)
    operation = BackupOperation(
        parts,
        CreateTask(task_id=str(uuid4()), backup=request),
        meter=Meter(),
        stop=Stop(),
        observe_lsn=lambda _key, _lsn: "",
        on_begin=lambda _record: None,
        on_finished=lambda _record: None,
    )
    return operation.run()


def chain_of_three(parts: BackupResources, server: Server, tmp_path: Path) -> list[Record]:
    full = backup(parts, tmp_path, full_stream(50, b"binlog.000007\t157\tu-1:1-5,\nu-2:1\n"), None)
    server.present_lsn = 60
    first = backup(parts, tmp_path, incremental_stream(50, 60), full)
    server.present_lsn = 70
    return [full, first, backup(parts, tmp_path, incremental_stream(60, 70), first)]


def restore(parts: BackupResources, backup_id: str, target: Path) -> list[list[str]]:
    """Restore a backup. Return the calls of the prepares, in order."""
    before = len(calls(target.parent))
    RestoreOperation(parts, meter=Meter(), stop=Stop()).run(backup_id, target)
    return [call for call in calls(target.parent)[before:] if "--prepare" in call]


def test_a_chain_is_made_and_prepared_in_order(
    parts: BackupResources, server: Server, tmp_path: Path
) -> None:
    chain = chain_of_three(parts, server, tmp_path)
    full = chain[0]
    assert full.status is BackupStatus.COMPLETED
    assert (full.engine, full.engine_version) == ("xtrabackup", "8.0.35-30")
    assert full.binlog is not None
    assert full.binlog.gtid == "u-1:1-5,u-2:1"
    asked = [call[-1] for call in calls(tmp_path) if "--backup" in call]
    assert asked[1:] == ["--incremental-lsn=50", "--incremental-lsn=60"]
    target = tmp_path / "restored"
    prepares = restore(parts, chain[-1].id, target)
    assert ["--apply-log-only" in call for call in prepares] == [True, True, False]
    assert [call[-1].startswith("--incremental-dir=") for call in prepares] == [False, True, True]
    assert read_checkpoints(target).backup_type == "full-prepared"
    assert read_checkpoints(target).to_lsn == 70


def test_a_full_backup_alone_is_prepared_whole(parts: BackupResources, tmp_path: Path) -> None:
    full = backup(parts, tmp_path, full_stream(50), None)
    (prepare,) = restore(parts, full.id, tmp_path / "restored")
    assert "--apply-log-only" not in prepare


def test_a_cancel_while_the_disk_writes_ends_the_restore(
    parts: BackupResources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = backup(parts, tmp_path, full_stream(50), None)
    stop, told = Stop(), []

    def slow(folder: Path) -> None:
        sync_filesystem(folder)
        assert stop.request(Cancelled("by a test"))

    def on_whole(record: Record) -> None:
        told.append(record)
        assert not stop.request(Cancelled("by a test")), "too late"

    target = tmp_path / "restored"
    with monkeypatch.context() as patched:
        patched.setattr("agent.operations.restore.target.sync_filesystem", slow)
        operation = RestoreOperation(parts, meter=Meter(), stop=stop, on_whole=on_whole)
        with pytest.raises(Cancelled):
            operation.run(full.id, target)
    assert not told
    assert not target.exists()
    stop = Stop()
    RestoreOperation(parts, meter=Meter(), stop=stop, on_whole=on_whole).run(full.id, target)
    assert (target / "mysql.ibd").exists()


def test_a_server_that_no_engine_here_copies_leaves_no_record(
    parts: BackupResources, server: Server, tmp_path: Path
) -> None:
    server.info = server.info._replace(version="8.4.2")
    with pytest.raises(EngineUnsupported, match=r"needs xtrabackup 8\.4") as caught:
        backup(parts, tmp_path, full_stream(50), None)
    assert "percona-xtrabackup-84" in caught.value.hint
    assert [call[1:] for call in calls(tmp_path)] == [["--no-defaults", "--version"]]
    assert list((tmp_path / "store").rglob("*.json")) == []


def test_an_incremental_does_not_continue_another_engines_backup(
    parts: BackupResources, server: Server, tmp_path: Path
) -> None:
    full = backup(parts, tmp_path, full_stream(50), None)
    foreign = full.model_copy(update={"engine": "mariadb-backup", "id": str(uuid4())})
    place_record(parts.store, parts.keyring, foreign)
    server.present_lsn = 70
    with pytest.raises(ParentUnusable, match="was made by mariadb-backup"):
        backup(parts, tmp_path, incremental_stream(50, 60), foreign)


def test_a_restore_by_an_engine_of_another_series_is_refused_first(
    parts: BackupResources, tmp_path: Path
) -> None:
    full = backup(parts, tmp_path, full_stream(50), None)
    xtrabackup(tmp_path, "8.4.0-1")  # installed in its place
    with pytest.raises(EngineUnsupported, match="only the same series"):
        restore(parts, full.id, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def test_a_false_lsn_that_the_engine_may_have_believed_fails_the_backup(
    parts: BackupResources, server: Server, tmp_path: Path
) -> None:
    """The engine reports `completed OK!` even if such an LSN made it copy too little redo log."""
    server.looks_that_succeed = 1
    with pytest.raises(DatabaseQueryFailed, match="2 log sequence numbers"):
        backup(parts, tmp_path, full_stream(50), None)
    assert [call for call in calls(tmp_path) if "--backup" in call]
    [listed] = parts.catalogue.records()
    assert listed.record is not None
    assert listed.record.status is BackupStatus.BUILDING
