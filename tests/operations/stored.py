"""Whole backups as the store holds them, without a database."""

from collections.abc import Mapping
from typing import NamedTuple

from agent.keys.keyring import Keyring
from agent.model import Record
from agent.records.manifest import Manifest
from agent.records.object_names import (
    Segment,
    checks_name,
    list_name,
    object_name,
    record_name,
    segment_name,
    submanifest_name,
)
from agent.records.part_names import AttemptNames
from agent.store.protocol import Container, ManifestEntry, Store, StoredObject


class Held(NamedTuple):
    """All objects of a container and of its segment container, by name."""

    objects: Mapping[str, StoredObject]
    segments: Mapping[str, StoredObject]

    def without(self, *backup_ids: str) -> "Held":
        """Return the objects without those of the given backups."""
        return Held(
            *(
                {name: row for name, row in container.items() if not name.startswith(backup_ids)}
                for container in self
            )
        )

    def of(self, backup_id: str) -> list[str]:
        """Return the names of all objects of one backup."""
        return [name for container in self for name in container if name.startswith(backup_id)]


def held(store: Store) -> Held:
    return Held(*({row.name: row for row in store.list(container)} for container in Container))


def put(store: Store, container: Container, name: str, body: bytes) -> ManifestEntry:
    return ManifestEntry(name, len(body), store.put(container, name, [memoryview(body)]))


def place_record(store: Store, keys: Keyring, record: Record) -> None:
    """Write a record without a check that this is allowed."""
    put(
        store,
        Container.OBJECTS,
        record_name(record.id),
        keys.sign(record.model_dump_json().encode()),
    )


def place(store: Store, keys: Keyring, *records: Record, segments: int = 2) -> None:
    """Store these backups with every kind of object that a backup may have.

    In a directory, these are also the files of older agents, which joined segments there.
    """
    for record in records:
        attempt = record.attempt
        names = [segment_name(record.id, attempt, number) for number in range(segments)]
        entries = [put(store, Container.SEGMENTS, name, b"bytes") for name in names]
        put(store, Container.SEGMENTS, list_name(record.id, attempt, 0), b"a list")
        put(store, Container.SEGMENTS, submanifest_name(record.id, attempt, 0), b"a manifest")
        name = object_name(record.id, sealed=record.sealed)
        if store.joiner is None:
            put(store, Container.OBJECTS, name, b"an object")
        else:
            store.joiner.put_manifest(Container.OBJECTS, name, entries, {})
        put(store, Container.OBJECTS, checks_name(record.id), b"{}")
        place_record(store, keys, record)


def unpublished(store: Store, record: Record, segments: int = 3) -> tuple[Record, Manifest]:
    """Store the segments and the lists of a backup. Return its record, which is not stored.

    The manifest is finished, and matches the record.
    """
    manifest = Manifest(
        store, store.limits(), AttemptNames(record.id, record.attempt, record.sealed)
    )
    for number in range(segments):
        body = f"bytes of {record.id} {number}".encode()
        name = segment_name(record.id, record.attempt, number)
        manifest.add(number, Segment(len(body), put(store, Container.SEGMENTS, name, body).etag))
    found = manifest.finish()
    assert record.stored is not None
    stored = record.stored.model_copy(
        update={
            "stored_bytes": found.stored_bytes,
            "segment_count": segments,
            "lists": found.lists,
            "slo_etag": found.etag,
        }
    )
    return record.model_copy(update={"stored": stored}), manifest


def finished(store: Store, keys: Keyring, record: Record, segments: int = 3) -> Record:
    """Store a COMPLETED backup and return its record.

    Its segment lists, its object and its record match each other.
    """
    store.open()
    whole, manifest = unpublished(store, record, segments)
    manifest.publish({})
    place_record(store, keys, whole)
    return whole
