"""Reads of a part of an object, which may be a manifest with a missing segment."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from agent.errors import StoreError, StoreMismatch, StoreNotFound
from agent.store.swift.manifests import Piece, read_pieces
from agent.store.swift.objects import (
    READ_MEANINGS,
    ObjectFacts,
    describe,
    etag_of,
    get_object,
    is_manifest,
    read_into,
)
from agent.store.swift.session import Link, SwiftSession

log = logging.getLogger(__name__)

# 416 is the answer to a range that begins behind the object's end.
_MEANINGS: Final[Mapping[int, type[StoreError]]] = {**READ_MEANINGS, 416: StoreMismatch}


def get_range(
    session: SwiftSession, container: str, name: str, offset: int, buffer: memoryview, etag: str
) -> None:
    """Fill `buffer`, which is not empty, with the bytes from `offset` of the object `etag`.

    Raises:
        StoreNotFound: there is no such object.
        StoreMismatch: the object has another ETag or ends before the range does, or an object that
            the manifest joins is missing.
    """
    wanted = range(offset, offset + buffer.nbytes)
    what = f"get {container}/{name} from byte {offset}"
    joined = False

    def action(link: Link) -> None:
        nonlocal joined
        asked = {"Range": f"bytes={wanted[0]}-{wanted[-1]}"}
        headers, body = get_object(link, container, name, asked)
        joined = is_manifest(headers)
        _check_answer(what, headers, wanted, etag)
        if read_into(body, buffer) != buffer.nbytes or body.read(1):
            raise StoreMismatch(
                f"{what}: the store did not send {buffer.nbytes} bytes, as announced"
            )

    try:
        session.call(what, action, _MEANINGS, size=buffer.nbytes)
    except StoreError as error:
        # The body of a manifest breaks off at a missing segment. If that is the first one of the
        # range, the answer is 409.
        suspected = error.retryable and (joined or isinstance(error, StoreMismatch))
        lost = _lost_piece(session, container, name, wanted, etag) if suspected else None
        if lost is None:
            raise
        raise StoreMismatch(
            f"{what}: the segment {lost.container}/{lost.name} is missing or was replaced"
        ) from error


def _check_answer(what: str, headers: Mapping[str, str], wanted: range, etag: str) -> None:
    """Raise StoreMismatch unless an answer is about the wanted range of the object `etag`."""
    found, sent = etag_of(headers), headers.get("content-range", "")
    if found != etag:
        raise StoreMismatch(
            f"{what}: the object has the ETag {found[:40]}, not {etag}: it was replaced"
        )
    expected = f"bytes {wanted[0]}-{wanted[-1]}/"
    if not sent.startswith(expected) or headers.get("content-length") not in (
        None,
        str(len(wanted)),
    ):
        raise StoreMismatch(
            f"{what}: the store sent {sent[:60] or 'no range'!r} instead of {expected}*"
        )


def _lost_piece(
    session: SwiftSession, container: str, name: str, wanted: range, etag: str
) -> Piece | None:
    """Return a segment with bytes of `wanted` that is missing or has another ETag.

    Return None if there is none, or if the store doesn't tell.
    """
    try:
        facts = _facts(session, container, name)
        known = facts.is_manifest and facts.etag == etag
        pieces = read_pieces(session, container, name, facts) if known else None
        for piece in _overlapping(pieces or (), wanted):
            if not _is_there(session, piece):
                return piece
    except StoreError as error:
        log.debug("%s", error)
    return None


def _overlapping(pieces: Sequence[Piece], wanted: range) -> Iterator[Piece]:
    end = 0
    for piece in pieces:
        begin, end = end, end + piece.size
        if begin < wanted.stop and wanted.start < end:
            yield piece


def _is_there(session: SwiftSession, piece: Piece) -> bool:
    try:
        return _facts(session, piece.container, piece.name).etag == piece.md5
    except StoreNotFound:
        return False


def _facts(session: SwiftSession, container: str, name: str) -> ObjectFacts:
    what = f"look up {container}/{name}"
    return session.call(what, partial(describe, what, container, name))
