"""Backups as Trove's own image makes and stores them.

Source: backup/drivers/mariabackup.py and backup/storage/swift.py of Trove 14 to 26.
"""

import hashlib
import json
import re
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.conftest import need
from tests.dropin.image import Image, Made
from tests.stack.mariadb import MariaDB

# The old default of backup_aes_cbc_key.
KEY = "default_aes_cbc_key"
SEGMENT = 1 << 20
_LSN = re.compile(r"The latest check point \(for incremental\): '(\d+)'")


class Stream(NamedTuple):
    """What Trove stores of a backup, the LSN at which it ends, and the tables of that time."""

    stored: bytes
    lsn: int
    tables: dict[str, int]


def copied(mariadb: MariaDB, folder: Path, from_lsn: int | None = None) -> Stream:
    """Run the commands of Trove's driver. `folder` is a directory for temporary files."""
    need("mariadb-backup", "gzip")
    command = ["mariadb-backup", "--no-defaults", "--backup", "--stream=xbstream"]
    command += [f"--user={mariadb.admin}", f"--socket={mariadb.socket}"]
    if from_lsn is not None:
        command.append(f"--incremental-lsn={from_lsn}")
    with (folder / "mariadb-backup.log").open("w+") as log:
        copying = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=log)
        zipped = subprocess.run(["gzip"], stdin=copying.stdout, capture_output=True, check=True)
        assert copying.stdout
        copying.stdout.close()
        assert copying.wait(60) == 0
        log.seek(0)
        found = _LSN.search(log.read())
    assert found
    return Stream(zipped.stdout, int(found[1]), mariadb.checksums())


def encrypted(stream: Stream, form: Sequence[str]) -> Stream:
    """Encrypt a backup as releases before 14 did. `form` are the options of their version."""
    need("openssl")
    command = ["openssl", "enc", "-aes-256-cbc", "-salt", "-pass", f"pass:{KEY}", *form]
    done = subprocess.run(command, input=stream.stored, capture_output=True, check=True)
    return stream._replace(stored=done.stdout)


def headers_of(stream: Stream, parent: Made | None = None) -> dict[str, str]:
    """Return the headers of an object."""
    facts = {"Datastore": "mariadb", "Datastore-Version": "10.11", "Lsn": str(stream.lsn)}
    if parent is not None:
        facts |= {"Parent-Location": parent.location, "Parent-Checksum": parent.checksum}
    return {f"X-Object-Meta-{name}": value for name, value in facts.items()}


class TroveStorage:
    """What stores backups in the container of an image, as Trove does."""

    def __init__(self, image: Image) -> None:
        self._image = image
        image.request("PUT", "").close()

    def plain(self, stream: Stream, parent: Made | None = None, *, suffix: str = "") -> Made:
        """Store a backup that fits into one segment. `suffix` is `.enc` for an encrypted one."""
        backup_id, image = str(uuid.uuid4()), self._image
        segment, name = f"{backup_id}_00000000", f"{backup_id}.xbstream.gz{suffix}"
        image.put(f"/{segment}", stream.stored)
        source = {"X-Copy-From": f"{image.container}/{segment}"}
        image.put(f"/{name}", b"", headers_of(stream, parent) | source)
        image.request("DELETE", f"/{segment}").close()
        return self._made(backup_id, name, _md5(stream.stored))

    def joined(
        self,
        stream: Stream,
        parent: Made | None = None,
        *,
        headers: bool = True,
        suffix: str = "",
        end: Sequence[bytes] = (),
    ) -> Made:
        """Store a backup as a manifest with segments of 1 MiB.

        Releases 14 to 23 stored it without `headers`. `end` are further segments.
        """
        backup_id, image = str(uuid.uuid4()), self._image
        name, stored = f"{backup_id}.xbstream.gz{suffix}", stream.stored
        parts = [stored[at : at + SEGMENT] for at in range(0, len(stored), SEGMENT)]
        rows = []
        for number, part in enumerate([*parts, *end]):
            segment = f"{backup_id}_{number:08d}"
            image.put(f"/{segment}", part)
            path = f"{image.container}/{segment}"
            rows.append({"path": path, "etag": _md5(part), "size_bytes": len(part)})
        facts: Mapping[str, str] = headers_of(stream, parent) if headers else {}
        body = json.dumps(rows).encode()
        image.put(f"/{name}?multipart-manifest=put", body, dict(facts))
        checksum = _md5("".join(str(row["etag"]) for row in rows).encode())
        return self._made(backup_id, name, checksum)

    def _made(self, backup_id: str, name: str, checksum: str) -> Made:
        """Check the object as Trove does, and return what it notes."""
        with self._image.request("HEAD", f"/{name}") as answer:
            assert answer.headers["ETag"].strip('"') == checksum
        where = f"{self._image.swift.storage_url}/{self._image.container}/{name}"
        return Made(backup_id, checksum, where)


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
