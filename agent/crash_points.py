"""Named places at which the fault suite ends the process, as `kill -9` would.

The environment variable names one, and which time it is reached: `segment-stored:3`. Without
it, which is always but under test, reaching a place does nothing.
"""

import os
import signal
from collections import Counter
from enum import StrEnum
from typing import Final

VARIABLE: Final = "BACKUP_AGENT_CRASH_AT"


class Point(StrEnum):
    """The places, in the order in which the walk of a task comes by."""

    ACCEPTED = "accepted"  # the task is journalled, the broker doesn't know yet
    CLAIMED = "claimed"  # it is RUNNING by the journal, nothing was done
    RECORD_BEGUN = "record-begun"  # BUILDING is in the store, and nobody was told
    SEGMENT_STORED = "segment-stored"
    LISTS_STORED = "lists-stored"  # all segments and lists; the engine has ended
    RECORD_JOURNALLED = "record-journalled"  # the finished one
    OBJECT_STORED = "object-stored"
    RECORD_COMPLETED = "record-completed"  # and nobody was told
    RECORD_FAILED = "record-failed"  # a failed backup's record is written, its bytes are there
    BYTES_REMOVED = "bytes-removed"  # a failed backup's, and nobody was told
    REPORTED = "reported"  # the final report is journalled
    PUBLISHED = "published"  # the broker confirmed a report, the journal doesn't know yet
    RESTORE_EXTRACTED = "restore-extracted"
    RESTORE_PREPARED = "restore-prepared"  # and nobody was told
    DELETE_CONDEMNED = "delete-condemned"  # the root is DELETING
    DELETE_BYTES = "delete-bytes"  # the bytes of one backup are gone, its record isn't
    DELETE_FORGOTTEN = "delete-forgotten"  # one backup's record is gone, too
    CANCEL_JOURNALLED = "cancel-journalled"  # nothing was stopped yet
    RECOVERED = "recovered"  # a crashed task is settled in the store, and nobody was told
    GC_FOUND = "gc-found"  # orphans are known, none was removed
    GC_REMOVED = "gc-removed"  # one orphan was removed


_seen: Counter[str] = Counter()


def armed() -> str:
    """What the environment names, for whoever has to warn of it; empty where it names nothing."""
    return os.environ.get(VARIABLE, "")


def reached(point: Point) -> None:
    """End the process here with SIGKILL, if the environment says so."""
    wanted, _, times = armed().partition(":")
    if wanted != point:
        return
    _seen[point] += 1
    if _seen[point] == int(times or 1):
        os.kill(os.getpid(), signal.SIGKILL)
