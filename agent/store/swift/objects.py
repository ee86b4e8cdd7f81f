"""Requests about one object of any container: its facts and its bytes.

Objects that another program wrote are described by their own headers, because no record of the
agent has their sizes and ETags.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from swiftclient import client

from agent.errors import StoreError, StoreMismatch, StoreRejected
from agent.store.swift.session import Link

CHUNK: Final = 1 << 20  # bytes that are read at a time
# Swift's answer to a read of a manifest with entries that were deleted.
READ_MEANINGS: Final[Mapping[int, type[StoreError]]] = {409: StoreMismatch}
_METADATA: Final = "x-object-meta-"
# Swift's own limit for the names and values of one object is 4 KiB, and operators may raise it.
_MOST_METADATA: Final = 64 << 10  # characters


class ObjectFacts(NamedTuple):
    """What the store reports about one object.

    `etag` is lower-case hex without quotes: the MD5 of the bytes, and for a manifest
    `manifest_etag`. `size` is in bytes, of a manifest that of all joined objects. `is_manifest` is
    True for a Static Large Object. `metadata` has the custom headers. Their names are lower-case
    and without `x-object-meta-`. `stored_at` is the time in Unix seconds at which the store began
    to process the write, 0 if the store doesn't tell.
    """

    etag: str
    size: int
    is_manifest: bool
    metadata: Mapping[str, str]
    stored_at: float


def describe(what: str, container: str, name: str, link: Link) -> ObjectFacts:
    """Return the facts of an object's newest copy.

    Raises:
        StoreRejected: the answer has no size or no ETag, or too much metadata.
    """
    client.head_object(
        link.url, link.token, container, name, http_conn=link.http, headers={"X-Newest": "true"}
    )
    # swiftclient's function replaces %-escapes in values, which a URL in the metadata may have
    headers = {key.lower(): value for key, value in link.http[1].resp.headers.items()}
    etag, size = etag_of(headers), headers.get("content-length", "")
    if not etag or not (size.isascii() and size.isdigit()):
        raise StoreRejected(f"{what}: the store's answer has no ETag or no size")
    return ObjectFacts(
        etag,
        int(size),
        is_manifest(headers),
        _metadata(what, headers),
        _stored_at(headers),
    )


def get_object(
    link: Link, container: str, name: str, headers: dict[str, str]
) -> tuple[Mapping[str, str], Any]:
    """Return the headers of an object, and its body, which must be read to its end."""
    answer: tuple[Mapping[str, str], Any] = client.get_object(
        link.url,
        link.token,
        container,
        name,
        http_conn=link.http,
        resp_chunk_size=CHUNK,
        headers=headers,
    )
    return answer


def read_into(body: Any, buffer: memoryview) -> int:
    """Fill `buffer` from `body` as far as possible and return the number of bytes read."""
    filled = 0
    while filled < buffer.nbytes:
        piece = body.read(min(CHUNK, buffer.nbytes - filled))
        if not piece:
            break
        buffer[filled : filled + len(piece)] = piece
        filled += len(piece)
    return filled


def check_md5(what: str, content: memoryview | bytearray, headers: Mapping[str, str]) -> None:
    """Raise StoreMismatch unless the MD5 of `content` is the ETag that the store announces."""
    expected = etag_of(headers)
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise StoreMismatch(f"{what}: MD5 {found} differs from the announced {expected[:40]}")


def is_manifest(headers: Mapping[str, str]) -> bool:
    """Return True if the headers are those of a Static Large Object."""
    return headers.get("x-static-large-object", "").lower() == "true"


def etag_of(headers: Mapping[str, str]) -> str:
    """Return the ETag of an answer without the quotes that a manifest's has."""
    return headers.get("etag", "").strip('"')


def _stored_at(headers: Mapping[str, str]) -> float:
    try:
        return float(headers.get("x-timestamp", ""))
    except ValueError:
        return 0.0


def _metadata(what: str, headers: Mapping[str, str]) -> dict[str, str]:
    found = {
        # HTTP's headers are bytes, which the library has decoded as ISO-8859-1
        key.removeprefix(_METADATA): value.encode("latin-1", "replace").decode(errors="replace")
        for key, value in headers.items()
        if key.startswith(_METADATA)
    }
    if sum(len(key) + len(value) for key, value in found.items()) > _MOST_METADATA:
        raise StoreRejected(f"{what}: its metadata has more than {_MOST_METADATA} characters")
    return found
