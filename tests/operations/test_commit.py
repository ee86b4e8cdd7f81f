"""A backup whose own segments are lost or changed before its commit, in a directory.

Swift compares the segments when it joins them. A directory joins nothing.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest

from agent.errors import StoreMismatch, StoreRejected
from agent.model import Record
from agent.operations.backup.commit import publish, resume_commit
from agent.operations.resources import BackupResources
from agent.records.catalogue import Catalogue
from agent.records.manifest import Manifest
from agent.records.object_names import segment_name
from agent.records.part_names import AttemptNames
from agent.store.directory.store import DirectoryStore
from agent.store.protocol import Container
from tests.operations.stored import finished, put, unpublished
from tests.records.made import completed, keyring, record

KEYS = keyring()
Harm = Callable[[DirectoryStore, str], None]


def removed(store: DirectoryStore, name: str) -> None:
    store.delete(Container.SEGMENTS, name)


def cut(store: DirectoryStore, name: str) -> None:
    put(store, Container.SEGMENTS, name, store.get(Container.SEGMENTS, name, 1000)[:-1])


def exchanged(store: DirectoryStore, name: str) -> None:
    put(store, Container.SEGMENTS, name, b"x" * len(store.get(Container.SEGMENTS, name, 1000)))


@pytest.fixture
def resources(folder: DirectoryStore) -> BackupResources:
    path = SimpleNamespace(connections=2)
    made = SimpleNamespace(store=folder, catalogue=Catalogue(folder, KEYS), path=path)
    return cast(BackupResources, made)


def in_groups_of(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("agent.records.manifest", "agent.records.presence"):
        monkeypatch.setattr(f"{module}.LIST_ENTRIES", size)


def begun(folder: DirectoryStore, resources: BackupResources) -> tuple[Record, Manifest]:
    """Store the segments of a BUILDING backup. Return its finished record and its manifest."""
    making = record()
    resources.catalogue.begin(making)
    return unpublished(folder, completed(id=making.id, attempt=making.attempt), segments=5)


@pytest.mark.parametrize("harm", [removed, cut, exchanged])
@pytest.mark.parametrize(("group", "number"), [(1000, 0), (1000, 1), (1000, 4), (2, 0), (2, 4)])
def test_a_harmed_segment_fails_the_commit(
    folder: DirectoryStore,
    resources: BackupResources,
    monkeypatch: pytest.MonkeyPatch,
    harm: Harm,
    group: int,
    number: int,
) -> None:
    """In groups of two, the first segment was compared when its group was complete."""
    in_groups_of(group, monkeypatch)
    done, manifest = begun(folder, resources)
    name = segment_name(done.id, done.attempt, number)
    harm(folder, name)
    with pytest.raises(StoreMismatch, match=name):
        publish(resources, done, manifest)


def test_an_unharmed_one_is_published(folder: DirectoryStore, resources: BackupResources) -> None:
    publish(resources, *begun(folder, resources))


def interrupted(folder: DirectoryStore, resources: BackupResources) -> Record:
    """Store a backup whose finished record is only in the journal, and return that record."""
    done = finished(folder, KEYS, completed(), segments=5)
    resources.catalogue.forget(done.id)
    resources.catalogue.begin(record(id=done.id, attempt=done.attempt))
    return done


@pytest.mark.parametrize("harm", [removed, cut, exchanged])
@pytest.mark.parametrize("number", [0, 1, 4])
def test_a_harmed_segment_fails_a_commit_that_is_resumed(
    folder: DirectoryStore,
    resources: BackupResources,
    monkeypatch: pytest.MonkeyPatch,
    harm: Harm,
    number: int,
) -> None:
    """The first ones are in groups that are complete."""
    in_groups_of(2, monkeypatch)
    done = interrupted(folder, resources)
    assert resume_commit(resources, done.model_dump_json()) == done
    done = interrupted(folder, resources)
    name = segment_name(done.id, done.attempt, number)
    harm(folder, name)
    with pytest.raises(StoreMismatch, match=name):
        resume_commit(resources, done.model_dump_json())
    assert resources.catalogue.need(done.id).stored is None


def test_a_backup_without_segments_is_not_published(folder: DirectoryStore) -> None:
    making = record()
    manifest = Manifest(folder, folder.limits(), AttemptNames(making.id, making.attempt))
    manifest.finish()
    with pytest.raises(StoreRejected, match="has no segments"):
        manifest.publish({})
