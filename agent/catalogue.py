"""The records of a container: read, list, chains, and fenced writes.

Swift has no compare-and-set. Before each write the record is read again, so two agents
that work on one backup notice each other, except in the moment between that read and the
write.
"""

from collections.abc import Iterator
from typing import NamedTuple

from pydantic import ValidationError

from agent.errors import (
    BackupExists,
    BackupUnknown,
    BackupUnusable,
    DataDamaged,
    Fenced,
    KeyNotHere,
    RecordDamaged,
    RecordUnsupported,
    StoreMismatch,
    StoreNotFound,
)
from agent.keys import Keyring, RecordState
from agent.layout import RECORD_SUFFIX, Segment, decode_list, list_name, record_name
from agent.model import FORMAT_VERSION, BackupStatus, Record, canonical_uuid
from agent.store.protocol import Shelf, Store

# A record is about 2 KiB, and 100 bytes for each list of 1000 segments (16 GiB of stored
# bytes): 4 MiB is enough for half a petabyte, and a bound against a hostile container.
RECORD_LIMIT = 4 << 20
LIST_LIMIT = 1 << 20
# Parsing hostile JSON takes up to 250 times its size in memory, so this is all that is
# parsed of what nobody here vouches for; a real record of this size is of a 40 TiB backup.
_UNTRUSTED_LIMIT = 256 << 10
# A chain longer than this is a loop or a mistake; nothing restores from it in useful time.
CHAIN_LIMIT = 10_000
_COMPLETABLE = (BackupStatus.BUILDING,)
_CHANGEABLE = (BackupStatus.BUILDING, BackupStatus.FAILED, BackupStatus.CANCELLED)


class Listed(NamedTuple):
    """One row of the catalogue; `record` is None where the bytes make no record."""

    backup_id: str
    state: RecordState
    record: Record | None


class Catalogue:
    """All records of one store, opened with one keyring."""

    def __init__(self, store: Store, keyring: Keyring) -> None:
        self._store = store
        self._keyring = keyring

    def look(self, backup_id: str) -> Listed | None:
        """One record as it is, trusted or not; None where there is none."""
        opened = self._open(backup_id)
        if opened is None:
            return None
        state, line = opened
        if state is not RecordState.OK and len(line) > _UNTRUSTED_LIMIT:
            return Listed(backup_id, state, None)
        try:
            return Listed(backup_id, state, _parse(backup_id, line))
        except (RecordDamaged, RecordUnsupported):
            return Listed(backup_id, RecordState.BAD, None)

    def read(self, backup_id: str) -> Record | None:
        """A record that can be trusted, or None where there is none.

        RecordDamaged, RecordUnsupported or KeyNotHere where it can't be trusted.
        """
        opened = self._open(backup_id)
        if opened is None:
            return None
        state, line = opened
        if state is RecordState.KEY_NOT_HERE:
            raise KeyNotHere(f"no key on this machine can check the record of backup {backup_id}")
        if state is not RecordState.OK:
            raise RecordDamaged(f"the record of backup {backup_id} fails its MAC")
        return _parse(backup_id, line)

    def need(self, backup_id: str) -> Record:
        """A record that can be trusted; BackupUnknown where there is none."""
        record = self.read(backup_id)
        if record is None:
            raise BackupUnknown(f"there is no backup {backup_id} in {self._store.location}")
        return record

    def records(self) -> Iterator[Listed]:
        """Every record of the container, readable or not, in order of ids."""
        for row in self._store.list(Shelf.OBJECTS):
            backup_id = row.name.removesuffix(RECORD_SUFFIX)
            if row.name == backup_id or not _is_id(backup_id):
                continue
            if row.size > RECORD_LIMIT:
                yield Listed(backup_id, RecordState.BAD, None)
                continue
            try:
                listed = self.look(backup_id)
            except StoreMismatch:
                # one object that can't be read as stored must not hide the others
                listed = Listed(backup_id, RecordState.BAD, None)
            if listed is not None:
                yield listed

    def chain(self, backup_id: str) -> list[Record]:
        """The records from the full backup to this one, all COMPLETED and fitting together.

        BackupUnknown or BackupUnusable otherwise.
        """
        chain = [self.need(backup_id)]
        while True:
            child = chain[0]
            if child.status is not BackupStatus.COMPLETED:
                raise BackupUnusable(f"backup {child.id} is {child.status}, not COMPLETED")
            if child.parent_id is None:
                return chain
            if len(chain) >= CHAIN_LIMIT:
                raise BackupUnusable(f"the chain of backup {backup_id} does not end")
            parent = self.need(child.parent_id)
            if parent.to_lsn != child.from_lsn:
                raise BackupUnusable(
                    f"backup {child.id} begins at LSN {child.from_lsn}, but its parent "
                    f"{parent.id} ends at {parent.to_lsn}"
                )
            chain.insert(0, parent)

    def segments(self, record: Record) -> list[Segment]:
        """All segments of a COMPLETED backup, from its lists; DataDamaged where one is wrong."""
        if record.stored is None:
            raise BackupUnusable(f"the record of backup {record.id} names no stored bytes")
        found: list[Segment] = []
        for number, ref in enumerate(record.stored.lists):
            name = list_name(record.id, record.attempt, number)
            try:
                encoded = self._store.get(Shelf.SEGMENTS, name, LIST_LIMIT)
            except (StoreMismatch, StoreNotFound) as error:
                raise DataDamaged(
                    f"segment list {number} of backup {record.id} is not as stored: {error}"
                ) from error
            found += decode_list(encoded, ref)
        return found

    def begin(self, record: Record) -> None:
        """Write the BUILDING record of an attempt; BackupExists where the id is taken."""
        there = self.read(record.id)
        if there is not None and there.status not in (BackupStatus.FAILED, BackupStatus.CANCELLED):
            raise BackupExists(f"backup {record.id} exists and is {there.status}")
        self._put(record)

    def write(self, record: Record) -> None:
        """Write a record of the attempt that owns the backup; Fenced where it doesn't."""
        self.fence(record)
        self._put(record)

    def fence(self, record: Record) -> None:
        """Fenced unless the backup still is this attempt's to change, and its chain whole."""
        there = self.read(record.id)
        if there is None:
            raise Fenced(f"the record of backup {record.id} is gone")
        if there.attempt != record.attempt:
            raise Fenced(f"backup {record.id} belongs to attempt {there.attempt}")
        # One that was given up has lost its segments, so it can't be completed any more.
        open_to = _COMPLETABLE if record.status is BackupStatus.COMPLETED else _CHANGEABLE
        if there.status not in open_to:
            raise Fenced(f"backup {record.id} is {there.status} already")
        if record.parent_id is not None and record.status is BackupStatus.COMPLETED:
            try:
                parent = self.chain(record.parent_id)[-1]
            except (BackupUnknown, BackupUnusable) as error:
                raise Fenced(f"an ancestor of backup {record.id} is gone: {error}") from error
            if parent.to_lsn != record.from_lsn:
                raise Fenced(f"the parent of backup {record.id} is another one now")

    def _open(self, backup_id: str) -> tuple[RecordState, bytes] | None:
        try:
            raw = self._store.get(Shelf.OBJECTS, record_name(backup_id), RECORD_LIMIT)
        except StoreNotFound:
            return None
        return self._keyring.check(raw)

    def _put(self, record: Record) -> None:
        raw = self._keyring.sign(record.model_dump_json().encode())
        self._store.put(Shelf.OBJECTS, record_name(record.id), [memoryview(raw)])


def _is_id(text: str) -> bool:
    try:
        canonical_uuid(text)
    except ValueError:
        return False
    return True


def _parse(backup_id: str, line: bytes) -> Record:
    try:
        record = Record.model_validate_json(line)
    except ValidationError as error:
        if any(problem["loc"] == ("format",) for problem in error.errors()):
            raise RecordUnsupported(
                f"the record of backup {backup_id} is not of format version {FORMAT_VERSION}"
            ) from error
        raise RecordDamaged(f"the record of backup {backup_id} lacks fields") from error
    if record.id != backup_id:
        raise RecordDamaged(f"the record of backup {backup_id} is that of {record.id}")
    return record
