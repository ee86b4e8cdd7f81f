"""Watch the record of a running backup, because another process may delete the backup."""

import logging

from agent.errors import AgentError, Cancelled, Fenced, TokenExpired
from agent.model import BackupStatus, Record
from agent.records.catalogue import Catalogue
from agent.stop import Stop

log = logging.getLogger(__name__)

# Seconds between two reads, each of them one small GET. A delete waits PATIENCE_SECONDS
# (operations/delete/family.py) for a running backup to notice it.
WATCH_SECONDS = 3.0
# A store may once report an object as missing although it has it. So the record counts as deleted
# only if it is missing in this many reads in a row.
_GONE_LOOKS = 2


class Watch:
    """A watch that stops a backup if another process deletes or replaces its BUILDING record."""

    def __init__(self, catalogue: Catalogue, record: Record, stop: Stop) -> None:
        self._catalogue = catalogue
        self._record = record
        self._stop = stop
        self._gone = 0

    def check(self) -> None:
        """Read the record once, and request the stop if the backup may not go on.

        A record that can't be read is ignored, because the commit reads it again. An expired token
        ends the backup, because nothing can be stored with it.
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
                log.info("can't read the record of backup %s: %s", self._record.id, error)
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
