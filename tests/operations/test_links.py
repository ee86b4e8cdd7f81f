"""Chains whose members are stored in different ways, and members with unknown facts."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.engine.checkpoints import read_checkpoints
from agent.engine.choice import Engines
from agent.engine.mariadb import MariadbBackup, MariadbBackupSettings
from agent.errors import AgentError, ContentRefused, DataDamaged, SpaceLacking
from agent.model import Record
from agent.operations.resources import PathSettings, RestoreResources
from agent.operations.restore.chain import ChainRestore
from agent.operations.restore.links import ChainLink, RecordLink, record_link
from agent.pipeline.meter import Meter
from agent.records.catalogue import Catalogue
from agent.records.object_names import Segment, decode_list, list_name, segment_name
from agent.stop import Stop
from agent.store.directory.store import DirectoryStore
from agent.store.protocol import Container, Store
from tests.codec.streams import rename
from tests.conftest import need
from tests.engine.percona import full_stream, incremental_stream, xtrabackup
from tests.operations.stored import put
from tests.operations.workshop import Workshop
from tests.records.made import keyring
from tests.stack.mariadb import MariaDB

MIB = 1 << 20


@dataclass
class Scripted:
    """A member of which only the stream is known, unless a test says more."""

    blocks: Sequence[bytes]
    backup_id: str = "b"
    incremental: bool = False
    engine: str = "xtrabackup"
    engine_version: str | None = None
    raw_bytes: int | None = None
    least_bytes: int = 1
    longest_path: int = 0
    from_lsn: int | None = None
    to_lsn: int | None = None

    def check_memory(self) -> None:
        """Need no memory."""

    def stream(self, write: Callable[[bytes], None], meter: Meter, stop: Stop) -> None:
        for block in self.blocks:
            stop.check()
            write(block)
            meter.add(raw=len(block))


class Elsewhere:
    """The segments of a backup, moved to other names, and its lists in memory."""

    def __init__(self, store: Store, record: Record) -> None:
        self._store = store
        self._id = record.id
        assert record.stored is not None
        self._lists: list[list[Segment]] = []
        for number, ref in enumerate(record.stored.lists):
            encoded = self._taken(list_name(record.id, record.attempt, number))
            self._lists.append(decode_list(encoded, ref))
        for number in range(record.stored.segment_count):
            body = self._taken(segment_name(record.id, record.attempt, number))
            put(store, Container.OBJECTS, f"{record.id}_{number:08d}", body)

    def _taken(self, name: str) -> bytes:
        body = self._store.get(Container.SEGMENTS, name, 64 * MIB)
        self._store.delete(Container.SEGMENTS, name)
        return body

    def rows(self, number: int) -> Sequence[Segment]:
        return self._lists[number]

    def read_into(self, number: int, buffer: memoryview) -> None:
        self._store.get_into(Container.OBJECTS, f"{self._id}_{number:08d}", buffer)


def test_a_chain_of_a_record_and_a_bare_stream_is_restored(
    mariadb: MariaDB, tmp_path: Path
) -> None:
    """The segments of the full backup are elsewhere, and the incremental has no record."""
    shop = Workshop(mariadb, tmp_path)
    full = shop.backup()
    mariadb.query("CREATE SCHEMA links; CREATE TABLE links.t (id INT); INSERT links.t VALUES (7)")
    try:
        incremental = shop.backup(full)
        expected = mariadb.checksums()
    finally:
        mariadb.query("DROP SCHEMA links")
    blocks: list[bytes] = []
    meter, stop = Meter(), Stop()
    parts = shop.parts.bound(stop)
    record_link(parts, incremental).stream(blocks.append, meter, stop)
    assert incremental.stored is not None
    assert full.stored is not None
    assert meter.raw_bytes == len(b"".join(blocks)) == incremental.stored.raw_bytes
    links: list[ChainLink] = [
        RecordLink(
            full, full.stored, Elsewhere(parts.store, full), parts.opening(full), parts.path
        ),
        Scripted(blocks, incremental=True, engine="mariadb-backup"),
    ]
    target, meter = tmp_path / "restored", Meter()
    left: list[str] = []
    ChainRestore(parts, meter=meter, stop=stop).restore(
        links, target, lambda: left.extend(path.name for path in target.iterdir())
    )
    assert meter.expected_raw_bytes is None
    (work,) = left
    assert work.startswith(".backup-agent-restore-"), "told before the datadir is moved up"
    server = MariaDB(tmp_path / "of-restored", datadir=target)
    try:
        server.start()
        assert server.checksums() == expected
    finally:
        server.stop()
        shutil.rmtree(target)


@dataclass(frozen=True, kw_only=True)
class OwnResources(RestoreResources):
    """Resources whose datadir belongs to this process's user, so that its programs do, too."""

    datadir: Path

    def datadirs(self) -> list[Path]:
        return [self.datadir]


@pytest.fixture
def parts(tmp_path: Path, folder: DirectoryStore) -> RestoreResources:
    need("mbstream")
    settings = MariadbBackupSettings(socket=tmp_path / "none", user="nobody", password="")
    keys = keyring()
    datadir = tmp_path / "datadir"
    datadir.mkdir()
    return OwnResources(
        datadir=datadir,
        store=folder,
        catalogue=Catalogue(folder, keys),
        keyring=keys,
        engines=Engines(
            {"xtrabackup": xtrabackup(tmp_path), "mariadb-backup": MariadbBackup(settings)}
        ),
        path=PathSettings(
            memory_bytes=64 * MIB, segment_bytes=MIB, connections=1, cores=1, level=1
        ),
        prepare_memory_bytes=16 * MIB,
    )


def restore(parts: RestoreResources, target: Path, *links: Scripted) -> Meter:
    meter = Meter()
    stop = Stop()
    ChainRestore(parts.bound(stop), meter=meter, stop=stop).restore(links, target)
    return meter


FULL = full_stream(50)


@pytest.mark.parametrize(
    "known",
    [{}, {"from_lsn": 0}, {"to_lsn": 50}, {"raw_bytes": len(FULL)}],
    ids=["nothing", "begin", "end", "size"],
)
def test_unknown_facts_are_not_compared(
    parts: RestoreResources, tmp_path: Path, known: dict[str, Any]
) -> None:
    meter = restore(parts, tmp_path / "target", Scripted([FULL], **known))
    assert (tmp_path / "target" / "mysql.ibd").exists()
    assert meter.expected_raw_bytes == known.get("raw_bytes")


@pytest.mark.parametrize(
    ("link", "error", "says"),
    [
        (Scripted([FULL], from_lsn=1), DataDamaged, "0 to 50, but its record says 1 to an unknown"),
        (Scripted([FULL], to_lsn=51), DataDamaged, "its record says an unknown LSN to 51"),
        (Scripted([FULL], raw_bytes=len(FULL) - 1), ContentRefused, "has more than the"),
        (Scripted([FULL], raw_bytes=len(FULL) + 1), DataDamaged, "but its record says"),
        (Scripted([FULL[:-1]]), ContentRefused, "incomplete|ends"),
        (Scripted([FULL, rename(b"a/b", b"../c")]), ContentRefused, "not a plain relative path"),
        (Scripted([FULL], least_bytes=1 << 60), SpaceLacking, "needs 1152921504606846976 bytes"),
    ],
    ids=["begin", "end", "more", "less", "cut", "outside", "space"],
)
def test_known_facts_and_the_stream_are_checked(
    parts: RestoreResources, tmp_path: Path, link: Scripted, error: type[AgentError], says: str
) -> None:
    with pytest.raises(error, match=says):
        restore(parts, tmp_path / "target", link)
    assert not (tmp_path / "target").exists()


def test_an_unknown_version_fits_every_version_of_its_engine_only(
    parts: RestoreResources, tmp_path: Path
) -> None:
    target, full = tmp_path / "target", Scripted([FULL])
    other = Scripted([], incremental=True, engine="mariadb-backup")
    with pytest.raises(DataDamaged, match="was made by several engines"):
        restore(parts, target, full, other)
    assert not target.exists()
    known = Scripted([incremental_stream(50, 60)], incremental=True, engine_version="8.0.35-30")
    restore(parts, target, full, known)
    assert read_checkpoints(target).to_lsn == 60
