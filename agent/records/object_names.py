"""The names of stored objects and the format of segment lists (docs/format.md)."""

import hashlib
import re
from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID, uuid4

from agent.errors import DataDamaged
from agent.model import ListRef, is_uuid

LIST_ENTRIES = 1000
RECORD_SUFFIX = ".json"
# Used in place of an attempt in the names of the segments of a self-test.
SELF_TEST = "self-test"
_MARK_BITS = 48
_PART = re.compile(r"\d{8,}|(list|slo)-\d{4,}")
_LIST_LINE = re.compile(rb"(\d{1,12}) ([0-9a-f]{32})")


class Segment(NamedTuple):
    """One stored segment of a backup, with its size in bytes and its MD5 in hex."""

    size: int
    md5: str


def new_attempt(instance_id: str) -> str:
    """Return an id for one attempt of an instance, with a mark by which the instance knows it.

    It is a UUID of version 8 (RFC 9562, section 5.8). Its first 48 bits are those of the SHA-256 of
    the instance's id. Its other 74 free bits are random.
    """
    random = uuid4().int & ((1 << 128 - _MARK_BITS) - 1) & ~(0xF << 76)
    return str(UUID(int=_mark(instance_id) << 128 - _MARK_BITS | 8 << 76 | random))


def is_attempt_of(attempt: str, instance_id: str) -> bool:
    """Return True if the id has the mark of that instance, as `new_attempt` makes it."""
    if not is_uuid(attempt):
        return False
    found = UUID(attempt)
    return found.version == 8 and found.int >> 128 - _MARK_BITS == _mark(instance_id)


def _mark(instance_id: str) -> int:
    return int.from_bytes(hashlib.sha256(instance_id.encode()).digest()[: _MARK_BITS // 8])


def container_name(tenant_id: str) -> str:
    return f"database_backups_{tenant_id}"


def object_name(backup_id: str, *, sealed: bool = True) -> str:
    """Return the name of the object that joins a backup's segments.

    Without encryption the name lacks `.enc`.
    """
    return f"{backup_id}.xbstream.gz.enc" if sealed else f"{backup_id}.xbstream.gz"


def record_name(backup_id: str) -> str:
    return backup_id + RECORD_SUFFIX


def checks_name(backup_id: str) -> str:
    """Return the name that is reserved for the results of a backup's verify runs.

    No agent writes this object yet, because the task `backup.verify` is not supported. A delete and
    gc remove it.
    """
    return f"{backup_id}.checks.json"


def backup_prefix(backup_id: str) -> str:
    """Return the prefix of the names of all attempts of a backup in the container SEGMENTS."""
    return f"{backup_id}/"


def attempt_prefix(backup_id: str, attempt: str) -> str:
    return f"{backup_prefix(backup_id)}{attempt}/"


def segment_name(backup_id: str, attempt: str, number: int) -> str:
    return f"{attempt_prefix(backup_id, attempt)}{number:08d}"


def list_name(backup_id: str, attempt: str, number: int) -> str:
    return f"{attempt_prefix(backup_id, attempt)}list-{number:04d}"


def submanifest_name(backup_id: str, attempt: str, number: int) -> str:
    return f"{attempt_prefix(backup_id, attempt)}slo-{number:04d}"


def attempt_in(name: str) -> str | None:
    """Return the attempt that a segment, list or sub-manifest belongs to.

    Return None for every other name.
    """
    _, _, below = name.partition("/")
    attempt, _, part = below.partition("/")
    known = _PART.fullmatch(part) and (attempt == SELF_TEST or is_uuid(attempt))
    return attempt if known else None


def encode_list(segments: Sequence[Segment]) -> bytes:
    """Return a segment list, one line a segment, with its size in decimal, a space and its MD5."""
    return b"".join(b"%d %s\n" % (size, md5.encode()) for size, md5 in segments)


def list_ref(encoded: bytes) -> ListRef:
    return ListRef(count=encoded.count(b"\n"), sha256=hashlib.sha256(encoded).hexdigest())


def decode_list(encoded: bytes, expected: ListRef) -> list[Segment]:
    """Return the segments of a stored list.

    Raises:
        DataDamaged: it is not the list that `expected` names.
    """
    if hashlib.sha256(encoded).hexdigest() != expected.sha256:
        raise DataDamaged("a segment list does not have the SHA-256 that the backup's record names")
    rows = [_LIST_LINE.fullmatch(line) for line in encoded.splitlines()]
    segments = [Segment(int(row[1]), row[2].decode()) for row in rows if row]
    if len(segments) != len(rows) or len(rows) != expected.count:
        raise DataDamaged("a segment list has lines that describe no segments")
    return segments
