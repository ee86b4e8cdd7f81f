"""Tests of records on a real Swift, of the right to write them, and of bad records."""

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from agent.errors import (
    AgentError,
    BackupExists,
    BackupUnknown,
    BackupUnusable,
    DataDamaged,
    Fenced,
    KeyNotHere,
    RecordDamaged,
    RecordUnsupported,
)
from agent.keys.keyring import Keyring, RecordState
from agent.keys.master import MasterKey
from agent.model import BackupStatus, Record, WrappedKey
from agent.records import catalogue as catalogue_module
from agent.records.catalogue import Catalogue, ListedRecord
from agent.records.object_names import Segment, encode_list, list_name, list_ref, record_name
from agent.records.parsing import parse_record
from agent.records.presence import LIST_LIMIT
from agent.store.protocol import Container
from agent.store.swift.login import AuthV1
from agent.store.swift.store import SwiftSettings, SwiftStore
from tests.records.made import completed, keyring, record, stored
from tests.stack.swift import SwiftServer

KEYS = keyring()
Change = Callable[[Record], Record]


def _open(swift: SwiftServer, container: str) -> SwiftStore:
    settings = SwiftSettings(AuthV1(swift.auth_url, swift.user, swift.key), container, attempts=1)
    store = SwiftStore(settings)
    store.open()
    return store


@pytest.fixture(scope="module")
def store(swift_session: SwiftServer) -> Iterator[SwiftStore]:
    store = _open(swift_session, "catalogue")
    yield store
    store.close()


@pytest.fixture
def catalogue(store: SwiftStore) -> Catalogue:
    return Catalogue(store, KEYS)


def _put(store: SwiftStore, name: str, raw: bytes) -> None:
    store.put(Container.OBJECTS, name, [memoryview(raw)])


def _place(store: SwiftStore, *records: Record) -> None:
    """Store records without a check that this is allowed."""
    for one in records:
        _put(store, record_name(one.id), KEYS.sign(one.model_dump_json().encode()))


def _changed(one: Record, **changes: Any) -> Record:
    return one.model_copy(update=changes)


def _finished(one: Record) -> Record:
    return _changed(one, status=BackupStatus.COMPLETED, to_lsn=100, stored=stored())


# --- begin, write, fence -----------------------------------------------------------------


def test_a_record_is_read_as_it_was_written(catalogue: Catalogue) -> None:
    one = record(name="größer 備份", description="näive")
    catalogue.begin(one)
    assert catalogue.read(one.id) == one
    catalogue.write(_finished(one))
    assert catalogue.need(one.id) == _finished(one)


@pytest.mark.parametrize("status", [BackupStatus.FAILED, BackupStatus.CANCELLED])
def test_an_id_that_was_given_up_may_be_begun_again(
    store: SwiftStore, catalogue: Catalogue, status: BackupStatus
) -> None:
    one = record(status=status)
    _place(store, one)
    again = _changed(one, status=BackupStatus.BUILDING, attempt=str(uuid4()))
    catalogue.begin(again)
    assert catalogue.read(one.id) == again


@pytest.mark.parametrize(
    "status", [BackupStatus.BUILDING, BackupStatus.COMPLETED, BackupStatus.DELETING]
)
def test_an_id_in_use_is_not_begun_again(
    store: SwiftStore, catalogue: Catalogue, status: BackupStatus
) -> None:
    one = record(status=status)
    _place(store, one)
    with pytest.raises(BackupExists, match=str(status)):
        catalogue.begin(_changed(one, status=BackupStatus.BUILDING, attempt=str(uuid4())))
    assert catalogue.read(one.id) == one


BUILDING, COMPLETED = BackupStatus.BUILDING, BackupStatus.COMPLETED
FAILED, CANCELLED = BackupStatus.FAILED, BackupStatus.CANCELLED
DELETING = BackupStatus.DELETING


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        (BUILDING, BUILDING),
        (BUILDING, COMPLETED),
        (BUILDING, FAILED),
        (BUILDING, CANCELLED),
        (FAILED, FAILED),
        (CANCELLED, FAILED),
        # With this status the attempt reports that it has stopped. The delete waits for it.
        (DELETING, CANCELLED),
    ],
)
def test_the_attempt_that_owns_a_backup_may_write(
    store: SwiftStore, catalogue: Catalogue, there: BackupStatus, wanted: BackupStatus
) -> None:
    one = record(status=there)
    _place(store, one)
    catalogue.write(_changed(one, status=wanted))
    assert catalogue.need(one.id).status is wanted


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        (COMPLETED, FAILED),
        (COMPLETED, CANCELLED),
        (COMPLETED, COMPLETED),
        (DELETING, COMPLETED),
        (DELETING, FAILED),
        (FAILED, COMPLETED),
        (CANCELLED, COMPLETED),
    ],
)
def test_what_is_settled_stays(
    store: SwiftStore, catalogue: Catalogue, there: BackupStatus, wanted: BackupStatus
) -> None:
    one = record(status=there)
    _place(store, one)
    with pytest.raises(Fenced, match=f"is {there} already"):
        catalogue.write(_changed(one, status=wanted))
    assert catalogue.read(one.id) == one


@pytest.mark.parametrize("there", [BUILDING, DELETING])
@pytest.mark.parametrize("wanted", [COMPLETED, FAILED, CANCELLED])
def test_another_attempt_owns_the_backup(
    store: SwiftStore, catalogue: Catalogue, there: BackupStatus, wanted: BackupStatus
) -> None:
    theirs = record(status=there)
    _place(store, theirs)
    with pytest.raises(Fenced, match=theirs.attempt):
        catalogue.write(_changed(theirs, attempt=str(uuid4()), status=wanted))
    assert catalogue.read(theirs.id) == theirs


@pytest.mark.parametrize("there", [BUILDING, COMPLETED, FAILED, CANCELLED, DELETING])
def test_a_backup_is_marked_whoevers_and_whatever_it_is(
    store: SwiftStore, catalogue: Catalogue, there: BackupStatus
) -> None:
    one = completed(status=there)
    _place(store, one)
    assert catalogue.condemn(one.id) == _changed(one, status=DELETING)
    assert catalogue.read(one.id) == _changed(one, status=DELETING)
    catalogue.forget(one.id)
    assert catalogue.condemn(one.id) is None
    assert catalogue.read(one.id) is None


def test_a_mark_leaves_a_record_readable_for_whoever_made_it(store: SwiftStore) -> None:
    one = record()
    theirs = MasterKey("theirs", bytes(32))
    maker = Catalogue(store, Keyring({"theirs": theirs}, "theirs"))
    maker.begin(one)
    both = Keyring({"theirs": theirs, "k1": KEYS.active}, "k1")
    Catalogue(store, both).condemn(one.id)
    assert maker.need(one.id).status is DELETING


def test_a_deleted_record_is_not_brought_back(catalogue: Catalogue) -> None:
    one = record()
    with pytest.raises(Fenced, match="was deleted"):
        catalogue.write(one)
    assert catalogue.read(one.id) is None


def _deleting(one: Record) -> Record:
    return _changed(one, status=DELETING)


def _with_other_lsn(one: Record) -> Record:
    return _changed(one, to_lsn=99)


@pytest.mark.parametrize("change", [None, _deleting, _with_other_lsn])
@pytest.mark.parametrize("generation", [0, 1])
def test_an_incremental_is_not_completed_on_a_broken_chain(
    store: SwiftStore, catalogue: Catalogue, change: Change | None, generation: int
) -> None:
    base = completed()
    middle = completed(base, to_lsn=200)
    mine = record(parent_id=middle.id, from_lsn=200)
    _place(store, base, middle, mine)
    catalogue.fence(_changed(mine, status=COMPLETED))
    broken = (base, middle)[generation]
    if change is None:
        store.delete(Container.OBJECTS, record_name(broken.id))
    else:
        _place(store, change(broken))
    with pytest.raises(Fenced, match=r"ancestor|parent"):
        catalogue.write(_changed(mine, status=COMPLETED))
    catalogue.write(_changed(mine, status=FAILED))


# --- chains ------------------------------------------------------------------------------


def test_a_chain_begins_with_its_full_backup(store: SwiftStore, catalogue: Catalogue) -> None:
    base = completed()
    first = completed(base, to_lsn=200)
    second = completed(first, to_lsn=300)
    _place(store, second, base, first, completed(base, to_lsn=250))
    assert catalogue.chain(second.id) == [base, first, second]
    assert catalogue.chain(base.id) == [base]


@pytest.mark.parametrize("status", [BUILDING, FAILED, CANCELLED, DELETING])
def test_each_member_of_a_chain_must_be_completed(
    store: SwiftStore, catalogue: Catalogue, status: BackupStatus
) -> None:
    base = completed(status=status)
    child = completed(base)
    _place(store, base, child)
    with pytest.raises(BackupUnusable, match=f"{base.id} is {status}"):
        catalogue.chain(child.id)


def test_a_chain_without_its_beginning(store: SwiftStore, catalogue: Catalogue) -> None:
    base = completed()
    child = completed(base)
    _place(store, child)
    with pytest.raises(BackupUnusable, match=base.id):
        catalogue.chain(child.id)
    with pytest.raises(BackupUnknown):
        catalogue.chain(str(uuid4()))


def test_a_chain_whose_lsns_do_not_meet(store: SwiftStore, catalogue: Catalogue) -> None:
    base = completed(to_lsn=100)
    child = completed(base, from_lsn=101)
    _place(store, base, child)
    with pytest.raises(BackupUnusable, match=r"begins at LSN 101.*ends at 100"):
        catalogue.chain(child.id)


def test_a_chain_that_bites_its_tail(
    store: SwiftStore, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue_module, "CHAIN_LIMIT", 5)
    base = completed()
    child = completed(base)
    _place(store, child, _changed(base, parent_id=child.id, from_lsn=100))
    with pytest.raises(BackupUnusable, match="does not end"):
        catalogue.chain(child.id)


# --- records that can't be trusted -------------------------------------------------------


def _tampered(one: Record) -> bytes:
    return KEYS.sign(one.model_dump_json().encode()).replace(b'"base"', b'"BASE"')


def _of_later_format(one: Record) -> bytes:
    line = one.model_dump_json().replace('"format":1', '"format":2,"novelty":true')
    return KEYS.sign(line.encode())


def _of_later_field(one: Record) -> bytes:
    return KEYS.sign(one.model_dump_json().replace("{", '{"novelty":true,', 1).encode())


def _of_later_value(one: Record) -> bytes:
    return KEYS.sign(one.model_dump_json().replace('"AES256_GCM_HKDF_1MB"', '"AES512"').encode())


def _of_another_id(one: Record) -> bytes:
    return KEYS.sign(_changed(one, id=str(uuid4())).model_dump_json().encode())


UNTRUSTED: dict[str, tuple[Callable[[Record], bytes], type[AgentError], RecordState]] = {
    "changed": (_tampered, RecordDamaged, RecordState.BAD),
    "unsigned": (lambda one: one.model_dump_json().encode(), RecordDamaged, RecordState.BAD),
    "empty": (lambda _: b"", RecordDamaged, RecordState.BAD),
    "no text": (lambda _: b"\xff\x00\n\xfe", RecordDamaged, RecordState.BAD),
    "signed junk": (lambda _: KEYS.sign(b"[1, 2]"), RecordDamaged, RecordState.BAD),
    "signed, lacking fields": (
        lambda _: KEYS.sign(b'{"format":1}'),
        RecordDamaged,
        RecordState.BAD,
    ),
    "later format": (_of_later_format, RecordUnsupported, RecordState.UNSUPPORTED),
    "later field": (_of_later_field, RecordUnsupported, RecordState.UNSUPPORTED),
    "later value": (_of_later_value, RecordUnsupported, RecordState.UNSUPPORTED),
    "later, of another key": (
        lambda one: keyring("k2").sign(_of_later_format(one).splitlines()[0]),
        KeyNotHere,
        RecordState.KEY_NOT_HERE,
    ),
    "later, changed": (
        lambda one: _of_later_format(one).replace(b'"base"', b'"BASE"'),
        RecordDamaged,
        RecordState.BAD,
    ),
    "another's": (_of_another_id, RecordDamaged, RecordState.BAD),
    "other key": (
        lambda one: keyring("k2").sign(one.model_dump_json().encode()),
        KeyNotHere,
        RecordState.KEY_NOT_HERE,
    ),
    "other key of that name": (
        lambda one: keyring("k1", fill=8).sign(one.model_dump_json().encode()),
        RecordDamaged,
        RecordState.BAD,
    ),
}


@pytest.mark.parametrize("what", UNTRUSTED)
def test_a_record_that_can_not_be_trusted(
    store: SwiftStore, catalogue: Catalogue, what: str
) -> None:
    make, error, state = UNTRUSTED[what]
    one = completed()
    _put(store, record_name(one.id), make(one))
    with pytest.raises(error, match=one.id):
        catalogue.read(one.id)
    with pytest.raises(error):
        catalogue.chain(one.id)
    with pytest.raises(error):
        catalogue.begin(_changed(one, status=BUILDING, attempt=str(uuid4())))
    with pytest.raises(error):
        catalogue.write(_changed(one, status=FAILED))
    listed = catalogue.find(one.id)
    assert listed is not None
    assert listed.backup_id == one.id
    assert listed.state is state


@pytest.mark.parametrize("size", ["1e400", "NaN", "Infinity"])
def test_a_size_that_is_no_number_makes_no_record(catalogue: Catalogue, size: str) -> None:
    one = completed(size=0.5)
    line = one.model_dump_json().replace('"size":0.5', f'"size":{size}').encode()
    with pytest.raises(RecordDamaged):
        parse_record(one.id, line)


def test_what_a_key_that_is_not_here_vouches_for_is_still_shown(
    store: SwiftStore, catalogue: Catalogue
) -> None:
    one = completed()
    _put(store, record_name(one.id), keyring("k2").sign(one.model_dump_json().encode()))
    listed = catalogue.find(one.id)
    assert listed is not None
    assert listed.record == one


@pytest.mark.parametrize("what", ["name", "keys"])
def test_little_is_kept_of_what_nobody_vouches_for(catalogue: Catalogue, what: str) -> None:
    """A listing holds thousands of records. Each may be as long as the largest object."""
    many = tuple(WrappedKey(id="", wrapped="") for _ in range(4000))
    one = completed(**{"name": "n" * 100_000} if what == "name" else {"keys": many})
    ours, strange = (ring.sign(one.model_dump_json().encode()) for ring in (KEYS, keyring("k2")))
    assert catalogue.judge(one.id, ours).record == one
    assert catalogue.judge(one.id, strange) == ListedRecord(one.id, RecordState.KEY_NOT_HERE, None)
    longest = completed(name="é" * 255, description='"' * 1024, keys=many[:17])
    strange = keyring("k2").sign(longest.model_dump_json().encode())
    assert catalogue.judge(longest.id, strange).record == longest


# --- segment lists -----------------------------------------------------------------------


def _with_lists(store: SwiftStore, *lists: list[Segment]) -> Record:
    """Store segment lists, and return a COMPLETED record that names them."""
    one = completed()
    refs = []
    for number, rows in enumerate(lists):
        raw = encode_list(rows)
        store.put(Container.SEGMENTS, list_name(one.id, one.attempt, number), [memoryview(raw)])
        refs.append(list_ref(raw))
    return _changed(one, stored=stored(lists=tuple(refs)))


def test_segments_come_from_the_lists_in_order(store: SwiftStore, catalogue: Catalogue) -> None:
    rows = [Segment(size, f"{size:032x}") for size in range(5)]
    assert list(catalogue.segments(_with_lists(store, rows[:3], rows[3:]))) == rows


def test_a_backup_whose_first_list_answers_is_asked_for_once(
    swift: SwiftServer, store: SwiftStore, catalogue: Catalogue
) -> None:
    one = _with_lists(store, [Segment(1, "0" * 32)])
    before = len(swift.requests())
    assert catalogue.verify_or_condemn(one)
    [only] = swift.requests()[before:]
    assert only.startswith("HEAD ")


def _without(store: SwiftStore, name: str) -> None:
    store.delete(Container.SEGMENTS, name)


def _with_other_bytes(store: SwiftStore, name: str) -> None:
    raw = encode_list([Segment(2, "1" * 32)])
    store.put(Container.SEGMENTS, name, [memoryview(raw)])


def _with_far_too_many_bytes(store: SwiftStore, name: str) -> None:
    store.put(Container.SEGMENTS, name, [memoryview(bytes(LIST_LIMIT + 1))])


@pytest.mark.parametrize("damage", [_without, _with_other_bytes, _with_far_too_many_bytes])
def test_a_lost_or_changed_list_is_damage(
    store: SwiftStore, catalogue: Catalogue, damage: Callable[[SwiftStore, str], None]
) -> None:
    one = _with_lists(store, [Segment(1, "0" * 32)], [Segment(1, "0" * 32)])
    damage(store, list_name(one.id, one.attempt, 1))
    with pytest.raises(DataDamaged):
        list(catalogue.segments(one))


def test_a_backup_that_was_never_finished_has_no_segments(catalogue: Catalogue) -> None:
    with pytest.raises(BackupUnusable, match="names no stored bytes"):
        list(catalogue.segments(record()))


def test_a_record_of_another_key_with_the_same_id_is_not_called_damaged(
    store: SwiftStore, catalogue: Catalogue
) -> None:
    other = keyring("k1", fill=9)
    one = completed(keys=other.wrap_all(bytes(32)))
    raw = other.sign(one.model_dump_json().encode())
    _put(store, record_name(one.id), raw)
    assert catalogue.find(one.id) == ListedRecord(one.id, RecordState.OTHER_KEY, one)
    with pytest.raises(KeyNotHere, match="another key 'k1' than the one on this machine") as caught:
        catalogue.read(one.id)
    assert KEYS.active.fingerprint in str(caught.value)
    assert "escrow" in caught.value.hint
    assert Catalogue(store, other).read(one.id) == one
    # Its name is changed. The record is damaged for its own key, and here still of another key.
    _put(store, record_name(one.id), raw.replace(b'"base"', b'"BASE"'))
    with pytest.raises(RecordDamaged):
        Catalogue(store, other).read(one.id)
    with pytest.raises(KeyNotHere):
        catalogue.read(one.id)
