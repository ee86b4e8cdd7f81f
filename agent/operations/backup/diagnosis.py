"""Why an engine failed, asked of the server: its words come in the server's own language."""

import re
from collections.abc import Sequence
from typing import Final

from agent.database.flavours import ENGINE_LIMITS
from agent.database.server import Database
from agent.engine.runs import BackupRun
from agent.errors import (
    AgentError,
    DatabaseDenied,
    DatabaseError,
    DatabaseUnreachable,
    EngineFailed,
)
from agent.operations.resources import BackupResources

# A refusal in English, or by its number as XtraBackup writes it. In other languages mariadb-backup
# gives no number, but the server's words hold the names of the privileges.
_DENIED: Final = re.compile(
    r"Access denied|command denied|missing required privilege|: (1044|1045|1142|1143|1227|1370) \("
)


class DiagnosedRun:
    """An engine's run whose failure is looked into before anybody is told of it."""

    def __init__(self, run: BackupRun, resources: BackupResources) -> None:
        self._run = run
        self._resources = resources

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
            safe = self._resources.safe_slave_backup
            raise diagnosed(error, self._resources.database, safe_slave_backup=safe) from error


def diagnosed(
    error: EngineFailed | DatabaseUnreachable, database: Database, *, safe_slave_backup: bool
) -> AgentError:
    """Return the error that tells the cause better, or `error` itself.

    The engine logs in as the agent does. So a login that is refused to the agent was refused to
    the engine, and what the agent's account lacks, the engine lacked. But the failure may have
    another cause, and a right by a role may not be seen.
    """
    try:
        missing = database.missing_privileges(safe_slave_backup=safe_slave_backup)
        limits = database.variables(*ENGINE_LIMITS)
    except DatabaseDenied as denied:
        return DatabaseDenied(f"{error} ({denied})", hint=denied.hint)
    except DatabaseError:
        return error
    if missing:
        return _lacking(error, missing)
    low = [name for name, value in limits.items() if int(value) < ENGINE_LIMITS[name]]
    if low:
        return EngineFailed(
            str(error),
            hint=f"the server's global {' and '.join(low)} may be too low for the engine, which "
            "reads the server's variables by queries: set it to its default",
        )
    return error


def _lacking(error: EngineFailed | DatabaseUnreachable, missing: Sequence[str]) -> AgentError:
    """Return `error` as DatabaseDenied if the engine was refused a query, else with a hint."""
    names = ", ".join(missing)
    if _DENIED.search(error.message) or any(one in error.message for one in missing):
        return DatabaseDenied(
            f"the agent's database user lacks {names}: {error}",
            hint=f"grant {names}; docs/engines.md has the statement",
        )
    return type(error)(
        error.message,
        hint=f"{error.hint}. If that isn't it: the agent's database user may lack {names}, unless "
        "a role gives it",
    )
