"""Containers that can't be made, and containers that don't fit together.

The answers are those of the real radosgw (tests/radosgw/test_keystone_variants.py).
"""

import json

import pytest

from agent.errors import StoreBusy, StoreDenied, StoreRejected
from agent.store.swift.store import SwiftStore
from tests.stack.swift import SwiftServer
from tests.store.test_swift_info import CEPH


@pytest.mark.parametrize(
    ("status", "body"), [(404, "NoSuchBucket"), (405, '{"Code":"MethodNotAllowed"}')]
)
def test_a_storage_url_without_an_account_is_named(
    swift: SwiftServer, store: SwiftStore, status: int, body: str
) -> None:
    swift.inject([{"match": "^/v1/", "method": "PUT", "status": status, "body": body}])
    with pytest.raises(StoreRejected, match=f"{swift.address}/v1/AUTH_.* may lead to no account"):
        store.open()


def test_a_container_of_another_account_is_no_busy_store(
    swift: SwiftServer, store: SwiftStore
) -> None:
    rule = {"match": "^/v1/", "method": "PUT", "status": 409}
    swift.inject([{**rule, "body": "BucketAlreadyExists", "times": 9}])
    with pytest.raises(StoreDenied, match="belongs to another account"):
        store.open()
    swift.inject([{**rule, "times": 2}])
    store.open()
    swift.inject([{**rule, "times": 9}])
    with pytest.raises(StoreBusy):
        store.open()


def test_only_a_ceph_may_not_have_two_storage_policies(
    swift: SwiftServer, store: SwiftStore
) -> None:
    cold = {"match": "_segments$", "method": "HEAD", "status": 204, "times": 9}
    rules = [{**cold, "headers": {"X-Storage-Policy": "cold"}}]
    swift.inject(rules)
    assert store.limits().nesting
    info = {"match": "^/info", "times": 9, "status": 200}
    swift.inject([{**info, "status": 404}, *rules])
    assert not store.limits().announced
    swift.inject([{**info, "body": json.dumps(CEPH)}, *rules])
    with pytest.raises(StoreRejected, match="_segments has 'cold'"):
        store.limits()
