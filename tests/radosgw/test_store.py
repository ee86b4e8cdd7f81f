"""The store's contract on the real radosgw, and its differences from Swift."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from swiftclient import client

from agent.errors import StoreDenied, StoreError, StoreMismatch, StoreNotFound, StoreRejected
from agent.records.manifest import Manifest
from agent.records.object_names import Segment, segment_name
from agent.records.part_names import AttemptNames
from agent.store.protocol import Container
from agent.store.swift.login import AuthV1
from agent.store.swift.store import SwiftSettings, SwiftStore
from tests.operations.collecting import HOUR, KEYS, collected, names, one_of_each, ours_completed
from tests.operations.stored import place
from tests.stack.process import poll
from tests.stack.radosgw import Radosgw
from tests.store.contract import JoiningContract, fresh, md5, put_segments, views

MOST = 1000  # segments that one manifest joins, Ceph's default


class TestContract(JoiningContract):
    """The contract, with manifests that show other rows in a listing than Swift's."""

    joined_rows = False

    @pytest.fixture
    def store(self, store: SwiftStore) -> SwiftStore:
        return store


@pytest.fixture
def client_access(radosgw: Radosgw) -> tuple[str, str]:
    """Return the storage URL and the token of a separate login."""
    url, token = client.get_auth(radosgw.auth_url, radosgw.user, radosgw.key)
    return url, token


def test_limits_are_flat_and_announced(store: SwiftStore) -> None:
    limits = store.limits()
    assert (limits.manifest_entries, limits.nesting, limits.announced) == (MOST, False, True)


def test_as_many_segments_as_one_manifest_joins_read_as_one_object(
    store: SwiftStore, container: str, client_access: tuple[str, str]
) -> None:
    backup_id, attempt = fresh(), fresh()
    contents = [number.to_bytes(4, "big") for number in range(MOST)]

    def segment(number: int) -> Segment:
        name = segment_name(backup_id, attempt, number)
        return Segment(4, store.put(Container.SEGMENTS, name, views(contents[number])))

    manifest = Manifest(store, store.limits(), AttemptNames(backup_id, attempt))
    with ThreadPoolExecutor(4) as pool:
        for number, row in enumerate(pool.map(segment, range(MOST))):
            manifest.add(number, row)
    finished = manifest.finish()
    assert manifest.publish({"X-Object-Meta-Lsn": "42"}) == finished.etag
    name = f"{backup_id}.xbstream.gz.enc"
    headers, body = client.get_object(*client_access, container, name)
    assert body == b"".join(contents)
    assert headers["x-object-meta-lsn"] == "42"
    assert headers["etag"] == f'"{finished.etag}"'
    with pytest.raises(StoreError):
        manifest.add(MOST, Segment(4, md5(b"more")))


def test_a_manifest_of_too_many_is_refused(store: SwiftStore) -> None:
    folder = fresh()
    [entry] = put_segments(store, folder, [b"one"])
    with pytest.raises((StoreRejected, StoreMismatch)):
        store.put_manifest(Container.OBJECTS, folder, [entry] * (MOST + 1), {})


def test_a_segment_that_changed_after_it_was_confirmed_is_found(store: SwiftStore) -> None:
    """The gateway itself would join any segment of the right size."""
    folder = fresh()
    entries = put_segments(store, folder, [b"one", b"two", b"three"])
    store.put(Container.SEGMENTS, entries[1].name, views(b"TWO"))
    with pytest.raises(StoreMismatch, match=entries[1].name):
        store.put_manifest(Container.OBJECTS, folder, entries, {})
    with pytest.raises(StoreNotFound):
        store.get(Container.OBJECTS, folder, 100)


def test_containers_with_short_names_are_refused_with_the_stores_reason(
    settings: SwiftSettings,
) -> None:
    store = SwiftStore(replace(settings, container="ab"))
    with pytest.raises(StoreRejected, match="InvalidBucketName"):
        store.open()
    store.close()


def test_a_missing_container_is_told_from_a_refused_key(
    radosgw: Radosgw, settings: SwiftSettings, store: SwiftStore, container: str
) -> None:
    other = SwiftStore(replace(settings, container=f"never-{fresh()}"))
    with pytest.raises(StoreNotFound, match=container):
        list(other.list(Container.OBJECTS))
    other.close()
    login = AuthV1(radosgw.auth_url, radosgw.user, "wrong-secret")
    wrong = SwiftStore(replace(settings, login=login))
    with pytest.raises(StoreDenied, match="log in"):
        wrong.open()
    wrong.close()


@pytest.fixture
def small_pages(radosgw: Radosgw) -> Iterator[None]:
    """Configure a gateway that gives at most 5 rows a page, even if more are requested."""
    radosgw.configure(rgw_max_listing_results=5)
    yield
    radosgw.configure()


@pytest.mark.usefixtures("small_pages")
def test_pages_that_are_shorter_than_asked_make_one_listing(store: SwiftStore) -> None:
    folder = fresh()
    entries = put_segments(store, folder, [b"x"] * 17)
    assert [row.name for row in store.list(Container.SEGMENTS, folder)] == [
        entry.name for entry in entries
    ]


@pytest.fixture
def account_in_url(radosgw: Radosgw) -> Iterator[None]:
    radosgw.configure(rgw_swift_account_in_url="true")
    yield
    radosgw.configure()


@pytest.mark.usefixtures("account_in_url")
def test_an_account_in_the_storage_url(settings: SwiftSettings) -> None:
    store = SwiftStore(settings)
    assert "/AUTH_" in store.location
    store.open()
    assert store.limits().manifest_entries == MOST
    folder = fresh()
    entries = put_segments(store, folder, [b"one", b"two"])
    store.put_manifest(Container.OBJECTS, folder, entries, {})
    assert len(list(store.list(Container.SEGMENTS, folder))) == 2
    store.close()


@pytest.fixture
def short_tokens(radosgw: Radosgw) -> Iterator[None]:
    radosgw.configure(rgw_swift_token_expiration=1)
    yield
    radosgw.configure()


@pytest.mark.usefixtures("short_tokens")
def test_an_expired_token_is_replaced(store: SwiftStore) -> None:
    folder, first = fresh(), store._session._current_access().token

    def replaced() -> bool:
        put_segments(store, folder, [b"one"])
        return store._session._current_access().token != first

    poll("the token is replaced", replaced, 10)


class Tomorrow(SwiftStore):
    """A store whose gateway clock is a day ahead."""

    def clock(self) -> float:
        return super().clock() + 25 * HOUR


def test_gc_takes_each_kind_of_orphan_and_no_manifest_of_a_backup(settings: SwiftSettings) -> None:
    store = Tomorrow(replace(settings, container=f"gc-{fresh()}"))
    store.open()
    kept = ours_completed()
    place(store, KEYS, kept)
    before = names(store)
    ids, stay = one_of_each(store)
    seen = collected(store)
    assert sorted(one.backup_id for one in seen) == sorted(ids)
    assert names(store) == before | stay
    # an object counts with the bytes of its segments, not with those of its JSON
    lost = next(one for one in seen if one.backup_id == ids[0])
    assert lost.stored_bytes == 2 * len(b"bytes") + len(b"a list") + len(b"a manifest") + len(b"{}")
    store.close()
