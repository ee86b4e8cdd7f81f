"""The engine must not wait for a lock of the server without end: others wait behind it.

Both engines' own time limits are no help to everybody: mariadb-backup's makes it wait for a
moment in which the server runs no query at all, and covers the first of its locks only. So the
server's process list is looked at while the engine runs.
"""

import logging
import re
import time
from collections.abc import Sequence
from typing import Final

from agent.database.server import Database, Session
from agent.errors import AgentError, LockTimeout
from agent.stop import Stop

log = logging.getLogger(__name__)

_LONGEST_INTERVAL: Final = 1.0
_NAMED: Final = 5
# Of MariaDB and MySQL: "Waiting for backup lock", "... global read lock", "... table flush".
_WAITING: Final = re.compile(r"Waiting for .*(lock|flush)", re.IGNORECASE)
_LOCKING: Final = re.compile(r"(BACKUP|FLUSH|LOCK) [A-Z_]+( [A-Z_]+)*")
# Sessions that hold no lock: the server's own threads, and those that only send or fetch binlogs.
_HARMLESS: Final = frozenset({"Daemon", "Binlog Dump", "Binlog Dump GTID", "Slave_IO"})
# Its threads are Slave_IO and Slave_SQL on MariaDB, and Connect on MySQL.
_REPLICA: Final = "system user"


class LockWatch:
    """Stops a backup whose engine has waited for one lock longer than `seconds`.

    Make it right before the engine is started, so that it can tell whose the sessions are.
    """

    def __init__(self, database: Database, seconds: float, stop: Stop) -> None:
        self._database = database
        self._seconds = seconds
        self._stop = stop
        self._since: dict[tuple[int, str], float] = {}
        # the engine, which is started later, has sessions of the same account
        self._before = {one.id for one in self._sessions()}

    @property
    def interval(self) -> float:
        """How many seconds may lie between two looks."""
        return min(_LONGEST_INTERVAL, self._seconds / 4)

    def look(self) -> None:
        """Read the process list once. Where it can't be read, the engine itself will fail."""
        sessions = self._sessions()
        now = time.monotonic()
        waiting = {(one.id, one.statement): one for one in sessions if self._waits(one)}
        self._since = {key: self._since.get(key, now) for key in waiting}
        for key, one in waiting.items():
            if now - self._since[key] >= self._seconds:
                self._stop.request(self._timeout(one, sessions))

    def _sessions(self) -> list[Session]:
        try:
            return self._database.sessions()
        except AgentError as error:
            log.info("the server's process list can't be looked at: %s", error)
            return []

    def _waits(self, one: Session) -> bool:
        engines = one.user == self._database.user and _LOCKING.match(one.statement)
        return bool(engines and _WAITING.match(one.state))

    def _timeout(self, waiting: Session, sessions: Sequence[Session]) -> LockTimeout:
        statement = _LOCKING.match(waiting.statement)
        said = statement[0] if statement else waiting.command
        # those of the agent's own account only if they are not the engine's
        others = [
            one for one in sessions if one.user != self._database.user or one.id in self._before
        ]
        holders = _holders(others, self._seconds)
        return LockTimeout(
            f"the engine has waited for {said} ({waiting.state}) for {self._seconds:g} s; "
            f"sessions that may hold the lock: {', '.join(holders) or 'none to be seen'}"
        )


def _holders(sessions: Sequence[Session], seconds: float) -> list[str]:
    """Who may hold the lock, by the ids that KILL takes: those that run something, or else idle
    ones (with LOCK TABLES or an open transaction). The server names nobody; whoever waits itself,
    or began later, is not the one. Only the first word of a statement is told."""
    others = [
        one
        for one in sessions
        if one.command not in _HARMLESS
        # a replica's threads, as long as they execute nothing
        and (one.user != _REPLICA or one.statement)
        and one.seconds >= int(seconds) - 1
        and not _WAITING.match(one.state)
    ]
    others.sort(key=lambda one: (one.command == "Sleep", -one.seconds))
    return [f"{one.id} ({_does(one)} for {one.seconds} s)" for one in others[:_NAMED]]


def _does(one: Session) -> str:
    words = re.match(r"\w+", one.statement)
    return words[0].upper() if words else "idle" if one.command == "Sleep" else one.command
