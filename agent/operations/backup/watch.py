"""A backup in the making looks at its own record: somebody may have deleted it meanwhile."""

import logging

from agent.errors import AgentError, Cancelled, Fenced, TokenExpired
from agent.model import BackupStatus, Record
from agent.records.catalogue import Catalogue
from agent.stop import Stop

log = logging.getLogger(__name__)

# One small GET each; a delete waits PATIENCE_SECONDS (operations/delete.py) to be noticed.
WATCH_SECONDS = 3.0
# A store may deny an object once that it has: only the second time in a row is believed.
_GONE_LOOKS = 2


class Watch:
    """Stops the making of a backup whose record isn't its own BUILDING one any more."""

    def __init__(self, catalogue: Catalogue, record: Record, stop: Stop) -> None:
        self._catalogue = catalogue
        self._record = record
        self._stop = stop
        self._gone = 0

    def look(self) -> None:
        """Read the record once. What can't be read says nothing: the commit looks again.

        But a token that has expired ends the backup: nothing can be stored any more.
        """
        with self._stop.guard():
            self._look()

    def _look(self) -> None:
        try:
            there = self._catalogue.read(self._record.id)
        except TokenExpired as error:
            self._stop.request(error)
            return
        except AgentError as error:
            if self._stop.cause is None:
                log.info("the record of backup %s can't be looked at: %s", self._record.id, error)
            return
        self._gone = 0 if there else self._gone + 1
        cause = self._cause(there)
        if cause is not None:
            self._stop.request(cause)

    def _cause(self, there: Record | None) -> AgentError | None:
        backup = f"backup {self._record.id}"
        if there is None:
            return Cancelled(f"{backup} is deleted") if self._gone >= _GONE_LOOKS else None
        if there.attempt != self._record.attempt:
            return Fenced(f"{backup} belongs to attempt {there.attempt}")
        if there.status is BackupStatus.DELETING:
            return Cancelled(f"{backup} is being deleted")
        return None
