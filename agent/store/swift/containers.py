"""Requests that make the containers, and that compare their storage policies."""

from functools import partial
from typing import Final

from swiftclient import client

from agent.errors import StoreDenied, StoreNotFound, StoreRejected
from agent.store.swift.errors import refusal_text
from agent.store.swift.session import Link, SwiftSession

# Statuses of a storage URL that leads to no account. Ceph's gateway may have no accounts in its
# URLs. Then it takes the account in a URL for a container (404). If it has them and the URL has
# none, it takes the container for the account (405).
_NO_ACCOUNT: Final = (404, 405)
# The text of Ceph's gateway beside 409, if the container belongs to another account.
_OF_ANOTHER: Final = b"BucketAlreadyExists"
_LONGEST_URL: Final = 200  # characters of a foreign URL in a message


def create_container(session: SwiftSession, name: str) -> None:
    """Make a container if it doesn't exist.

    Raises:
        StoreRejected: the storage URL leads to no account.
        StoreDenied: the container belongs to another account.
    """
    what = f"create container {name}"
    session.call(what, partial(_create, what, name))


def check_policies(session: SwiftSession, objects: str, segments: str) -> None:
    """Check that two containers have one storage policy, as far as they exist.

    Ceph's gateway looks for segments only in the pool of the manifest's container. It answers 404
    to a manifest with segments in another pool.

    Raises:
        StoreRejected: their policies differ.
    """
    first, second = (_policy(session, name) for name in (objects, segments))
    if first and second and first != second:
        raise StoreRejected(
            f"the container {objects} has the storage policy {first[:60]!r}, but {segments} has "
            f"{second[:60]!r}: Ceph's gateway can't join segments of another policy",
            hint="delete the container that is empty and make it again with the policy of the "
            "other one (X-Storage-Policy), or name another [store] container",
        )


def _create(what: str, name: str, link: Link) -> None:
    try:
        client.put_container(link.url, link.token, name, http_conn=link.http)
    except client.ClientException as error:
        if error.http_status in _NO_ACCOUNT:
            raise StoreRejected(
                f"{what}: {refusal_text(error)}; the storage URL {link.url[:_LONGEST_URL]} may "
                "lead to no account",
                hint="if the store gives no reason, correct the URL of the object store in the "
                "catalogue of Keystone (with auth v1: the URL that the login returns). A URL of "
                "Ceph's gateway must end in /AUTH_<project id> if `rgw swift account in url` is "
                "true, and otherwise in /v1",
            ) from error
        if error.http_status == 409 and _OF_ANOTHER in (error.http_response_content or b""):
            raise StoreDenied(
                f"{what}: the container exists and belongs to another account",
                hint="name another [store] container. All projects of a Ceph's gateway share the "
                "names of containers if `rgw keystone implicit tenants` is false",
            ) from error
        raise


def _policy(session: SwiftSession, name: str) -> str | None:
    """Return the storage policy of a container, or None if there is no such container."""

    def action(link: Link) -> str | None:
        headers = client.head_container(link.url, link.token, name, http_conn=link.http)
        policy: str | None = headers.get("x-storage-policy")
        return policy

    try:
        return session.call(f"look up the storage policy of {name}", action)
    except StoreNotFound:
        return None
