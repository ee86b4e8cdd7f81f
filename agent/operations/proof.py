"""The engine's stream as a source that ends only when it is proved to be a whole backup."""

import os
from typing import NamedTuple

from agent.codec.mariadb_stream import MendedStream
from agent.codec.metadata import Checkpoints, parse_binlog_info, parse_checkpoints, parse_info
from agent.codec.stream_paths import MAX_FULL, MAX_INCREMENTAL
from agent.datadir import named
from agent.engine.backup_options import safe_options
from agent.engine.runs import BackupRun
from agent.errors import (
    ContentRefused,
    DatabaseUnreachable,
    EngineFailed,
    LsnMismatch,
    StreamIncomplete,
    StreamInvalid,
)
from agent.model import BinlogPosition
from agent.operations.completeness import Completeness, Tables
from agent.operations.diagnosis import DiagnosedRun
from agent.operations.imports import SHORTER

# What `xtrabackup_info` must not have; mariadb-backup knows fewer of them.
_WHOLE = ("partial", "compact", "compressed", "encrypted")
_NOT_ASKED = (
    "the agent doesn't ask for that: look for such an option in the option files of the machine "
    "(mariadb-backup --print-defaults, xtrabackup --print-defaults)"
)
_SHORT_REDO = (
    "a statement with a line 'Log sequence number' in it deceives the engine: look for it in SHOW "
    "ENGINE INNODB STATUS, end that session and back up again"
)
_MADE_AGAIN = (
    "back up again; while a backup runs, make nothing again under the name of a dropped schema, or "
    "of a dropped or replaced table that wasn't InnoDB's, and drop no schema out of which a table "
    "was moved"
)

_OPTION = (
    "the engine copies it from the server's settings: give that option a plain value there, with "
    "names of letters, digits and _ # @ $ . - only; of plugins those are taken that are called "
    "..._key_management or provider_..."
)


class Proof(NamedTuple):
    """What the stored stream says of itself."""

    checkpoints: Checkpoints
    binlog: BinlogPosition | None
    replica: str | None
    galera: str | None
    raw_bytes: int
    tables: Tables
    longest_path: int


class ProvedStream:
    """Reads an engine's standard output and parses what passes.

    `read_into` returns 0 only after the engine has exited well and said so itself, the
    xbstream is whole, can be laid down and has the options that a restore takes, its LSNs are
    those asked for, the engine says that it left nothing out, and `completeness` finds every
    table in it. Its redo log reaches at
    least to `server_lsn`, where the server was before the run.
    """

    def __init__(
        self,
        run: BackupRun | DiagnosedRun,
        from_lsn: int | None,
        completeness: Completeness,
        server_lsn: int,
    ) -> None:
        self._run = run
        self._server_lsn = server_lsn
        self._from_lsn = from_lsn
        self._completeness = completeness
        self._parser = MendedStream()
        self._mended = b""
        self.proof: Proof | None = None

    def read_into(self, buffer: memoryview) -> int:
        """Fill the buffer; 0 at the proved end. Raises EngineError and StreamError."""
        while not self._mended:
            filled = self._fill(buffer)
            if not filled:
                self.proof = self._prove()
                return 0
            mended = self._parser.passed(buffer[:filled])
            self._check_paths()
            if mended is None:
                return filled
            self._mended = mended
        count = min(len(buffer), len(self._mended))
        buffer[:count] = self._mended[:count]
        self._mended = self._mended[count:]
        return count

    def _check_paths(self) -> None:
        incremental = self._from_lsn is not None
        longest = MAX_INCREMENTAL if incremental else MAX_FULL
        path = self._parser.unopenable(longest=longest, incremental=incremental)
        if path is not None:
            raise StreamInvalid(
                f"no restore takes {named(os.fsdecode(path))}: the path has {len(path)} bytes, and "
                f"{longest} are the most, of which 255 are for the file's name",
                hint=SHORTER,
            )

    def _fill(self, buffer: memoryview) -> int:
        filled = 0
        while filled < len(buffer):
            count = self._run.read_into(buffer[filled:])
            if not count:
                break
            filled += count
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
        self._check_info(parse_info(metadata.get("info", b"")))
        self._check_options(metadata.get("options", b""))
        self._check_names()
        self._check_removed()
        self._check_renamed()
        tables = self._completeness.prove(self._parser, self._run.words_about)
        self._check_definitions()
        binlog = metadata.get("binlog_info")
        return Proof(
            checkpoints=checkpoints,
            binlog=parse_binlog_info(binlog) if binlog else None,
            replica=_text(metadata.get("slave_info")),
            galera=_text(metadata.get("galera_info")),
            raw_bytes=self._parser.raw_bytes + self._parser.inserted,
            tables=tables,
            longest_path=self._parser.longest_opened(incremental=self._from_lsn is not None),
        )

    def _finish_engine(self) -> None:
        try:
            self._run.finish()
        except EngineFailed as failed:
            # its own words tell little where the server ended under it
            try:
                self._completeness.tablespaces()
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
        fault = self._parser.redo.fault(checkpoints.last_lsn)
        if fault is not None:
            raise LsnMismatch(
                f"the copied redo log can't be applied up to LSN {checkpoints.last_lsn}: {fault}",
                hint="the engine read the log while the server wrote it: back up again",
            )

    def _check_info(self, info: dict[str, str]) -> None:
        """Compare what the engine says it was asked for, in `xtrabackup_info`, with what it was.

        An option file of the machine may have asked for less, or for another form.
        """
        if "partial" not in info:
            raise StreamIncomplete("the stream holds no xtrabackup_info")
        left_out = self._completeness.survey.left_out
        for name in _WHOLE:
            allowed = "Y" if name == "partial" and left_out else "N"
            if info.get(name, allowed) != allowed:
                raise StreamIncomplete(
                    f"the engine says that its backup is {name}: {name} = {info[name]}",
                    hint=_NOT_ASKED,
                )
        lsns = (info.get("innodb_from_lsn"), info.get("incremental"))
        asked = (str(self._from_lsn or 0), "N" if self._from_lsn is None else "Y")
        if lsns != asked:
            raise LsnMismatch(
                f"asked for innodb_from_lsn = {asked[0]}, incremental = {asked[1]}, but the "
                f"engine's xtrabackup_info has {lsns[0]} and {lsns[1]}"
            )

    def _check_options(self, options: bytes) -> None:
        """Judge the option file for the prepare as a restore does, which takes no other."""
        try:
            safe_options(options)
        except ContentRefused as refused:
            raise StreamInvalid(f"no restore takes this: {refused}", hint=_OPTION) from refused

    def _check_removed(self) -> None:
        """Look for tables that the engine removed from the stream although they are there."""
        lost = self._parser.lost()
        if lost:
            raise StreamIncomplete(
                f"the engine took {named(os.fsdecode(lost[0]))} for dropped, and left out a table "
                "that is there",
                hint=_MADE_AGAIN,
            )

    def _check_renamed(self) -> None:
        """Look for renames that the prepare of an incremental would get wrong."""
        name = self._parser.confused() if self._from_lsn is not None else None
        if name is not None:
            raise StreamIncomplete(
                f"{named(os.fsdecode(name) + '.ibd')} was renamed, and another got its name, while "
                "this incremental was made: its restore would lose one of them",
                hint="back up again; rename no tables in this way while an incremental is made, or "
                "make a full backup, which holds them",
            )

    def _check_definitions(self) -> None:
        """Look for tables whose definition was copied, and whose data was not."""
        definitions = self._parser.without_data()
        broken = sorted(self._completeness.survey.broken(definitions)) if definitions else []
        if broken:
            raise StreamIncomplete(
                f"of {len(broken)} tables only the definition is in the stream, not the data, "
                f"{broken[-1]} among them",
                hint="the engine loses a table that is renamed or made again while it copies it: "
                "back up at a quieter time",
            )

    def _check_names(self) -> None:
        misnamed = self._parser.misnamed()
        if misnamed is not None:
            raise StreamIncomplete(
                f"the engine renamed a table's file under a wrong name, {misnamed!r}",
                hint="rename no table with a sign or an umlaut in its name, or in that of its "
                "schema, while a backup runs (InnoDB's are safe), and back up again",
            )
        hidden = self._parser.hidden
        if hidden is not None and not self._completeness.survey.hidden_allowed:
            raise StreamInvalid(
                f"the stream holds {hidden!r}, and mbstream takes no name that begins with a dot",
                hint="move what has such a name out of the datadir",
            )


def _a(kind: str) -> str:
    return f"{'an' if kind.startswith('i') else 'a'} {kind}"


def _text(raw: bytes | None) -> str | None:
    return raw.decode(errors="replace").strip() if raw else None
