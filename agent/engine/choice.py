"""The engines of this machine, chosen by the running server or by a backup's record."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from agent.engine.compatibility import check_record, check_server, engine_for
from agent.engine.protocol import Engine
from agent.errors import EngineUnsupported


class EngineVersion(NamedTuple):
    """An engine, and the version that its program states."""

    engine: Engine
    version: str


class Engines:
    """All engines by their names.

    With `kind`, only the engine of that name makes backups.
    """

    def __init__(self, engines: Mapping[str, Engine], kind: str | None = None) -> None:
        self._engines = engines
        self._kind = kind

    def copying(self, server_type: str, server_version: str) -> Engine:
        """Return the engine that copies servers of this type and version.

        Its program is not started, and need not be installed. `kind` doesn't matter.

        Raises:
            EngineUnsupported: no engine copies this server.
        """
        return self._engines[engine_for(server_type, server_version)]

    def for_server(
        self, server_type: str, server_version: str, datadir: Path | None = None
    ) -> EngineVersion:
        """Return the engine for backups of this server, with the version that its program states.

        The program is started once to learn its version. With `datadir` the engine knows which
        directory to copy and, if the agent is root, which user to run as.

        Raises:
            EngineUnsupported: no engine, or not the allowed one, can copy this server.
            EngineMissing, EngineFailed, EngineSilent: the version can't be learned, or the owner of
                the datadir can't be read.
        """
        name = engine_for(server_type, server_version)
        if self._kind not in (None, name):
            raise EngineUnsupported(
                f"{server_type} {server_version} is copied by {name}, not by {self._kind}",
                hint='set [engine] kind = "auto", which chooses the engine that fits the server',
            )
        engine = self._engines[name]
        if datadir is not None:
            engine = engine.for_datadir(datadir)
        version = engine.version()
        check_server(server_type, server_version, engine.name, version)
        return EngineVersion(engine, version)

    def restoring(self, name: str, version: str | None) -> Engine:
        """Return the engine that restores a backup made by the engine `name` in this version.

        If `version` is None, the version is unknown, and every installed one is taken.

        Raises:
            EngineUnsupported: the engine is unknown, or the installed one is of another series.
            EngineMissing, EngineFailed, EngineSilent: the installed version can't be learned.
        """
        if name not in self._engines:
            raise EngineUnsupported(
                f"the backup was made by {name}, an engine that this agent does not know"
            )
        engine = self._engines[name]
        installed = engine.version()
        if version is not None:
            check_record(name, version, installed)
        return engine
