"""The records of a container: read, list, chains, and fenced writes.

Swift has no compare-and-set. Before each write the record is read again, so two agents
that work on one backup notice each other, except in the moment between that read and the
write.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple, Self

from pydantic import ValidationError

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
    FORMAT_VERSION,
    BackupStatus,
    ErrorInfo,
    Record,
    Stored,
    WrappedKey,
    utc_now,
)
from agent.records.cache import RecordCache
from agent.records.object_names import Segment, record_name
from agent.records.presence import any_left, read_list
from agent.records.reading import (
    RECORD_LIMIT,
    ListedRecord as ListedRecord,
    list_records,
    record_objects,
)
from agent.store.protocol import Container, Store

# Parsing hostile JSON takes up to 250 times its size in memory, so this is all that is
# parsed of what nobody here vouches for; a real record of this size is of a 40 TiB backup.
_UNTRUSTED_LIMIT = 256 << 10
# And all that is kept of it: lists and families hold thousands. What the agent writes has names
# of 255 and descriptions of 1024 characters.
_UNTRUSTED_KEPT = 8 << 10
# Far more than the fields in which a record of a later format can differ.
_TOLD_ERRORS = 1000
# A chain longer than this is a loop or a mistake; nothing restores from it in useful time.
CHAIN_LIMIT = 10_000
_COMPLETABLE = (BackupStatus.BUILDING,)
_CHANGEABLE = (BackupStatus.BUILDING, BackupStatus.FAILED, BackupStatus.CANCELLED)
# Whoever makes a backup that is to be deleted says so that it has stopped.
_CANCELLABLE = (*_CHANGEABLE, BackupStatus.DELETING)


class Signed(NamedTuple):
    """A record that can be trusted, and the id of the master key that vouches for it."""

    record: Record
    key_id: str


class Catalogue:
    """All records of one store, opened with one keyring; `cache` saves reading some of them."""

    def __init__(self, store: Store, keyring: Keyring, cache: RecordCache | None = None) -> None:
        self._store = store
        self._keyring = keyring
        self._cache = cache

    def bound(self, store: Store) -> Self:
        """The same records through `store`: a view of it that a stop ends."""
        return type(self)(store, self._keyring, self._cache)

    @property
    def location(self) -> str:
        """The URL of the container that holds the records."""
        return self._store.location

    def look(self, backup_id: str) -> ListedRecord | None:
        """One record as it is, trusted or not; None where there is none."""
        raw = self._get(backup_id)
        return None if raw is None else self.judge(backup_id, raw)

    def judge(self, backup_id: str, raw: bytes) -> ListedRecord:
        """What the bytes of a record object are worth, and the record in them if any."""
        state, line = self._keyring.check(raw)
        if state is not RecordState.OK and len(line) > _UNTRUSTED_LIMIT:
            return ListedRecord(backup_id, state, None)
        try:
            record = _parse(backup_id, line)
        except (RecordDamaged, RecordUnsupported):
            return ListedRecord(backup_id, RecordState.BAD, None)
        if state is RecordState.BAD and self._keyring.other_key(raw, record.keys):
            state = RecordState.OTHER_KEY
        if state is not RecordState.OK and _kept_bytes(record) > _UNTRUSTED_KEPT:
            return ListedRecord(backup_id, state, None)
        return ListedRecord(backup_id, state, record)

    def read(self, backup_id: str) -> Record | None:
        """A record that can be trusted, or None where there is none.

        RecordDamaged, RecordUnsupported or KeyNotHere where it can't be trusted.
        """
        signed = self.signed(backup_id)
        return signed.record if signed else None

    def signed(self, backup_id: str) -> Signed | None:
        """As `read`, with the id of the master key that the record is signed by."""
        raw = self._get(backup_id)
        if raw is None:
            return None
        state, line = self._keyring.check(raw)
        key_id = signer(raw) or ""
        if state is RecordState.KEY_NOT_HERE:
            raise KeyNotHere(
                f"the record of backup {backup_id} can't be checked: it is signed by the "
                f"master key {key_id!r}, which is not here"
            )
        if state is not RecordState.OK:
            if self.judge(backup_id, raw).state is RecordState.OTHER_KEY:
                raise self._other_key(backup_id, key_id)
            raise RecordDamaged(f"the record of backup {backup_id} fails its MAC")
        return Signed(_parse(backup_id, line), key_id)

    def _other_key(self, backup_id: str, key_id: str) -> KeyNotHere:
        here = self._keyring.key(key_id).fingerprint
        return KeyNotHere(
            f"the record of backup {backup_id} can't be checked: it is signed by another key "
            f"{key_id!r} than the one that is here, whose SHA-256 begins with {here}",
            hint=f"the key file {key_id}.key here was made anew, or came from another machine: "
            f"put the right one (its page in escrow has its SHA-256) as {key_id}.key, mode 0600, "
            "into a folder of its own, FOLDER, and give the command again with "
            f"BACKUP_AGENT_KEYS__FOLDER=FOLDER and BACKUP_AGENT_KEYS__ACTIVE={key_id} in its "
            "environment. To end it, make a key with an id of its own with keygen, and use rekey",
        )

    def need(self, backup_id: str) -> Record:
        """A record that can be trusted; BackupUnknown where there is none."""
        record = self.read(backup_id)
        if record is None:
            raise BackupUnknown(f"there is no backup {backup_id} in {self._store.location}")
        return record

    def ids(self) -> Iterator[str]:
        """The ids of all backups that have a record, in their order."""
        return (backup_id for backup_id, _ in record_objects(self._store))

    def records(self) -> Iterator[ListedRecord]:
        """Every record of the container, readable or not, in order of ids: see listing.py."""
        return list_records(self._store, self.judge, self._cache)

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
            parent = self.read(child.parent_id)
            if parent is None:
                raise BackupUnusable(
                    f"backup {child.id} needs its parent {child.parent_id}, of which there is no "
                    f"record in {self._store.location}",
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
        """Yield all segments of a COMPLETED backup, with one of its lists at a time in memory.

        BackupUnusable if the record names no stored bytes, DataDamaged if a list is wrong.
        """
        if record.stored is None:
            raise BackupUnusable(f"the record of backup {record.id} names no stored bytes")
        for number in range(len(record.stored.lists)):
            yield from self.segment_list(record, record.stored, number)

    def segment_list(self, record: Record, stored: Stored, number: int) -> list[Segment]:
        """Return the segments of one of a backup's lists; DataDamaged if it is not as recorded."""
        return read_list(self._store, record, stored, number)

    def begin(self, record: Record) -> None:
        """Write the BUILDING record of an attempt; BackupExists where the id is taken."""
        there = self.read(record.id)
        if there is not None and there.status not in (BackupStatus.FAILED, BackupStatus.CANCELLED):
            raise BackupExists(f"backup {record.id} exists and is {there.status}")
        self._put(record)

    def write(self, record: Record) -> None:
        """Write a record of the attempt that owns the backup; Fenced where it doesn't.

        Cancelled where a delete was quicker than the store, which took a COMPLETED one too late.
        """
        self.fence(record)
        self._put(record)
        if record.status is not BackupStatus.COMPLETED:
            return
        try:
            kept = self.verify_or_condemn(record)
        except StoreError as error:
            # of this look, and not of the write
            error.without_effect = False
            raise
        if not kept:
            raise Cancelled(f"backup {record.id} was deleted while it was completed")

    def verify_or_condemn(self, record: Record) -> bool:
        """Whether the bytes of a COMPLETED backup are there; else it is DELETING from now on.

        For whoever has written its record: a delete removes the bytes and then looks at the
        record, this looks the other way round. One sees the other, however late the store was.
        """
        if record.stored is None or not record.stored.lists:
            return True
        # objects that were lost, or are out of reach for a while, condemn nothing
        if any_left(self._store, record):
            return True
        self.condemn(record.id)
        return False

    def rewrap(self, old: Record, keys: tuple[WrappedKey, ...], key_id: str) -> None:
        """Give a record other wrapped keys and the signature of `key_id`, and change nothing else.

        Fenced where the store's record is not `old` any more; KeyNotHere without that key.
        """
        if self.read(old.id) != old:
            raise Fenced(f"the record of backup {old.id} was changed in the meantime")
        self._put(old.model_copy(update={"keys": keys}), key_id)
        if old.status is BackupStatus.COMPLETED and not self.verify_or_condemn(old):
            raise Fenced(f"backup {old.id} was deleted in the meantime")

    def condemn(self, backup_id: str) -> Record | None:
        """Mark a backup DELETING, whoever's and whatever it is; None where it is gone.

        Nothing is made on top of it or completed from now on. Errors as in `read`.
        """
        signed = self.signed(backup_id)
        if signed is None or signed.record.status is BackupStatus.DELETING:
            return signed.record if signed else None
        condemned = signed.record.model_copy(update={"status": BackupStatus.DELETING})
        # by the same key: whoever makes it has that one, and may have no other
        self._put(condemned, signed.key_id)
        return condemned

    def retract(self, backup_id: str, attempts: Collection[str], error: ErrorInfo) -> None:
        """Make a COMPLETED backup FAILED if its attempt is one of `attempts`.

        To be called after the bytes of these attempts were removed, on the strength of a record
        that was read before: the COMPLETED one may have been written in between, by an agent
        with the same journal (a cloned machine), or by a request that the store was slow to take.
        """
        there = self.read(backup_id)
        if there is None or there.attempt not in attempts:
            return
        if there.status is BackupStatus.COMPLETED:
            gone = {"status": BackupStatus.FAILED, "updated": utc_now(), "error": error}
            nowhere = {"stored": None, "locationRef": None}
            self._put(there.model_copy(update=gone | nowhere))

    def forget(self, backup_id: str) -> None:
        """Remove the record of a backup of which nothing else is left."""
        self._store.delete(Container.OBJECTS, record_name(backup_id))

    def fence(self, record: Record) -> list[Record]:
        """Return the ancestors of a backup that is about to be COMPLETED, the full one first.

        Fenced unless the backup still is this attempt's to change, and its chain whole.
        """
        there = self.read(record.id)
        if there is None:
            raise Fenced(f"the record of backup {record.id} is gone")
        if there.attempt != record.attempt:
            raise Fenced(f"backup {record.id} belongs to attempt {there.attempt}")
        # One that was given up has lost its segments, so it can't be completed any more.
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
            raise Fenced(f"an ancestor of backup {record.id} is gone: {error}") from error
        if chain[-1].to_lsn != record.from_lsn:
            raise Fenced(f"the parent of backup {record.id} is another one now")
        return chain

    def _get(self, backup_id: str) -> bytes | None:
        try:
            return self._store.get(Container.OBJECTS, record_name(backup_id), RECORD_LIMIT)
        except StoreNotFound:
            return None

    def _put(self, record: Record, key_id: str | None = None) -> None:
        raw = self._keyring.sign(record.model_dump_json().encode(), key_id)
        self._store.put(Container.OBJECTS, record_name(record.id), [memoryview(raw)])


def _kept_bytes(record: Record) -> int:
    """About how much of a record lists and families keep."""
    return len(record.view().model_dump_json()) + sum(64 + len(key.id) for key in record.keys)


def _parse(backup_id: str, line: bytes) -> Record:
    try:
        record = Record.model_validate_json(line)
    except ValidationError as error:
        # hostile bytes can be wrong in 100,000 places, which take seconds to list
        few = error.errors(include_url=False) if error.error_count() <= _TOLD_ERRORS else []
        if any(problem["loc"] == ("format",) for problem in few):
            raise RecordUnsupported(
                f"the record of backup {backup_id} is not of format version {FORMAT_VERSION}"
            ) from error
        raise RecordDamaged(f"the record of backup {backup_id} lacks fields") from error
    if record.id != backup_id:
        raise RecordDamaged(f"the record of backup {backup_id} is that of {record.id}")
    return record
