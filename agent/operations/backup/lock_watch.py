"""Stop a backup if its engine waits too long for a lock of the server.

Other sessions wait behind the engine's lock request, so it must not wait without a limit. The time
limits of the engines themselves are not enough. The limit of mariadb-backup makes it wait for a
moment in which the server runs no query at all, and it covers only the first of its locks. So the
agent reads the server's process list while the engine runs.
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
# States of MariaDB and MySQL: "Waiting for backup lock", "... global read lock", "... table flush".
_WAITING: Final = re.compile(r"Waiting for .*(lock|flush)", re.IGNORECASE)
_LOCKING: Final = re.compile(r"(BACKUP|FLUSH|LOCK) [A-Z_]+( [A-Z_]+)*")
# Commands of sessions that hold no lock: the server's own threads, and the threads that only send
# or fetch binlogs.
_HARMLESS: Final = frozenset({"Daemon", "Binlog Dump", "Binlog Dump GTID", "Slave_IO"})
# The user of a replica's threads. Their command is Slave_IO and Slave_SQL on MariaDB, and Connect
# on MySQL.
_REPLICA: Final = "system user"


class LockWatch:
    """A watch that stops a backup if its engine has waited `seconds` for one lock.

    Make it right before the engine is started: it notes the sessions that exist at that time, so
    that it can tell the engine's sessions from others of the same account.
    """

    def __init__(self, database: Database, seconds: float, stop: Stop) -> None:
        self._database = database
        self._seconds = seconds
        self._stop = stop
        self._since: dict[tuple[int, str], float] = {}
        # Later sessions of the same account may be the engine's.
        self._before = {one.id for one in self._sessions()}

    @property
    def interval(self) -> float:
        """Return the seconds between two calls of `check`."""
        return min(_LONGEST_INTERVAL, self._seconds / 4)

    def check(self) -> None:
        """Read the process list once, and request the stop if the engine waits too long.

        An error is only logged: if the list can't be read, the engine will probably fail.
        """
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
            log.info("can't read the server's process list: %s", error)
            return []

    def _waits(self, one: Session) -> bool:
        engines = one.user == self._database.user and _LOCKING.match(one.statement)
        return bool(engines and _WAITING.match(one.state))

    def _timeout(self, waiting: Session, sessions: Sequence[Session]) -> LockTimeout:
        statement = _LOCKING.match(waiting.statement)
        said = statement[0] if statement else waiting.command
        # A session of the agent's own account counts only if it can't be the engine's.
        others = [
            one for one in sessions if one.user != self._database.user or one.id in self._before
        ]
        holders = _holders(others, self._seconds)
        return LockTimeout(
            f"the engine has waited for {said} ({waiting.state}) for {self._seconds:g} s; "
            f"sessions that may hold the lock: {', '.join(holders) or 'none to be seen'}"
        )


def _holders(sessions: Sequence[Session], seconds: float) -> list[str]:
    """Return the sessions that may hold the lock, by the ids that KILL takes, at most five.

    The server doesn't name the holder. Sessions that run a statement come first, then idle ones,
    which may hold it by LOCK TABLES or an open transaction. A session is not the holder if it waits
    itself, or has been in its state for less than about `seconds`. Only the first word of a
    statement is shown.
    """
    others = [
        one
        for one in sessions
        if one.command not in _HARMLESS
        # A replica's thread that executes nothing holds no lock.
        and (one.user != _REPLICA or one.statement)
        and one.seconds >= int(seconds) - 1
        and not _WAITING.match(one.state)
    ]
    others.sort(key=lambda one: (one.command == "Sleep", -one.seconds))
    return [f"{one.id} ({_does(one)} for {one.seconds} s)" for one in others[:_NAMED]]


def _does(one: Session) -> str:
    words = re.match(r"\w+", one.statement)
    return words[0].upper() if words else "idle" if one.command == "Sleep" else one.command
