"""Find out from the server why an engine failed.

The engine's own messages are not enough, because they quote the server in the server's language.
"""

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
    LockTimeout,
)
from agent.operations.resources import InstanceResources

# A refusal in English, or by its number as XtraBackup writes it. In other languages mariadb-backup
# gives no number, but the server's message contains the names of the privileges.
_DENIED: Final = re.compile(
    r"Access denied|command denied|missing required privilege|: (1044|1045|1142|1143|1227|1370) \("
)


class DiagnosedRun:
    """An engine's run that looks for the cause of a failure before it raises the error."""

    def __init__(self, run: BackupRun, resources: InstanceResources) -> None:
        self._run = run
        self._resources = resources

    def read_into(self, buffer: memoryview) -> int:
        """Read as BackupRun does."""
        return self._run.read_into(buffer)

    def words_about(self, path: str) -> str:
        """Return the engine's own message about a problem with a file."""
        return self._run.words_about(path)

    def finish(self) -> None:
        """Finish as BackupRun does, and raise the likely cause if the engine failed.

        After a stop the server isn't queried, because the caller knows why the engine ended.

        Raises:
            DatabaseDenied: the failure comes from a privilege that the account lacks.
        """
        try:
            self._run.finish()
        except (EngineFailed, DatabaseUnreachable) as error:
            safe = self._resources.safe_slave_backup
            raise diagnosed(error, self._resources.database, safe_slave_backup=safe) from error


def diagnosed(
    error: EngineFailed | DatabaseUnreachable, database: Database, *, safe_slave_backup: bool
) -> AgentError:
    """Return an error that explains the failure better, or `error` itself.

    The engine logs in with the account of the agent. So the engine was refused each login that the
    agent is refused, and it lacked each privilege that the agent's account lacks. But the failure
    may have another cause, and a privilege that a role gives may not be visible.
    """
    try:
        missing = database.missing_privileges(safe_slave_backup=safe_slave_backup)
        limits = database.variables(*ENGINE_LIMITS)
    except DatabaseDenied as denied:
        return DatabaseDenied(f"{error} ({denied})", hint=denied.hint)
    except (DatabaseError, LockTimeout):
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
    """Return DatabaseDenied if the engine was refused a query, else `error` with a longer hint."""
    names = ", ".join(missing)
    if _DENIED.search(error.message) or any(one in error.message for one in missing):
        return DatabaseDenied(
            f"the agent's database user lacks {names}: {error}",
            hint=f"grant {names}. docs/engines.md has the statement",
        )
    return type(error)(
        error.message,
        hint=f"{error.hint}. If that is not the cause: the agent's database user may lack {names}, "
        "unless a role gives it",
    )
