"""A real chain of backups in a directory, made once, then damaged and read back many times.

It holds a full backup, an incremental on it, a second full backup, and an earlier attempt at the
first. All are made by the product's own operations, without a daemon. A restore writes into a sink
that replaces `mbstream` and compares every byte with the bytes that were backed up.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, cast
from uuid import uuid4

from agent import wiring
from agent.config.reading import load
from agent.engine.choice import Engines
from agent.engine.protocol import Engine
from agent.keys.keyring import Keyring
from agent.model import BackupRequest, CreateTask, Record
from agent.operations.backup.create import BackupOperation
from agent.operations.resources import BackupResources, RestoreResources
from agent.operations.restore.chain import RestoreOperation
from agent.pipeline.meter import Meter
from agent.records.object_names import backup_prefix
from agent.stop import Stop
from agent.store.protocol import Container, Store
from tests.faults.trial import Bench
from tests.stack.agent import Agent, Tables

SCHEMA = "damage"
# Deflate can't compress these rows, so that a small database has several segments of 1 MiB.
_ROWS = (
    "CREATE OR REPLACE TABLE {schema}.{table} (id INT PRIMARY KEY, noise BLOB);"
    "INSERT INTO {schema}.{table} SELECT seq, CONCAT(" + ",".join(["RANDOM_BYTES(1024)"] * 4) + ")"
    " FROM {schema}.seq_1_to_{rows}"
)

Place = tuple[Container, str]
Objects = Mapping[Place, bytes]


@dataclass(frozen=True)
class Chain:
    """Three backups of one instance, all their objects, and the objects of an older attempt."""

    agent: Agent
    parts: BackupResources
    full: Record
    incremental: Record
    other: Record
    objects: Objects
    older: Objects
    streams: dict[str, bytes] = field(default_factory=dict)

    @property
    def keyring(self) -> Keyring:
        return self.parts.keyring

    def names(self, record: Record) -> list[str]:
        """Return the names of a backup's segments, in order."""
        prefix = backup_prefix(record.id)
        found = [name for container, name in self.objects if name.startswith(prefix)]
        return sorted(name for name in found if name.rsplit("/", 1)[1].isdigit())

    def restore(self, store: Store, target: Path) -> "Sink":
        """Restore the incremental's chain by the product's own code, and return the sink."""
        sink = Sink(self)
        parts = RestoreResources(
            store=store,
            catalogue=type(self.parts.catalogue)(store, self.keyring),
            keyring=self.keyring,
            engines=Engines({self.full.engine: cast(Engine, sink)}),
            path=self.parts.path,
            prepare_memory_bytes=1 << 20,
        )
        try:
            RestoreOperation(parts, meter=Meter(), stop=Stop()).run(self.incremental.id, target)
        finally:
            # no changed byte was extracted, even if an error was raised later
            assert sink.wrong is None, sink.wrong
        return sink


class Sink:
    """An engine whose extractor compares its input with the bytes that were backed up."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._records = iter((chain.full, chain.incremental))
        self.name = chain.full.engine
        self.whole: list[str] = []
        self.wrong: str | None = None

    def version(self) -> str:
        return self._chain.full.engine_version

    def run_as(self, _user: object) -> "Sink":
        return self

    def start_extract(self, folder: Path) -> "_Extract":
        return _Extract(self, folder, next(self._records), self._chain.streams)

    def start_prepare(self, *_: object, **__: object) -> "_Nothing":
        return _Nothing()


class _Nothing:
    """A run of a program that does nothing."""

    def interrupt(self) -> None:
        """Do nothing, because no program runs."""

    def finish(self) -> None:
        """Do nothing, because no program runs."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        """Do nothing, because no program was started."""


class _Extract(_Nothing):
    def __init__(self, sink: Sink, folder: Path, record: Record, streams: dict[str, bytes]) -> None:
        self._sink = sink
        self._folder = folder
        self._record = record
        self._streams = streams
        self._learnt: list[bytes] | None = None if record.id in streams else []
        self._right = streams.get(record.id, b"")
        self._at = 0

    def write(self, data: bytes) -> None:
        if self._learnt is not None:
            self._learnt.append(bytes(data))
        elif self._right[self._at : self._at + len(data)] != data:
            self._sink.wrong = f"different bytes at {self._at} of backup {self._record.id}"
        self._at += len(data)

    def finish(self) -> None:
        if self._learnt is not None:
            self._right = self._streams[self._record.id] = b"".join(self._learnt)
        if self._at != len(self._right):
            self._sink.wrong = f"{self._at} bytes of backup {self._record.id} passed as complete"
        # mbstream would have extracted this file, and the restore reads it
        lines = (
            f"backup_type = {'incremental' if self._record.parent_id else 'full-backuped'}",
            f"from_lsn = {self._record.from_lsn}",
            f"to_lsn = {self._record.to_lsn}",
            f"last_lsn = {self._record.to_lsn}",
        )
        (self._folder / "xtrabackup_checkpoints").write_text("".join(f"{row}\n" for row in lines))
        self._sink.whole.append(self._record.id)


def snapshot(store: Store) -> dict[Place, bytes]:
    """Return each object that a restore reads: records, lists and segments."""
    places = [place for place in _places(store) if ".xbstream" not in place[1]]
    return {place: store.get(*place, 1 << 30) for place in places}


def _places(store: Store) -> list[Place]:
    return [(container, row.name) for container in Container for row in store.list(container)]


def put_back(store: Store, before: Objects, after: Mapping[Place, bytes | None]) -> None:
    """Restore the objects at the places of `after` to their content in `before`."""
    for place in after:
        put(store, place, before.get(place))


def put(store: Store, place: Place, body: bytes | None) -> None:
    """Store an object with the digest of its bytes, or delete it if `body` is None."""
    if body is None:
        store.delete(*place)
    else:
        store.put(*place, [memoryview(body)])


@contextmanager
def chained(bench: Bench, name: str, overrides: Tables | None = None) -> Iterator[Chain]:
    """Make the chain in about 6 s, in a directory unless `overrides` name another store."""
    folder = bench.folder / f"store-{uuid4().hex[:8]}"
    in_folder: Tables = {"store": {"url": f"file://{folder}", "user": None, "key_file": None}}
    given = {**(in_folder if overrides is None else overrides)}
    given["pipeline"] = {"segment_bytes": 1 << 20}
    bench.mariadb.query(f"CREATE SCHEMA {SCHEMA}")
    with bench.agent(name, given) as agent:
        parts = wiring.backup_resources(load(agent.config))
        try:
            yield _make(bench, agent, parts)
        finally:
            parts.store.close()
            bench.mariadb.query(f"DROP SCHEMA {SCHEMA}")


def _make(bench: Bench, agent: Agent, parts: BackupResources) -> Chain:
    first = str(uuid4())
    _fill(bench, "base", 900)
    parts.store.open()
    _back_up(parts, BackupRequest(id=first, name="earlier attempt"))
    older = snapshot(parts.store)
    for place in _places(parts.store):
        parts.store.delete(*place)
    full = _back_up(parts, BackupRequest(id=first, name="base"))
    _fill(bench, "more", 500)
    bench.mariadb.checkpoint()
    request = BackupRequest(id=str(uuid4()), name="inc.001", parent_id=full.id)
    incremental = _back_up(parts, request)
    other = _back_up(parts, BackupRequest(id=str(uuid4()), name="other"))
    chain = Chain(agent, parts, full, incremental, other, snapshot(parts.store), older)
    read = chain.restore(parts.store, agent.folder / "restore" / "whole")
    assert read.whole == [full.id, incremental.id]
    assert len(chain.names(full)) > 4, "too few segments"
    assert len(chain.names(incremental)) > 2, "too few segments"
    return chain


def _fill(bench: Bench, table: str, rows: int) -> None:
    bench.mariadb.query(_ROWS.format(schema=SCHEMA, table=table, rows=rows))


def _back_up(parts: BackupResources, request: BackupRequest) -> Record:
    operation = BackupOperation(
        parts,
        CreateTask(task_id=str(uuid4()), backup=request),
        meter=Meter(),
        stop=Stop(),
        observe_lsn=lambda _lineage, _lsn: "",
        on_begin=lambda _record: None,
        on_finished=lambda _record: None,
    )
    return operation.run()
