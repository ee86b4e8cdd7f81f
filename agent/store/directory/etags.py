"""The ETags of the files in a store's directory, which are kept with the files.

A listing that read every byte for its MD5 would take as long as a restore. So the MD5, which is
known when the file is written, is kept in the file's extended attribute `user.etag`. The attribute
is set before the file gets its name, so no file has its name without its ETag. A later change of
the bytes leaves the attribute as it is, and so a reader notices the damage.

Some filesystems have no extended attributes. On these, a file `%md5.NAME` beside the segment holds
the same text. Records have no such file, because they are small and are written more than once. If
nothing was kept, or a copy lost it, the ETag is computed from the bytes of the file.
"""

import errno
import hashlib
import os
import re
from contextlib import suppress
from typing import Final

from agent.store.directory.files import give, reading, write_all
from agent.store.directory.paths import digest_name

_ATTRIBUTE: Final = "user.etag"
# In older stores, the file of an object that joins segments has their total size behind its ETag.
_KEPT: Final = re.compile(rb"([0-9a-f]{32})(?: [0-9]{1,19})?\n?")
_LONGEST_KEPT: Final = 64
_CHUNK: Final = 1 << 20


def keep(descriptor: int, etag: str) -> bool:
    """Keep the ETag in an extended attribute of an open file, and return True on success.

    Return False if the filesystem has no extended attributes.
    """
    try:
        os.setxattr(descriptor, _ATTRIBUTE, etag.encode())
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return False
        raise
    return True


def write_beside(folder: int, file: str, etag: str) -> None:
    """Keep the ETag in a separate file beside the file.

    The name of that file is on the disk after the next fsync of the directory.
    """
    name = digest_name(file)
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o600, dir_fd=folder)
    try:
        give(folder, descriptor)
        write_all(descriptor, memoryview(etag.encode() + b"\n"))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_beside(folder: int, file: str) -> None:
    """Delete the file that `write_beside` made, if there is one."""
    with suppress(FileNotFoundError):
        os.unlink(digest_name(file), dir_fd=folder)


def kept(folder: int, file: str, descriptor: int) -> str | None:
    """Return the ETag that was kept for an open file, or None if there is no valid one."""
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
    return match[1].decode() if match else None


def etag_of(folder: int, file: str, descriptor: int) -> str:
    """Return the kept ETag of an open file, or the ETag of its bytes if none was kept."""
    there = kept(folder, file, descriptor)
    if there is not None:
        return there
    digest = hashlib.md5(usedforsecurity=False)
    at = 0
    while piece := os.pread(descriptor, _CHUNK, at):
        digest.update(piece)
        at += len(piece)
    return digest.hexdigest()
