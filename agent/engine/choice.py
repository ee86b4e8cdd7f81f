"""The engines of this machine, chosen by the server of the moment or by a backup's record."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from agent.engine.compatibility import check_record, check_server, engine_for
from agent.engine.protocol import Engine
from agent.errors import EngineUnsupported


class EngineVersion(NamedTuple):
    """An engine, and the version that it has just stated."""

    engine: Engine
    version: str


class Engines:
    """All engines by their names; with `kind`, backups are made by that one only."""

    def __init__(self, engines: Mapping[str, Engine], kind: str | None = None) -> None:
        self._engines = engines
        self._kind = kind

    def for_server(
        self, server_type: str, server_version: str, datadir: Path | None = None
    ) -> EngineVersion:
        """The engine for backups of that server, started once to learn its version.

        With its datadir it knows what to copy, and whom to run as where the agent is root.
        EngineUnsupported where it can't copy that server; EngineMissing, EngineFailed.
        """
        name = engine_for(server_type, server_version)
        if self._kind not in (None, name):
            raise EngineUnsupported(
                f"{server_type} {server_version} is copied by {name}, not by {self._kind}",
                hint='set [engine] kind = "auto", which takes the one that fits',
            )
        engine = self._engines[name]
        if datadir is not None:
            engine = engine.beside(datadir)
        version = engine.version()
        check_server(server_type, server_version, engine.name, version)
        return EngineVersion(engine, version)

    def for_record(self, name: str, version: str) -> Engine:
        """The engine that restores what the engine `name` copied in that version.

        EngineUnsupported where it is unknown or of another series; EngineMissing, EngineFailed.
        """
        if name not in self._engines:
            raise EngineUnsupported(
                f"the backup was made by {name}, which this agent does not know"
            )
        engine = self._engines[name]
        check_record(name, version, engine.version())
        return engine
