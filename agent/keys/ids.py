"""The ids of keys, which are names of files, are written in records, and are compared by people."""

import re
from typing import Final

from agent.errors import KeyUnusable

_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_NAME: Final = 40  # most characters of a machine's name in the id of a key


def check_key_id(key_id: str) -> None:
    """Raise KeyUnusable if `key_id` is not a valid id of a key.

    Ids are names of files and are written in records.
    """
    if not _ID.fullmatch(key_id):
        raise KeyUnusable(
            f"{key_id[:80]!r} is not a valid id of a key",
            hint="use 1 to 64 letters, digits, dots, dashes and underscores",
        )


def unique_key_id(name: str, day: str, digest: str) -> str:
    """Return an id that no other key has.

    It consists of a name, the day, and the first six hex digits of `digest`, the key's SHA-256.
    Programs and people compare the ids of keys across all machines of a tenant.
    """
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name.partition(".")[0]).strip("-")[:_NAME]
    return f"{plain or 'key'}-{day}-{digest[:6]}"
