"""Where the parts of the golden backup are, and copies of them that tests may change."""

import json
import shutil
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.golden.make import CONTAINER, EXPECTED, KEY_ID, KEYS, STORE

MASTER: Final = KEYS / f"{KEY_ID}.key"
RECOVERY: Final = KEYS / "recovery.pem"


class Expected(NamedTuple):
    """The ids of the two backups, and CHECKSUM TABLE of each table after each."""

    full: str
    incremental: str
    checksums: dict[str, dict[str, int]]


def expected() -> Expected:
    return Expected(**json.loads(EXPECTED.read_text()))


def record_file(backup_id: str, store: Path = STORE) -> Path:
    return store / CONTAINER / f"{backup_id}.json"


def record(backup_id: str, store: Path = STORE) -> dict[str, Any]:
    """Line 1 of a record, unchecked."""
    raw = record_file(backup_id, store).read_bytes()
    found: dict[str, Any] = json.loads(raw.splitlines()[0])
    return found


def segments(backup_id: str, store: Path = STORE) -> Path:
    """The folder with the segments of a backup."""
    attempt: str = record(backup_id, store)["attempt"]
    return store / f"{CONTAINER}_segments" / backup_id / attempt


def joined(backup_id: str) -> bytes:
    """All segments, as the object that joins them gives them."""
    files = sorted(file for file in segments(backup_id).iterdir() if file.name.isdigit())
    return b"".join(file.read_bytes() for file in files)


def private_keys(folder: Path) -> Path:
    """A copy of the keys that only its owner may read, which Git does not keep so."""
    shutil.copytree(KEYS, folder)
    folder.chmod(0o700)
    for file in folder.iterdir():
        file.chmod(0o600)
    return folder
