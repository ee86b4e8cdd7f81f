"""The files of a datadir except InnoDB's, by name and digest."""

import hashlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from agent.database.datadir import in_words

Files = Mapping[str, str]

# These files have the same bytes in the copy.
_EXACT: Final = (".frm", ".MYD", ".CSV", ".MRG", ".TRG", ".TRN", ".par", ".opt")
# These record whether they are open, so their bytes are equal only if they were closed.
_CLOSED: Final = (".MYI", ".MAI", ".MAD", ".ARZ", ".CSM")
_NAMED: Final = (".ibd", ".isl")
# Three positions of Aria's log, of which a checkpoint and a recovery write their own: 7 bytes each
# after a header of 24, the number of openings and of changes (storage/maria/ma_open.c).
_ARIA_POSITIONS: Final = slice(28, 49)
# The server writes in these directories by itself.
_RESTLESS: Final = ("mysql/", "performance_schema/", "sys/")


def files(datadir: Path, *, closed: bool, but: Collection[str] = ()) -> dict[str, str]:
    """Return the tables' files by their path, with a digest if the bytes must be equal.

    `but` are paths of files and directories that don't belong to the server.
    """
    found = {}
    for path in sorted(datadir.glob("*/*")):
        name = str(path.relative_to(datadir))
        if name in but or path.parent.name in but or _is_discovered(path):
            continue
        exact = (*_EXACT, *_CLOSED) if closed else _EXACT
        if path.suffix in (*_EXACT, *_CLOSED, *_NAMED) and path.exists() and not path.is_dir():
            whole = path.suffix in exact and not name.startswith(_RESTLESS)
            # a file that an .isl names is restored into its schema's directory
            found[name.replace(".isl", ".ibd")] = (
                hashlib.sha256(_content(path)).hexdigest()[:12] if whole else "there"
            )
    return found


def leftovers(datadir: Path) -> set[str]:
    """Return the schemas that hold nothing but files that aren't the server's.

    `DROP DATABASE` fails and leaves such a one. The engines copy none of those files, and so no
    schema, though they copy an empty one.
    """
    kept = (*_EXACT, *_CLOSED, *_NAMED)
    return {
        in_words(folder.name).removeprefix("the schema ")
        for folder in datadir.iterdir()
        if folder.is_dir()
        and (names := os.listdir(folder))
        and not any(name.endswith(kept) for name in names)
    }


def _content(path: Path) -> bytes | bytearray:
    raw = bytearray(path.read_bytes())
    if path.suffix == ".MAI":
        raw[_ARIA_POSITIONS] = bytes(21)
    return raw


def _is_discovered(path: Path) -> bool:
    """Return True if the server makes this file only when it needs it.

    An ARCHIVE table keeps its definition in its data. Its `.frm` is made when the table is read.
    """
    return path.suffix == ".frm" and path.with_suffix(".ARZ").exists()
