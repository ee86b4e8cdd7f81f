"""Ids of keys: they are file names, they stand in records, and people compare them."""

import re
from typing import Final

from agent.errors import KeyUnusable

_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_NAME: Final = 40  # characters of a machine's name in the id of a key


def check_key_id(key_id: str) -> None:
    """KeyUnusable where `key_id` can't name a key: ids are file names, and stand in records."""
    if not _ID.fullmatch(key_id):
        raise KeyUnusable(
            f"{key_id[:80]!r} can't be the id of a key",
            hint="use 1 to 64 letters, digits, dots, dashes and underscores",
        )


def unique_key_id(name: str, day: str, digest: str) -> str:
    """Return an id that no other key has: a name, the day, six digits of the key's SHA-256.

    Ids are compared across all machines of a tenant, by people as well.
    """
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name.partition(".")[0]).strip("-")[:_NAME]
    return f"{plain or 'key'}-{day}-{digest[:6]}"
