"""The places of the parts of the golden backup, and copies of them that tests may change."""

import json
import shutil
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.golden.make import CONTAINER, EXPECTED, KEY_ID, KEYS, STORE

MASTER: Final = KEYS / f"{KEY_ID}.key"
RECOVERY: Final = KEYS / "recovery.pem"


class Expected(NamedTuple):
    """The ids of the two backups, and the CHECKSUM TABLE of each table after each backup."""

    full: str
    incremental: str
    checksums: dict[str, dict[str, int]]


def expected() -> Expected:
    return Expected(**json.loads(EXPECTED.read_text()))


def record_file(backup_id: str, store: Path = STORE) -> Path:
    return store / CONTAINER / f"{backup_id}.json"


def record(backup_id: str, store: Path = STORE) -> dict[str, Any]:
    """Return line 1 of a record without a check of its signature."""
    raw = record_file(backup_id, store).read_bytes()
    found: dict[str, Any] = json.loads(raw.splitlines()[0])
    return found


def segments(backup_id: str, store: Path = STORE) -> Path:
    """Return the directory with the segments of a backup."""
    attempt: str = record(backup_id, store)["attempt"]
    return store / f"{CONTAINER}_segments" / backup_id / attempt


def joined(backup_id: str) -> bytes:
    """Return the bytes of all segments, in the order of the object that joins them."""
    files = sorted(file for file in segments(backup_id).iterdir() if file.name.isdigit())
    return b"".join(file.read_bytes() for file in files)


def private_keys(folder: Path) -> Path:
    """Copy the keys into `folder` so that only their owner may read them. Return `folder`.

    Git does not keep such a mode.
    """
    shutil.copytree(KEYS, folder)
    folder.chmod(0o700)
    for file in folder.iterdir():
        file.chmod(0o600)
    return folder
