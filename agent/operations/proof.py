"""The engine's stream as a source that ends only when it is proved to be a whole backup."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from agent.codec.metadata import Checkpoints, parse_binlog_info, parse_checkpoints
from agent.codec.xbstream import XbstreamParser
from agent.database import Tablespace
from agent.engine.runs import BackupRun
from agent.errors import DatabaseUnreachable, EngineFailed, LsnMismatch, StreamIncomplete
from agent.model import BinlogPosition

# Copied tablespaces are whole files; a stream with less than this share of the bytes that
# the server has allocated for them is not a copy of that server.
_PLAUSIBLE_SHARE = 0.5
_SHORT_REDO = (
    "a statement with a line 'Log sequence number' in it deceives the engine: look for it in SHOW "
    "ENGINE INNODB STATUS, end that session and back up again"
)

Tablespaces = Callable[[], Mapping[int, Tablespace]]


class Proof(NamedTuple):
    """What the stored stream says of itself."""

    checkpoints: Checkpoints
    binlog: BinlogPosition | None
    replica: str | None
    galera: str | None
    raw_bytes: int


class ProvedStream:
    """Reads an engine's standard output and parses what passes.

    `read_into` returns 0 only after the engine has exited well and said so itself, the
    xbstream is whole, its LSNs are those asked for, and (for a full backup) every
    tablespace that the server listed both before and after the run is in it. Its redo log
    reaches at least to `server_lsn`, where the server was before the run.
    """

    def __init__(
        self, run: BackupRun, from_lsn: int | None, tablespaces: Tablespaces, server_lsn: int
    ) -> None:
        self._run = run
        self._server_lsn = server_lsn
        self._from_lsn = from_lsn
        self._tablespaces = tablespaces
        self._before = tablespaces() if from_lsn is None else {}
        self._parser = XbstreamParser()
        self.proof: Proof | None = None

    def read_into(self, buffer: memoryview) -> int:
        """Fill the buffer; 0 at the proved end. Raises EngineError and StreamError."""
        filled = 0
        while filled < len(buffer):
            count = self._run.read_into(buffer[filled:])
            if not count:
                break
            filled += count
        if filled:
            self._parser.feed(buffer[:filled])
        else:
            self.proof = self._prove()
        return filled

    def _prove(self) -> Proof:
        # The engine's own failure explains a short stream, so it is asked first.
        self._finish_engine()
        self._parser.finish()
        metadata = self._parser.metadata
        if "checkpoints" not in metadata:
            raise StreamIncomplete("the stream holds no xtrabackup_checkpoints")
        checkpoints = parse_checkpoints(metadata["checkpoints"])
        self._check_lsns(checkpoints)
        if self._from_lsn is None:
            self._check_tablespaces()
        binlog = metadata.get("binlog_info")
        return Proof(
            checkpoints=checkpoints,
            binlog=parse_binlog_info(binlog) if binlog else None,
            replica=_text(metadata.get("slave_info")),
            galera=_text(metadata.get("galera_info")),
            raw_bytes=self._parser.raw_bytes,
        )

    def _finish_engine(self) -> None:
        try:
            self._run.finish()
        except EngineFailed as failed:
            # its own words tell little where the server ended under it
            try:
                self._tablespaces()
            except DatabaseUnreachable as gone:
                raise DatabaseUnreachable(
                    f"the database server went away during the backup: {failed}",
                    hint="see the server's error log for why it ended, then back up again",
                ) from gone
            raise

    def _check_lsns(self, checkpoints: Checkpoints) -> None:
        asked = self._from_lsn or 0
        kind = "full-backuped" if self._from_lsn is None else "incremental"
        if checkpoints.backup_type != kind or checkpoints.from_lsn != asked:
            raise LsnMismatch(
                f"asked for {_a(kind)} backup from LSN {asked}, but the stream is "
                f"{_a(checkpoints.backup_type)} one from LSN {checkpoints.from_lsn}"
            )
        if checkpoints.to_lsn < asked:
            raise LsnMismatch(f"the stream ends at LSN {checkpoints.to_lsn}, before {asked}")
        if checkpoints.last_lsn < self._server_lsn:
            raise LsnMismatch(
                f"the engine copied the redo log to LSN {checkpoints.last_lsn}, but the server was "
                f"at {self._server_lsn} before it began",
                hint=_SHORT_REDO,
            )

    def _check_tablespaces(self) -> None:
        """By number: under the same name a table may be another one by now, dropped and made
        again right after the engine let the DDL go on."""
        after = self._tablespaces()
        lasting = {number: after[number] for number in self._before if number in after}
        held = set(self._parser.spaces.values())
        missing = sorted(
            space.path
            for number, space in lasting.items()
            if number not in held and not self._holds(space.path)
        )
        if missing:
            raise StreamIncomplete(
                f"of the server's tablespaces {len(missing)} are not in the stream, "
                f"{missing[0]} among them"
            )
        allocated = sum(
            min(space.allocated, self._before[number].allocated)
            for number, space in lasting.items()
        )
        if self._parser.raw_bytes < _PLAUSIBLE_SHARE * allocated:
            raise StreamIncomplete(
                f"the stream has {self._parser.raw_bytes} bytes, the server's tablespaces "
                f"have {allocated}"
            )

    def _holds(self, path: str) -> bool:
        """Whether a file of that name is in the stream: one that the server has made but not
        written yet has no number on its first page, and is there as `.new`."""
        return self._parser.contains(path) or self._parser.contains(
            path.removesuffix(".ibd") + ".new"
        )


def _a(kind: str) -> str:
    return f"{'an' if kind.startswith('i') else 'a'} {kind}"


def _text(raw: bytes | None) -> str | None:
    return raw.decode(errors="replace").strip() if raw else None
