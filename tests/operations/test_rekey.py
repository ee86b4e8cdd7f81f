"""`rekey` on a real Swift.

These tests cover the records that it changes, the records that it leaves, and a store that fails or
a record that changes during the run.
"""

import json
import os
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from agent.errors import Fenced, KeyNotHere, StoreUnreachable
from agent.keys.keyring import Keyring, signer
from agent.keys.master import MasterKey
from agent.keys.recovery import RecoverySecret
from agent.model import BackupStatus, Record
from agent.operations.rekey import Rekey, Rekeyed, RekeyOutcome
from agent.records.catalogue import Catalogue
from agent.records.object_names import record_name
from agent.store.protocol import Container
from agent.store.swift.store import SwiftStore
from tests.records.made import completed, record

OLD = MasterKey("old", bytes(32))
NEW = MasterKey("new", bytes(range(32)))
STRANGE = MasterKey("strange", bytes([9]) * 32)
BOTH = Keyring({OLD.id: OLD, NEW.id: NEW}, OLD.id)


def _ring(*keys: MasterKey) -> Keyring:
    return Keyring({key.id: key for key in keys}, keys[0].id)


def _place(store: SwiftStore, one: Record, ring: Keyring = BOTH) -> bytes:
    raw = ring.sign(one.model_dump_json().encode())
    store.put(Container.OBJECTS, record_name(one.id), [memoryview(raw)])
    return raw


def _wrapped(data_key: bytes, ring: Keyring = BOTH, **changes: Any) -> Record:
    return completed(keys=ring.wrap_all(data_key), name="größer 備份", **changes)


def _raw(store: SwiftStore, backup_id: str) -> bytes:
    return store.get(Container.OBJECTS, record_name(backup_id), 1 << 20)


def _run(store: SwiftStore, ring: Keyring = BOTH, **options: bool) -> dict[str, Rekeyed]:
    operation = Rekey(Catalogue(store, ring), ring, NEW.id, **options)
    return {one.backup_id: one for one in operation.run(connections=4)}


def _without_keys(raw: bytes) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(raw.splitlines()[0])
    del line["keys"]
    return line


def test_only_keys_and_signature_change(store: SwiftStore) -> None:
    data_key = os.urandom(32)
    statuses = (BackupStatus.COMPLETED, BackupStatus.FAILED, BackupStatus.CANCELLED)
    before = {
        one.id: _place(store, one)
        for one in (_wrapped(data_key, status=status) for status in statuses)
    }
    assert {one.outcome for one in _run(store).values()} == {RekeyOutcome.DONE}
    only_new = Catalogue(store, _ring(NEW))
    for backup_id, raw in before.items():
        after = _raw(store, backup_id)
        assert list(_without_keys(after).items()) == list(_without_keys(raw).items())
        assert signer(after) == "new"
        assert _ring(NEW).unwrap(only_new.need(backup_id).keys) == data_key
        with pytest.raises(KeyNotHere, match="'new'"):
            Catalogue(store, _ring(OLD)).read(backup_id)
        with pytest.raises(KeyNotHere, match="'new'"):
            _ring(OLD).unwrap(only_new.need(backup_id).keys)


def test_a_second_run_changes_nothing(store: SwiftStore) -> None:
    one = _wrapped(os.urandom(32))
    _place(store, one)
    _run(store)
    after = _raw(store, one.id)
    assert _run(store)[one.id].outcome is RekeyOutcome.ALREADY
    assert _raw(store, one.id) == after


def test_recovery_keys_come_and_go(store: SwiftStore) -> None:
    data_key = os.urandom(32)
    secret, retired = RecoverySecret.make("offline"), RecoverySecret.make("retired")
    keys = {OLD.id: OLD, NEW.id: NEW}
    one = _wrapped(data_key, Keyring(keys, OLD.id, [retired.public]))
    _place(store, one)
    ring = Keyring(keys, NEW.id, [secret.public])
    assert _run(store, ring)[one.id].outcome is RekeyOutcome.DONE
    master, recovery = Catalogue(store, ring).need(one.id).keys
    assert (master.id, recovery.id) == ("new", "offline")
    assert NEW.unwrap(master) == secret.unwrap(recovery) == data_key
    assert _run(store, ring)[one.id].outcome is RekeyOutcome.ALREADY
    assert _run(store, BOTH)[one.id].outcome is RekeyOutcome.DONE
    assert len(Catalogue(store, ring).need(one.id).keys) == 1


def test_a_dry_run_writes_nothing(store: SwiftStore) -> None:
    one = _wrapped(os.urandom(32))
    raw = _place(store, one)
    assert _run(store, dry_run=True)[one.id].outcome is RekeyOutcome.DONE
    assert _raw(store, one.id) == raw


def test_one_without_encryption_is_signed_anew(store: SwiftStore) -> None:
    one = completed(cipher="none", keys=())
    _place(store, one)
    assert _run(store)[one.id].outcome is RekeyOutcome.DONE
    assert Catalogue(store, _ring(NEW)).need(one.id) == one
    assert _run(store)[one.id].outcome is RekeyOutcome.ALREADY


def test_what_is_at_work_is_left_and_named(store: SwiftStore) -> None:
    for status in (BackupStatus.BUILDING, BackupStatus.DELETING):
        one = record(status=status, keys=BOTH.wrap_all(os.urandom(32)))
        raw = _place(store, one)
        told = _run(store)[one.id]
        assert (told.outcome, told.code) == (RekeyOutcome.LEFT, "fenced")
        assert str(status) in told.why
        assert _raw(store, one.id) == raw
        done = one.model_copy(update={"status": BackupStatus.FAILED})
        _place(store, done)
        assert _run(store)[one.id].outcome is RekeyOutcome.DONE


def test_what_can_not_be_trusted_is_left_named_and_hides_no_other(store: SwiftStore) -> None:
    stranger = _ring(STRANGE)
    good, bad, foreign, mixed = (_wrapped(os.urandom(32)) for _ in range(4))
    _place(store, good)
    raws = {
        bad.id: _place(store, bad).replace(b'"from_lsn":0', b'"from_lsn":1'),
        foreign.id: _place(store, foreign, stranger),
        mixed.id: _place(
            store, mixed.model_copy(update={"keys": stranger.wrap_all(os.urandom(32))})
        ),
        (broken := str(uuid4())): b"",
    }
    for backup_id, raw in raws.items():
        store.put(Container.OBJECTS, record_name(backup_id), [memoryview(raw)])
    told = _run(store)
    assert told.pop(good.id).outcome is RekeyOutcome.DONE
    assert {backup_id: one.code for backup_id, one in told.items()} == {
        bad.id: "record_damaged",
        foreign.id: "key_not_here",
        mixed.id: "key_not_here",
        broken: "record_damaged",
    }
    assert "'strange'" in told[foreign.id].why
    assert "'strange'" in told[mixed.id].why
    for backup_id, raw in raws.items():
        assert _raw(store, backup_id) == raw


def test_the_key_has_to_be_here(store: SwiftStore) -> None:
    with pytest.raises(KeyNotHere, match="'new' is not on this machine"):
        Rekey(Catalogue(store, _ring(OLD)), _ring(OLD), NEW.id)


def test_a_store_that_is_away_is_no_record_s_fault(
    store: SwiftStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _place(store, _wrapped(os.urandom(32)))

    def away(*_: object) -> bytes:
        raise StoreUnreachable("away")

    monkeypatch.setattr(store, "get", away)
    with pytest.raises(StoreUnreachable):
        _run(store)


class Meanwhile(Catalogue):
    """A catalogue that lets something happen to a record between its read and its write."""

    def __init__(self, store: SwiftStore, happen: Callable[[Record], None]) -> None:
        super().__init__(store, BOTH)
        self._happen = happen

    def rewrap(self, old: Record, *rest: Any) -> None:
        self._happen(old)
        super().rewrap(old, *rest)


def test_one_that_was_changed_meanwhile_is_left(store: SwiftStore) -> None:
    one = _wrapped(os.urandom(32))
    _place(store, one)
    deleting = one.model_copy(update={"status": BackupStatus.DELETING})

    def begin_to_delete(_: Record) -> None:
        _place(store, deleting)

    catalogue = Meanwhile(store, begin_to_delete)
    [told] = Rekey(catalogue, BOTH, NEW.id).run(connections=1)
    assert (told.outcome, told.code) == (RekeyOutcome.LEFT, "fenced")
    assert catalogue.read(one.id) == deleting
    catalogue = Meanwhile(store, lambda _: store.delete(Container.OBJECTS, record_name(one.id)))
    _place(store, one)
    [told] = Rekey(catalogue, BOTH, NEW.id).run(connections=1)
    assert told.outcome is RekeyOutcome.LEFT
    assert catalogue.read(one.id) is None
    with pytest.raises(Fenced):
        catalogue.rewrap(one, one.keys, NEW.id)
