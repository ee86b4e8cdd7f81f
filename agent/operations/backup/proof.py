"""Read the engine's stream, and end it only after it is proved to be a complete backup."""

import os
from typing import NamedTuple

from agent.codec.mariadb_stream import MendingParser
from agent.codec.metadata import Checkpoints, parse_binlog_info, parse_checkpoints, parse_info
from agent.codec.stream_paths import MAX_FULL, MAX_INCREMENTAL
from agent.database.datadir import in_words
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
from agent.operations.backup.completeness import Completeness, Tables
from agent.operations.backup.diagnosis import DiagnosedRun
from agent.operations.backup.imports import SHORTER

# The properties of a backup that is not whole. In `xtrabackup_info` they must be N, or not stated.
# Only `partial` must be Y if a `lost+found` is left out. mariadb-backup states only some of them.
_NOT_WHOLE = ("partial", "compact", "compressed", "encrypted")
_NOT_ASKED = (
    "the agent doesn't set this option: look for it in the option files of the machine "
    "(mariadb-backup --print-defaults, xtrabackup --print-defaults)"
)
_SHORT_REDO = (
    "the engine reads a wrong LSN from a statement that contains a line 'Log sequence number': "
    "look for it in SHOW ENGINE INNODB STATUS, end that session and back up again"
)
_MADE_AGAIN = (
    "back up again. While a backup runs, don't reuse the name of a dropped schema, or of a dropped "
    "or replaced table that wasn't InnoDB's, and don't drop a schema out of which a table was moved"
)

_OPTION = (
    "the engine copies this option from the server's settings: give it a plain value there, with "
    "names of letters, digits and _ # @ $ . - only. The only plugins that a restore accepts are "
    "named ..._key_management or provider_..."
)


class Proof(NamedTuple):
    """The facts that a proved stream states about its backup."""

    checkpoints: Checkpoints
    binlog: BinlogPosition | None
    replica: str | None
    galera: str | None
    raw_bytes: int
    tables: Tables
    longest_path: int


class ProvedStream:
    """A source that reads an engine's standard output and parses it on the way.

    `read_into` returns 0 only if all of these hold:

    - The engine exited with success, and its log says so.
    - The xbstream is complete and can be extracted.
    - Its option file has only options that a restore accepts.
    - Its LSNs are the requested ones.
    - The engine states that it left nothing out but an empty `lost+found`.
    - `completeness` finds every table in the stream.
    - The copied redo log reaches at least to `server_lsn`, the server's LSN before the run.

    `from_lsn` is the LSN at which an incremental begins, None for a full backup.
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
        self._parser = MendingParser()
        self._mended = b""
        self.proof: Proof | None = None

    def read_into(self, buffer: memoryview) -> int:
        """Read into the buffer and return the number of bytes, 0 at the end of a proved stream.

        Raises:
            EngineError, StreamError, DatadirUnfit: the engine fails or the stream can't be proved.
            DatabaseUnreachable, DatabaseDenied: the server doesn't list its tables at the end.
        """
        while not self._mended:
            filled = self._fill(buffer)
            if not filled:
                self.proof = self._prove()
                return 0
            mended = self._parser.mend(buffer[:filled])
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
                f"no restore takes {in_words(os.fsdecode(path))}: the path has {len(path)} bytes, "
                f"and {longest} are the most, with at most 255 for the file's name",
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
        # First, because a failure of the engine explains a short stream.
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
            # If the server ended during the backup, the engine's messages explain little.
            try:
                self._completeness.tablespaces()
            except DatabaseUnreachable as gone:
                raise DatabaseUnreachable(
                    f"the database server stopped during the backup: {failed}",
                    hint="look in the server's error log for the reason, then back up again",
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
        """Check that `xtrabackup_info` states the backup that the agent requested.

        An option file of the machine may have requested less data, or another form of it.
        """
        if "partial" not in info:
            raise StreamIncomplete("the stream holds no xtrabackup_info")
        left_out = self._completeness.survey.left_out
        for name in _NOT_WHOLE:
            allowed = "Y" if name == "partial" and left_out else "N"
            if info.get(name, allowed) != allowed:
                raise StreamIncomplete(
                    f"the engine states that its backup is {name}: {name} = {info[name]}",
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
        """Check the option file for the prepare with the same rules as a restore."""
        try:
            safe_options(options)
        except ContentRefused as refused:
            raise StreamInvalid(
                f"a restore would refuse this backup: {refused}", hint=_OPTION
            ) from refused

    def _check_removed(self) -> None:
        """Check that the engine removed no table from the stream that still exists."""
        lost = self._parser.wrongly_removed()
        if lost:
            raise StreamIncomplete(
                f"the engine treated {in_words(os.fsdecode(lost[0]))} as dropped, and left out a "
                "table that exists",
                hint=_MADE_AGAIN,
            )

    def _check_renamed(self) -> None:
        """Check that there are no renames that the prepare of an incremental would get wrong."""
        name = self._parser.confused() if self._from_lsn is not None else None
        if name is not None:
            raise StreamIncomplete(
                f"{in_words(os.fsdecode(name) + '.ibd')} was renamed, and another got its name, "
                "while this incremental was made: its restore would lose one of them",
                hint="back up again, and rename no tables in this way while an incremental is "
                "made. Or make a full backup, which holds them",
            )

    def _check_definitions(self) -> None:
        """Check that no table is in the stream with its definition but without its data."""
        definitions = self._parser.without_data()
        broken = sorted(self._completeness.survey.broken(definitions)) if definitions else []
        if broken:
            raise StreamIncomplete(
                f"of {len(broken)} tables only the definition is in the stream, not the data, "
                f"{broken[-1]} among them",
                hint="the engine loses a table that is renamed or recreated while it is copied: "
                "back up at a quieter time",
            )

    def _check_names(self) -> None:
        misnamed = self._parser.misnamed()
        if misnamed is not None:
            raise StreamIncomplete(
                f"the engine renamed a table's file under a wrong name, {misnamed!r}",
                hint="back up again, and while a backup runs, rename no table with a special "
                "character or an umlaut in its name or its schema's name (InnoDB's are safe)",
            )
        hidden = self._parser.hidden
        if hidden is not None and not self._completeness.survey.hidden_allowed:
            raise StreamInvalid(
                f"the stream holds {hidden!r}, and mbstream takes no name that begins with a dot",
                hint="move files and directories with such names out of the datadir",
            )


def _a(kind: str) -> str:
    return f"{'an' if kind.startswith('i') else 'a'} {kind}"


def _text(raw: bytes | None) -> str | None:
    return raw.decode(errors="replace").strip() if raw else None
