"""Named places at which the fault suite ends the process with SIGKILL, as `kill -9` does.

The environment variable BACKUP_AGENT_CRASH_AT names a place and how many times the process must
reach it. `segment-stored:3` ends the process at the third stored segment. Only tests set the
variable. Without it a crash point does nothing.
"""

import os
import signal
from collections import Counter
from enum import StrEnum
from typing import Final

VARIABLE: Final = "BACKUP_AGENT_CRASH_AT"


class Point(StrEnum):
    """The crash points, grouped by operation.

    Those of one operation are in the order in which a task reaches them.
    """

    ACCEPTED = "accepted"  # the task is in the journal, the broker has no acknowledgement
    CLAIMED = "claimed"  # the task is RUNNING in the journal, its work has not begun
    RECORD_BEGUN = "record-begun"  # the store has the BUILDING record, no report was made
    SEGMENT_STORED = "segment-stored"  # the store has one more segment
    LISTS_STORED = "lists-stored"  # all segments and lists are stored, the engine has ended
    RECORD_JOURNALLED = "record-journalled"  # the journal has the finished record
    # the joined object is stored if the store joins segments, the record is BUILDING
    OBJECT_STORED = "object-stored"
    RECORD_COMPLETED = "record-completed"  # the record is COMPLETED, no report was made
    RECORD_FAILED = "record-failed"  # a failed backup's record is written, its bytes are stored
    BYTES_REMOVED = "bytes-removed"  # a failed backup's bytes are removed, no report was made
    REPORTED = "reported"  # the final report is in the journal
    PUBLISHED = "published"  # the broker confirmed a report, the journal doesn't show it yet
    RESTORE_EXTRACTED = "restore-extracted"  # the full backup is extracted, not prepared
    RESTORE_PREPARED = "restore-prepared"  # the whole chain is prepared, no report was made
    DELETE_CONDEMNED = "delete-condemned"  # the record of the root is DELETING
    DELETE_BYTES = "delete-bytes"  # the bytes of one backup are deleted, its record isn't
    DELETE_FORGOTTEN = "delete-forgotten"  # the record of that backup is deleted, too
    CANCEL_JOURNALLED = "cancel-journalled"  # the cancel is in the journal, nothing is stopped
    RECOVERED = "recovered"  # an interrupted task is settled in the store, no report was made
    GC_FOUND = "gc-found"  # the orphans are known, none is removed
    GC_REMOVED = "gc-removed"  # one orphan is removed


_seen: Counter[str] = Counter()


def armed() -> str:
    """Return the value of the environment variable, or an empty string if it is not set.

    The command line warns about it.
    """
    return os.environ.get(VARIABLE, "")


def reached(point: Point) -> None:
    """End the process with SIGKILL if the environment variable names this crash point."""
    wanted, _, times = armed().partition(":")
    if wanted != point:
        return
    _seen[point] += 1
    if _seen[point] == int(times or 1):
        os.kill(os.getpid(), signal.SIGKILL)
