"""What a file in a store's folder is to hold: its ETag, kept with it when it is written.

A listing that read every byte for its MD5 would take as long as a restore. So the MD5, which
is known when a file is written, is kept in its extended attribute `user.etag`: one step with
the file itself, for it is set before the file gets its name, and a change of the bytes leaves
it as it was, which is how damage shows. Where the filesystem has no such attributes, a file
`%md5.NAME` beside the segment holds the same; objects (records, manifests) do without there,
being small and written more than once. Where nothing was kept, or a copy lost it, the ETag is
computed from the bytes as they are.
"""

import errno
import hashlib
import json
import os
import re
from contextlib import suppress
from typing import Final, NamedTuple

from agent.store.directory.files import give, read_into, reading, write_all
from agent.store.directory.paths import digest_name
from agent.store.protocol import ManifestEntry, manifest_etag

_ATTRIBUTE: Final = "user.etag"
_KEPT: Final = re.compile(rb"([0-9a-f]{32})(?: ([0-9]{1,19}))?\n?")
_LONGEST_KEPT: Final = 64
_CHUNK: Final = 1 << 20
_MANIFEST_BYTES: Final = 4 << 20  # of 1000 rows with the longest names
_MANIFEST_BEGINS: Final = b'[{"path": "/'


class Etag(NamedTuple):
    """An object's ETag, and of a manifest the number of bytes that it joins."""

    md5: str
    joined: int | None = None

    def text(self) -> bytes:
        """As it is kept: the MD5 in hex, and of a manifest its size behind it."""
        return (
            f"{self.md5} {self.joined}".encode() if self.joined is not None else self.md5.encode()
        )


def keep(descriptor: int, etag: Etag) -> bool:
    """Keep the ETag with an open file; whether the filesystem can do that."""
    try:
        os.setxattr(descriptor, _ATTRIBUTE, etag.text())
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return False
        raise
    return True


def keep_beside(folder: int, file: str, etag: Etag) -> None:
    """Keep the ETag in a file of its own, whose name lasts with the folder's next fsync."""
    name = digest_name(file)
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o600, dir_fd=folder)
    try:
        give(folder, descriptor)
        write_all(descriptor, memoryview(etag.text() + b"\n"))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def forget_beside(folder: int, file: str) -> None:
    """Remove what `keep_beside` has made."""
    with suppress(FileNotFoundError):
        os.unlink(digest_name(file), dir_fd=folder)


def kept(folder: int, file: str, descriptor: int) -> Etag | None:
    """The ETag kept for an open file; None where there is none that can be one."""
    text = b""
    try:
        text = os.getxattr(descriptor, _ATTRIBUTE)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.ENOTSUP):
            raise
    if not text:
        with suppress(FileNotFoundError), reading(folder, digest_name(file)) as (beside, _):
            text = os.read(beside, _LONGEST_KEPT)
    match = _KEPT.fullmatch(text)
    return Etag(match[1].decode(), int(match[2]) if match[2] else None) if match else None


def etag_of(folder: int, file: str, descriptor: int, size: int) -> Etag:
    """The ETag of an open file: the one that was kept, or the one that its bytes have."""
    there = kept(folder, file, descriptor)
    if there is not None:
        return there
    if size <= _MANIFEST_BYTES:
        content = memoryview(bytearray(size))
        return _computed(content[: read_into(descriptor, content)])
    digest = hashlib.md5(usedforsecurity=False)
    at = 0
    while piece := os.pread(descriptor, _CHUNK, at):
        digest.update(piece)
        at += len(piece)
    return Etag(digest.hexdigest())


def holds(content: memoryview, etag: Etag) -> bool:
    """Whether these are the bytes of which `etag` was kept."""
    if etag.joined is None:
        return hashlib.md5(content, usedforsecurity=False).hexdigest() == etag.md5
    return _manifest(content) == etag


def _computed(content: memoryview) -> Etag:
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return _manifest(content) or Etag(md5)


def _manifest(content: memoryview) -> Etag | None:
    """The ETag of a manifest; None for all other bytes."""
    if bytes(content[: len(_MANIFEST_BEGINS)]) != _MANIFEST_BEGINS:
        return None
    try:
        rows = json.loads(bytes(content))
        entries = [ManifestEntry(row["path"], row["size_bytes"], row["etag"]) for row in rows]
        return Etag(manifest_etag(entries), sum(entry.size for entry in entries))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
