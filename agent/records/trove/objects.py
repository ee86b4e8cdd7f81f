"""Read backups in Trove's layout, and tell the agent's own from those of Trove itself.

Trove names a backup by the location and the checksum of its object. The checksum is the object's
ETag, so that of a manifest covers the ETag of each segment. The appendix of an own backup is one of
these segments. So with the checksum it is known that the record and the lists are those that were
stored, even without a key.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final, NamedTuple

from agent.codec.gzip_appendix import LOCATOR_BYTES, appendix_bytes, decode
from agent.errors import (
    BackupUnusable,
    DataDamaged,
    PlaintextRefused,
    StoreMismatch,
    StoreNotFound,
)
from agent.keys.keyring import Keyring
from agent.model import Record, Stored
from agent.records.manifest import top_etags
from agent.records.object_names import Segment, decode_list
from agent.records.trove.document import CHECKSUM_HINT, Document, decode_document
from agent.records.trove.names import ENCRYPTED_SUFFIX, Location, TroveNames, parse_location
from agent.store.protocol import Container, joined_etag
from agent.store.swift.objects import ObjectFacts
from agent.store.swift.store import SwiftStore

# The last bytes of an object, which are read first. Most appendices fit into them.
_FIRST_READ: Final = 64 << 10
_LONGEST_APPENDIX: Final = 64 << 20
_CHAIN_LIMIT: Final = 1000


class Place(NamedTuple):
    """The location and the checksum by which Trove names a backup. The checksum may be unknown."""

    location: Location
    checksum: str | None


def place_of(location: str, checksum: str) -> Place:
    """Return the place with this URL. Trove writes a checksum that it doesn't know as `None`.

    Raises:
        UsageWrong: the URL is not one of an object.
    """
    return Place(parse_location(location), None if checksum in ("", "None") else checksum)


@dataclass(frozen=True)
class BackupObject:
    """The object of one backup. `store` is a view on the container of the object."""

    store: SwiftStore
    place: Place
    facts: ObjectFacts

    @property
    def backup_id(self) -> str:
        return self.place.location.backup_id

    @property
    def name(self) -> str:
        return self.place.location.name

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes of the object from `offset` on.

        Raises:
            DataDamaged: the store lacks them, or the object was replaced.
        """
        buffer = bytearray(size)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` as `read` reads."""
        try:
            self.store.get_range(Container.OBJECTS, self.name, offset, buffer, self.facts.etag)
        except (StoreNotFound, StoreMismatch) as error:
            raise DataDamaged(
                f"the bytes of backup {self.backup_id} are missing or changed: {error}"
            ) from error


@dataclass(frozen=True)
class OwnBackup:
    """A backup that this agent has stored in Trove's layout."""

    object: BackupObject
    document: Document
    lists: Sequence[bytes]

    @property
    def backup_id(self) -> str:
        return self.object.backup_id

    @property
    def record(self) -> Record:
        return self.document.record

    @property
    def stored(self) -> Stored:
        assert self.record.stored is not None  # decode_document has checked it
        return self.record.stored

    def segment_list(self, number: int) -> list[Segment]:
        """Return the segments of a list. Raise DataDamaged if it is not that of the record."""
        return decode_list(self.lists[number], self.stored.lists[number])

    @property
    def names(self) -> TroveNames:
        return TroveNames(self.record.id, self.record.attempt)

    @property
    def parent(self) -> Place | None:
        location = self.document.parent_location
        if location is None:
            return None
        return Place(parse_location(location), self.document.parent_checksum)

    @property
    def from_lsn(self) -> int | None:
        return self.record.from_lsn

    @property
    def to_lsn(self) -> int | None:
        return self.record.to_lsn

    @property
    def data_bytes(self) -> int:
        return self.stored.stored_bytes


@dataclass(frozen=True)
class ForeignBackup:
    """A backup that Trove's own code has stored. Its facts are in the headers of its object."""

    object: BackupObject

    @property
    def backup_id(self) -> str:
        return self.object.backup_id

    @property
    def encrypted(self) -> bool:
        """Return True if the object is encrypted with openssl, as its name says."""
        return self.object.name.endswith(ENCRYPTED_SUFFIX)

    @property
    def parent(self) -> Place | None:
        metadata = self.object.facts.metadata
        location = metadata.get("parent-location")
        if location is None:
            return None
        return place_of(location, metadata.get("parent-checksum", ""))

    @property
    def from_lsn(self) -> int | None:
        return None if self.parent else 0

    @property
    def to_lsn(self) -> int | None:
        """Return the LSN in the headers. Trove 14 to 23 stored none with large backups."""
        lsn = self.object.facts.metadata.get("lsn", "")
        known = lsn.isascii() and lsn.isdigit() and len(lsn) < 20
        return int(lsn) if known else None

    @property
    def data_bytes(self) -> int:
        return self.object.facts.size


TroveBackup = OwnBackup | ForeignBackup


def read_chain(store: SwiftStore, place: Place, keyring: Keyring | None) -> list[TroveBackup]:
    """Return the chain of the backup at `place`, from the full backup on.

    Raises:
        DataDamaged: an object is not the one that Trove or a child names, or can't be read.
        BackupUnusable: an object is missing, or two backups don't fit together.
        RecordDamaged, RecordUnsupported, KeyNotHere, PlaintextRefused: a record can't be used.
    """
    found: list[TroveBackup] = []
    wanted: Place | None = place
    seen: set[str] = set()
    while wanted is not None:
        if len(found) >= _CHAIN_LIMIT or wanted.location.url in seen:
            raise BackupUnusable(f"the chain of backup {place.location.backup_id} does not end")
        parent = read_backup(store, wanted, keyring)
        if found:
            _check_continues(parent, found[0])
        found.insert(0, parent)
        seen.add(wanted.location.url)
        wanted = parent.parent
    return found


def _check_continues(parent: TroveBackup, child: TroveBackup) -> None:
    ends, begins = parent.to_lsn, child.from_lsn
    if None not in (ends, begins) and ends != begins:
        raise BackupUnusable(
            f"backup {child.backup_id} begins at LSN {begins}, but its parent "
            f"{parent.backup_id} ends at {ends}"
        )


def read_backup(store: SwiftStore, place: Place, keyring: Keyring | None) -> TroveBackup:
    """Return the backup at `place`, with its document if it is one of this agent's own."""
    found = _find(store, place)
    appendix = _appendix(found)
    vouched = place.checksum is not None
    if appendix is None:
        if keyring is not None and not vouched:
            raise PlaintextRefused(
                f"backup {found.backup_id} is not signed, and no checksum was given for its object",
                hint=CHECKSUM_HINT,
            )
        return ForeignBackup(found)
    content = decode(appendix)
    document, lists = decode_document(found.backup_id, content, keyring, vouched=vouched)
    own = OwnBackup(found, document, lists)
    _check_joined(own, appendix)
    return own


def _find(store: SwiftStore, place: Place) -> BackupObject:
    location = place.location
    inside = store.in_container(location.container)
    try:
        facts = inside.describe(Container.OBJECTS, location.name)
    except StoreNotFound as error:
        raise BackupUnusable(
            f"backup {location.backup_id} is not in the store any more: there is no "
            f"{location.container}/{location.name}",
            hint="it was deleted, or it belongs to another project than the token. Restore another "
            "backup, or make a full one",
        ) from error
    if place.checksum is not None and facts.etag != place.checksum:
        raise DataDamaged(
            f"the object of backup {location.backup_id} has the checksum {facts.etag}, but Trove "
            f"noted {place.checksum[:64]!r}: it was replaced or changed"
        )
    return BackupObject(inside, place, facts)


def _appendix(found: BackupObject) -> bytes | None:
    """Return the appendix of an object, or None if it has none."""
    whole = found.facts.size
    size = min(whole, _FIRST_READ)
    if not found.facts.is_manifest or size < LOCATOR_BYTES:
        return None
    end = found.read(whole - size, size)
    length = appendix_bytes(end[-LOCATOR_BYTES:])
    if length is None:
        return None
    if not LOCATOR_BYTES < length <= min(whole, _LONGEST_APPENDIX):
        raise DataDamaged(
            f"the end of the object of backup {found.backup_id} states a length of {length} bytes"
        )
    return end[-length:] if length <= size else found.read(whole - length, length)


def _check_joined(own: OwnBackup, appendix: bytes) -> None:
    """Check that the object is made of the segments in the lists and of this appendix.

    Raises:
        DataDamaged: it isn't.
    """
    numbers = range(len(own.stored.lists))
    segments = chain.from_iterable(own.segment_list(number) for number in numbers)
    top = top_etags(segments, own.document.group)
    md5 = hashlib.md5(appendix, usedforsecurity=False).hexdigest()
    joined = joined_etag([*top, md5])
    if joined_etag(top) != own.stored.slo_etag or joined != own.object.facts.etag:
        raise DataDamaged(
            f"the object of backup {own.backup_id} does not have the segments that its record names"
        )
