"""Agents of two versions share a container while they are upgraded one by one.

The older one reads, and leaves alone, what the later one wrote.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.errors import KeyNotHere, RecordUnsupported
from agent.keys.keyring import RecordState
from agent.model import BackupStatus, ErrorInfo, Record
from agent.operations.gc.orphans import OrphanKind
from agent.operations.rekey import Rekey, RekeyOutcome
from agent.records.ancestry import Ancestry
from agent.records.cache import RecordCache
from agent.records.catalogue import Catalogue
from agent.records.object_names import new_attempt, record_name, segment_name
from agent.store.directory.store import DirectoryStore
from agent.store.protocol import Container
from tests.golden import places
from tests.operations.collecting import KEYS, age, collected, ours_completed
from tests.operations.stored import Held, held, place, put
from tests.operations.test_delete import deletion
from tests.records.made import INSTANCE, completed, keyring

# The changes that later agents may make to line 1 of a record.
CHANGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "format": lambda one: one | {"format": 2, "keys": {"a": "map"}, "lineage": None},
    "field": lambda one: one | {"novelty": True},
    "status": lambda one: one | {"status": "ARCHIVED"},
    "lists": lambda one: one | {"format": 2, "stored": {"lists": [{"n": 1}] * 2000}},
}


@pytest.fixture(params=CHANGES)
def later(request: pytest.FixtureRequest) -> Callable[[Record], bytes]:
    """Return a function that makes the record object of a later agent."""
    return lambda one: KEYS.sign(json.dumps(CHANGES[request.param](fields(one))).encode())


def fields(one: Record) -> dict[str, Any]:
    found: dict[str, Any] = one.model_dump(mode="json")
    return found


def replace(folder: DirectoryStore, one: Record, raw: bytes) -> Held:
    """Replace the record of a stored backup, and return all that is stored."""
    put(folder, Container.OBJECTS, record_name(one.id), raw)
    return held(folder)


def test_a_delete_spares_a_descendant_and_all_its_ancestors(
    folder: DirectoryStore, later: Callable[[Record], bytes]
) -> None:
    base = completed()
    child = completed(base, to_lsn=200)
    grandchild = completed(child, to_lsn=300)
    place(folder, KEYS, base, child, grandchild)
    before = replace(folder, grandchild, later(grandchild))
    for root in (base, child):
        said = f"backup {grandchild.id} descends from backup {root.id}, and this agent can't read"
        with pytest.raises(RecordUnsupported, match=said) as told:
            deletion(folder).run(root.id)
        assert "upgrade this agent" in told.value.hint
        with pytest.raises(RecordUnsupported):
            deletion(folder).family(root.id)
    with pytest.raises(RecordUnsupported, match=grandchild.id):
        deletion(folder).run(grandchild.id)
    assert held(folder) == before


def test_a_delete_beside_a_later_family_goes_on(
    folder: DirectoryStore, later: Callable[[Record], bytes]
) -> None:
    base, other = completed(), completed()
    place(folder, KEYS, base, other)
    before = replace(folder, other, later(other))
    deletion(folder).run(base.id)
    assert held(folder) == before.without(base.id)


def test_one_that_appears_during_a_delete_is_spared(
    folder: DirectoryStore, later: Callable[[Record], bytes]
) -> None:
    base = completed()
    child = completed(base, to_lsn=200)
    place(folder, KEYS, base)

    def appear(_root: Record) -> None:
        place(folder, KEYS, child)
        replace(folder, child, later(child))

    with pytest.raises(RecordUnsupported, match=child.id):
        deletion(folder, on_begin=appear).run(base.id)
    kept = held(folder)
    assert len(kept.of(base.id)) == len(kept.of(child.id)) == 7


def test_one_that_hides_its_parent_stops_every_delete(folder: DirectoryStore) -> None:
    """No format does so. But a real backup may not lose its parent if one does."""
    base, other = completed(), completed()
    place(folder, KEYS, base, other)
    headless = json.dumps({"format": 2, "id": other.id})
    before = replace(folder, other, KEYS.sign(headless.encode()))
    with pytest.raises(RecordUnsupported, match=f"{other.id} may descend from {base.id}"):
        deletion(folder).run(base.id)
    assert held(folder) == before


def test_a_copy_under_another_name_stops_no_delete(
    folder: DirectoryStore, later: Callable[[Record], bytes]
) -> None:
    base, other = completed(), completed()
    place(folder, KEYS, base, other)
    before = replace(folder, other, later(completed(base)))
    deletion(folder).run(base.id)
    assert held(folder) == before.without(base.id)


def test_a_descendant_of_another_key_is_spared_too(folder: DirectoryStore) -> None:
    base = completed()
    child = completed(base, to_lsn=200)
    place(folder, KEYS, base, child)
    line = json.dumps(CHANGES["format"](fields(child))).encode()
    before = replace(folder, child, keyring("k9", fill=9).sign(line))
    with pytest.raises(KeyNotHere, match=child.id):
        deletion(folder).run(base.id)
    assert held(folder) == before


@pytest.mark.parametrize("status", [one for one in BackupStatus if one is not BackupStatus.NEW])
def test_gc_leaves_its_bytes_alone(
    folder: DirectoryStore, later: Callable[[Record], bytes], status: BackupStatus
) -> None:
    one = ours_completed(status=status)
    place(folder, KEYS, one)
    replace(folder, one, later(one))
    age(folder)
    before = held(folder)
    [left] = collected(folder)
    assert (left.backup_id, left.what) == (one.id, OrphanKind.LEFT_ALONE)
    assert "a later agent wrote the backup's record" in left.why
    assert held(folder) == before


def test_rekey_names_it_and_leaves_it(
    folder: DirectoryStore, later: Callable[[Record], bytes]
) -> None:
    one = completed()
    place(folder, KEYS, one)
    before = replace(folder, one, later(one))
    [done] = Rekey(Catalogue(folder, KEYS), KEYS, "k1").run(1)
    assert (done.outcome, done.code) == (RekeyOutcome.FAILED, "record_unsupported")
    assert held(folder) == before


def test_nothing_writes_over_it(folder: DirectoryStore, later: Callable[[Record], bytes]) -> None:
    one, catalogue = completed(), Catalogue(folder, KEYS)
    place(folder, KEYS, one)
    before = replace(folder, one, later(one))
    again = completed(id=one.id, status=BackupStatus.BUILDING)
    failed = one.model_copy(update={"status": BackupStatus.FAILED})
    error = ErrorInfo(code="interrupted", message="m", hint="h")
    writes: list[Callable[[], object]] = [
        lambda: catalogue.begin(again),
        lambda: catalogue.write(failed),
        lambda: catalogue.condemn(one.id),
        lambda: catalogue.rewrap(one, one.keys, "k1"),
        lambda: catalogue.retract(one.id, [one.attempt], error),
    ]
    for write in writes:
        with pytest.raises(RecordUnsupported):
            write()
    assert held(folder) == before


def test_no_chain_goes_through_it(folder: DirectoryStore, later: Callable[[Record], bytes]) -> None:
    """So neither a restore nor an incremental of an older agent uses it."""
    base = completed()
    child = completed(base, to_lsn=200)
    place(folder, KEYS, base, child)
    replace(folder, base, later(base))
    for backup in (base, child):
        with pytest.raises(RecordUnsupported, match=base.id):
            Catalogue(folder, KEYS).chain(backup.id)


def test_its_children_are_not_called_broken(
    folder: DirectoryStore, later: Callable[[Record], bytes]
) -> None:
    base = completed()
    place(folder, KEYS, base, completed(base, to_lsn=200))
    replace(folder, base, later(base))
    catalogue, ancestry = Catalogue(folder, KEYS), Ancestry()
    for row in catalogue.records():
        ancestry.add(row)
    assert ancestry.broken(catalogue.find) == []


def test_a_list_shows_whose_it_is_also_from_the_cache(
    folder: DirectoryStore, later: Callable[[Record], bytes], tmp_path: Path
) -> None:
    one = completed(completed(), attempt=new_attempt(INSTANCE))
    place(folder, KEYS, one)
    replace(folder, one, later(one))
    catalogue = Catalogue(folder, KEYS, RecordCache(tmp_path / "cache"))
    for _ in range(2):
        [row] = catalogue.records()
        assert (row.state, row.record) == (RecordState.UNSUPPORTED, None)
        assert row.later == (INSTANCE, one.parent_id)
        assert row.instance_id == INSTANCE


@pytest.mark.parametrize("act", ["rekey", "condemn", "retract"])
def test_an_older_agent_still_reads_a_record_that_was_written_again(
    folder: DirectoryStore, act: str
) -> None:
    """The agent that made the golden backups refuses every field that it did not write."""
    backup_id = places.expected().incremental
    before = places.record(backup_id)
    assert "longest_path" not in before["stored"]
    ring = keyring("golden")
    put(folder, Container.OBJECTS, record_name(backup_id), ring.sign(json.dumps(before).encode()))
    put(folder, Container.SEGMENTS, segment_name(backup_id, before["attempt"], 0), b"bytes")
    catalogue = Catalogue(folder, ring)
    if act == "rekey":
        record = catalogue.need(backup_id)
        catalogue.rewrap(record, ring.wrap_all(bytes(32)), "golden")
    elif act == "condemn":
        catalogue.condemn(backup_id)
    else:
        error = ErrorInfo(code="interrupted", message="m", hint="h")
        catalogue.retract(backup_id, [before["attempt"]], error)
    line = folder.get(Container.OBJECTS, record_name(backup_id), 1 << 20).split(b"\n")[0]
    after = json.loads(line)
    changed = {"rekey": {"keys"}, "condemn": {"status"}}
    names = {name for name in before if before[name] != after[name]}
    assert names == changed.get(act, {"status", "updated", "error", "stored", "locationRef"})
    assert list(after) == list(before)
    assert act != "rekey" or set(after["keys"][0]) == {"id", "alg", "wrapped"}
