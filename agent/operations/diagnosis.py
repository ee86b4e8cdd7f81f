"""Why an engine failed, asked of the server: its words come in the server's own language."""

from agent.database import Database
from agent.dialect import ENGINE_LIMITS
from agent.engine.runs import BackupRun
from agent.errors import (
    AgentError,
    DatabaseDenied,
    DatabaseError,
    DatabaseUnreachable,
    EngineFailed,
)
from agent.operations.parts import BackupParts


class DiagnosedRun:
    """An engine's run whose failure is looked into before anybody is told of it."""

    def __init__(self, run: BackupRun, parts: BackupParts) -> None:
        self._run = run
        self._parts = parts

    def read_into(self, buffer: memoryview) -> int:
        """Read as BackupRun does."""
        return self._run.read_into(buffer)

    def words_about(self, path: str) -> str:
        """Return what the engine said of trouble with a file."""
        return self._run.words_about(path)

    def finish(self) -> None:
        """Finish as BackupRun does; DatabaseDenied also if the account turns out to lack a right.

        After a stop the server is not asked any more: the caller knows why the engine ended.
        """
        try:
            self._run.finish()
        except (EngineFailed, DatabaseUnreachable) as error:
            safe = self._parts.safe_slave_backup
            raise diagnosed(error, self._parts.database, safe_slave_backup=safe) from error


def diagnosed(
    error: EngineFailed | DatabaseUnreachable, database: Database, *, safe_slave_backup: bool
) -> AgentError:
    """Return the error that tells the cause better, or `error` itself.

    The engine logs in as the agent does. So a login that is refused to the agent was refused to
    the engine, and what the agent's account lacks, the engine lacked.
    """
    try:
        missing = database.missing_privileges(safe_slave_backup=safe_slave_backup)
        limits = database.variables(*ENGINE_LIMITS)
    except DatabaseDenied as denied:
        return DatabaseDenied(f"{error} ({denied})", hint=denied.hint)
    except DatabaseError:
        return error
    if missing:
        return DatabaseDenied(
            f"the agent's database user lacks {', '.join(missing)}: {error}",
            hint=f"grant {', '.join(missing)}; docs/engines.md has the statement",
        )
    low = [name for name, value in limits.items() if int(value) < ENGINE_LIMITS[name]]
    if low:
        return EngineFailed(
            str(error),
            hint=f"the server's global {' and '.join(low)} may be too low for the engine, which "
            "reads the server's variables by queries: set it to its default",
        )
    return error
