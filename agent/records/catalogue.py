"""The records of a container, with reads, listings, chains and fenced writes.

Swift has no compare-and-set. So the record is read again before each write. Two agents that work on
the same backup then notice each other, except in the moment between that read and the write.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple, Self

from agent.errors import (
    BackupExists,
    BackupUnknown,
    BackupUnusable,
    Cancelled,
    Fenced,
    KeyNotHere,
    RecordDamaged,
    RecordUnsupported,
    StoreError,
    StoreNotFound,
)
from agent.keys.keyring import Keyring, RecordState, signer
from agent.model import (
    BackupStatus,
    ErrorInfo,
    Record,
    Stored,
    WrappedKey,
    utc_now,
)
from agent.records.cache import RecordCache
from agent.records.object_names import Segment, record_name
from agent.records.parsing import later_record, parse_record
from agent.records.presence import any_left, read_list
from agent.records.reading import (
    RECORD_LIMIT,
    ListedRecord as ListedRecord,
    list_records,
    record_objects,
)
from agent.store.protocol import Container, Store

# In bytes. Parsing hostile JSON takes up to 250 times its size in memory. So a record that no key
# on this machine confirms is parsed only up to this size. A real record of this size belongs to a
# backup of 40 TiB.
_UNTRUSTED_LIMIT = 256 << 10
# In bytes. Such a record is kept only up to this size, because lists and families hold thousands of
# records. The agent itself writes names of up to 255 and descriptions of up to 1024 characters.
_UNTRUSTED_KEPT = 8 << 10
# A longer chain is a loop or a mistake. A restore from it would take too long to be useful.
CHAIN_LIMIT = 10_000
_COMPLETABLE = (BackupStatus.BUILDING,)
_CHANGEABLE = (BackupStatus.BUILDING, BackupStatus.FAILED, BackupStatus.CANCELLED)
# The agent that makes a backup writes CANCELLED over DELETING to show that it has stopped.
_CANCELLABLE = (*_CHANGEABLE, BackupStatus.DELETING)


class Signed(NamedTuple):
    """A record that can be trusted, and the id of the master key that signed it."""

    record: Record
    key_id: str


class Catalogue:
    """All records of one store, which are checked with one keyring.

    `cache` saves reading some of them.
    """

    def __init__(self, store: Store, keyring: Keyring, cache: RecordCache | None = None) -> None:
        self._store = store
        self._keyring = keyring
        self._cache = cache

    def bound(self, store: Store) -> Self:
        """Return a catalogue of the same records that uses `store`, a view that a stop can end."""
        return type(self)(store, self._keyring, self._cache)

    @property
    def location(self) -> str:
        """Return the URL of the container that holds the records."""
        return self._store.location

    def find(self, backup_id: str) -> ListedRecord | None:
        """Return one record, even if it can't be trusted, or None if there is no such record."""
        raw = self._get(backup_id)
        return None if raw is None else self.judge(backup_id, raw)

    def judge(self, backup_id: str, raw: bytes) -> ListedRecord:
        """Check the bytes of a record object and return its row.

        The row has no record if the bytes are not a record, or can't be trusted and are too large
        to keep.
        """
        state, line = self._keyring.check(raw)
        if state is not RecordState.OK and len(line) > _UNTRUSTED_LIMIT:
            return ListedRecord(backup_id, state, None)
        try:
            record = parse_record(backup_id, line)
        except RecordDamaged:
            return ListedRecord(backup_id, RecordState.BAD, None)
        except RecordUnsupported:
            return later_record(backup_id, state, line)
        if state is RecordState.BAD and self._keyring.other_key(raw, record.keys):
            state = RecordState.OTHER_KEY
        if state is not RecordState.OK and _kept_bytes(record) > _UNTRUSTED_KEPT:
            return ListedRecord(backup_id, state, None)
        return ListedRecord(backup_id, state, record)

    def read(self, backup_id: str) -> Record | None:
        """Return a record that can be trusted, or None if there is no such record.

        Raises:
            RecordDamaged, RecordUnsupported, KeyNotHere: the record can't be trusted.
        """
        signed = self.signed(backup_id)
        return signed.record if signed else None

    def signed(self, backup_id: str) -> Signed | None:
        """Return a record as `read` does, with the id of the master key that signed it."""
        raw = self._get(backup_id)
        if raw is None:
            return None
        state, line = self._keyring.check(raw)
        key_id = signer(raw) or ""
        if state is RecordState.KEY_NOT_HERE:
            raise KeyNotHere(
                f"the record of backup {backup_id} can't be checked: it is signed by the "
                f"master key {key_id!r}, which is not on this machine"
            )
        if state is not RecordState.OK:
            if self.judge(backup_id, raw).state is RecordState.OTHER_KEY:
                raise self._other_key(backup_id, key_id)
            raise RecordDamaged(f"the record of backup {backup_id} fails its MAC")
        return Signed(parse_record(backup_id, line), key_id)

    def _other_key(self, backup_id: str, key_id: str) -> KeyNotHere:
        here = self._keyring.key(key_id).fingerprint
        return KeyNotHere(
            f"the record of backup {backup_id} can't be checked: it is signed by another key "
            f"{key_id!r} than the one on this machine, which has a SHA-256 that begins with {here}",
            hint=f"the key file {key_id}.key on this machine was made again, or came from another "
            "machine. Put the right key file (its page in escrow has its SHA-256) as "
            f"{key_id}.key, mode 0600, into a separate directory FOLDER, and give the command "
            "again with "
            f"BACKUP_AGENT_KEYS__FOLDER=FOLDER and BACKUP_AGENT_KEYS__ACTIVE={key_id} in its "
            "environment. To avoid this in the future, make a key with an id of its own with "
            "keygen, and use rekey",
        )

    def need(self, backup_id: str) -> Record:
        """Return a record that can be trusted.

        Raises:
            BackupUnknown: there is no such record.
            RecordDamaged, RecordUnsupported, KeyNotHere: the record can't be trusted.
        """
        record = self.read(backup_id)
        if record is None:
            raise BackupUnknown(f"there is no backup {backup_id} in {self._store.location}")
        return record

    def ids(self) -> Iterator[str]:
        """Return the ids of all backups that have a record, in order."""
        return (backup_id for backup_id, _ in record_objects(self._store))

    def records(self) -> Iterator[ListedRecord]:
        """Return an iterator of every record of the container, in order of ids (see reading.py).

        Records that can't be read are included.
        """
        return list_records(self._store, self.judge, self._cache)

    def chain(self, backup_id: str) -> list[Record]:
        """Return the records from the full backup to this one.

        All are COMPLETED, and each begins at the LSN at which its parent ends.

        Raises:
            BackupUnknown: there is no such backup.
            BackupUnusable: the chain is not as described.
            RecordDamaged, RecordUnsupported, KeyNotHere: a record can't be trusted.
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
            parent = self.read(child.parent_id)
            if parent is None:
                raise BackupUnusable(
                    f"backup {child.id} needs its parent {child.parent_id}, but that has no record "
                    f"in {self._store.location}",
                    hint="nothing can be restored from it without that parent: restore another "
                    "backup, and delete this one",
                )
            if parent.to_lsn != child.from_lsn:
                raise BackupUnusable(
                    f"backup {child.id} begins at LSN {child.from_lsn}, but its parent "
                    f"{parent.id} ends at {parent.to_lsn}"
                )
            chain.insert(0, parent)

    def segments(self, record: Record) -> Iterator[Segment]:
        """Yield all segments of a COMPLETED backup, with one segment list at a time in memory.

        Raises:
            BackupUnusable: the record names no stored bytes.
            DataDamaged: a list is wrong.
        """
        if record.stored is None:
            raise BackupUnusable(f"the record of backup {record.id} names no stored bytes")
        for number in range(len(record.stored.lists)):
            yield from self.segment_list(record, record.stored, number)

    def segment_list(self, record: Record, stored: Stored, number: int) -> list[Segment]:
        """Return the segments of one of a backup's lists.

        Raises:
            DataDamaged: the list differs from the record.
        """
        return read_list(self._store, record, stored, number)

    def begin(self, record: Record) -> None:
        """Write the BUILDING record of an attempt.

        Raises:
            BackupExists: the backup exists, and is neither FAILED nor CANCELLED.
            RecordDamaged, RecordUnsupported, KeyNotHere: a record with this id exists and can't be
                trusted.
        """
        there = self.read(record.id)
        if there is not None and there.status not in (BackupStatus.FAILED, BackupStatus.CANCELLED):
            raise BackupExists(f"backup {record.id} exists and is {there.status}")
        self._put(record)

    def write(self, record: Record) -> None:
        """Write a record of the attempt that owns the backup.

        Raises:
            Fenced: the attempt does not own the backup.
            Cancelled: a delete removed the bytes before the store processed a COMPLETED record.
        """
        self.fence(record)
        self._put(record)
        if record.status is not BackupStatus.COMPLETED:
            return
        try:
            kept = self.verify_or_condemn(record)
        except StoreError as error:
            # The error is about this check and not about the write, which may have taken effect.
            error.without_effect = False
            raise
        if not kept:
            raise Cancelled(f"backup {record.id} was deleted while it was completed")

    def verify_or_condemn(self, record: Record) -> bool:
        """Mark a COMPLETED backup DELETING if none of its segments and lists is left.

        Return False then, or else True. Call it after the record was written. A delete removes the
        bytes first and then reads the record. This method checks the bytes after the record was
        written. So one of the two notices the other, even if the store was slow.
        """
        if record.stored is None or not record.stored.lists:
            return True
        # A backup with lost or temporarily unreachable objects is not marked, if others answer.
        if any_left(self._store, record):
            return True
        self.condemn(record.id)
        return False

    def rewrap(self, old: Record, keys: tuple[WrappedKey, ...], key_id: str) -> None:
        """Write a record with other wrapped keys and the signature of `key_id`.

        Nothing else in the record changes.

        Raises:
            Fenced: the store's record is not `old` any more.
            KeyNotHere: this machine does not have the key `key_id`.
        """
        if self.read(old.id) != old:
            raise Fenced(f"the record of backup {old.id} was changed in the meantime")
        # with all their fields, as those that were not set are not written
        whole = tuple(WrappedKey(**key.model_dump()) for key in keys)
        self._put_again(old.model_copy(update={"keys": whole}), key_id)
        if old.status is BackupStatus.COMPLETED and not self.verify_or_condemn(old):
            raise Fenced(f"backup {old.id} was deleted in the meantime")

    def condemn(self, backup_id: str) -> Record | None:
        """Mark a backup DELETING and return its record, or None if there is no record.

        The owner and the status of the backup do not matter. After that, no agent completes the
        backup or makes a backup on top of it.

        Raises:
            RecordDamaged, RecordUnsupported, KeyNotHere: the record can't be trusted.
        """
        signed = self.signed(backup_id)
        if signed is None or signed.record.status is BackupStatus.DELETING:
            return signed.record if signed else None
        condemned = signed.record.model_copy(update={"status": BackupStatus.DELETING})
        # Sign with the same key. The agent that makes the backup has that key, and may have no
        # other.
        self._put_again(condemned, signed.key_id)
        return condemned

    def retract(self, backup_id: str, attempts: Collection[str], error: ErrorInfo) -> None:
        """Make a COMPLETED backup FAILED if its attempt is one of `attempts`.

        Call it after the bytes of these attempts were removed because of a record that was read
        before. A COMPLETED record may have been written in between: by an agent with the same
        journal (a cloned machine), or by a request that the store was slow to process.
        """
        there = self.read(backup_id)
        if there is None or there.attempt not in attempts:
            return
        if there.status is BackupStatus.COMPLETED:
            gone = {"status": BackupStatus.FAILED, "updated": utc_now(), "error": error}
            nowhere = {"stored": None, "locationRef": None}
            self._put_again(there.model_copy(update=gone | nowhere))

    def forget(self, backup_id: str) -> None:
        """Delete the record of a backup of which nothing else is left."""
        self._store.delete(Container.OBJECTS, record_name(backup_id))

    def fence(self, record: Record) -> list[Record]:
        """Check that `record` may be written, and return the backup's ancestors.

        The full backup is the first of them. The list is empty if `record` is not COMPLETED or
        belongs to a full backup.

        Raises:
            Fenced: the attempt may not change the backup any more, or the backup's chain is not
                complete.
        """
        there = self.read(record.id)
        if there is None:
            raise Fenced(f"the record of backup {record.id} was deleted")
        if there.attempt != record.attempt:
            raise Fenced(f"backup {record.id} belongs to attempt {there.attempt}")
        # A FAILED or CANCELLED backup has lost its segments, so it can't be completed any more.
        open_to = {
            BackupStatus.COMPLETED: _COMPLETABLE,
            BackupStatus.CANCELLED: _CANCELLABLE,
        }
        if there.status not in open_to.get(record.status, _CHANGEABLE):
            raise Fenced(f"backup {record.id} is {there.status} already")
        if record.parent_id is None or record.status is not BackupStatus.COMPLETED:
            return []
        try:
            chain = self.chain(record.parent_id)
        except (BackupUnknown, BackupUnusable) as error:
            raise Fenced(f"an ancestor of backup {record.id} can't be used: {error}") from error
        if chain[-1].to_lsn != record.from_lsn:
            raise Fenced(
                f"backup {record.id} begins at LSN {record.from_lsn}, but its parent "
                f"{record.parent_id} ends at {chain[-1].to_lsn}"
            )
        return chain

    def _get(self, backup_id: str) -> bytes | None:
        try:
            return self._store.get(Container.OBJECTS, record_name(backup_id), RECORD_LIMIT)
        except StoreNotFound:
            return None

    def _put(self, record: Record) -> None:
        self._put_line(record.id, record.model_dump_json())

    def _put_again(self, record: Record, key_id: str | None = None) -> None:
        """Write a record that was read from the store, with the fields that it had there.

        An agent that wrote the record before it knew a field would refuse that field.
        """
        self._put_line(record.id, record.model_dump_json(exclude_unset=True), key_id)

    def _put_line(self, backup_id: str, line: str, key_id: str | None = None) -> None:
        raw = self._keyring.sign(line.encode(), key_id)
        self._store.put(Container.OBJECTS, record_name(backup_id), [memoryview(raw)])


def _kept_bytes(record: Record) -> int:
    """Return about how many bytes of a record are kept by lists and families."""
    return len(record.view().model_dump_json()) + sum(64 + len(key.id) for key in record.keys)
