"""The engine's own note in an extracted backup about its kind and its LSNs.

mariadb-backup and xtrabackup call the file `xtrabackup_checkpoints`, later releases of
mariadb-backup `mariadb_backup_checkpoints`: lines of `key = value`.
"""

from pathlib import Path
from typing import NamedTuple

from agent.errors import ExtractFailed

CHECKPOINT_FILES = ("xtrabackup_checkpoints", "mariadb_backup_checkpoints")
_PREPARED = ("log-applied", "full-prepared")


class Checkpoints(NamedTuple):
    """`backup_type` in the engine's words, and the LSNs that the backup spans."""

    backup_type: str
    from_lsn: int
    to_lsn: int
    last_lsn: int

    @property
    def prepared(self) -> bool:
        """Whether its redo log has been applied: an incremental or a server may follow."""
        return self.backup_type in _PREPARED


def read_checkpoints(folder: Path) -> Checkpoints:
    """Read the note in `folder`; ExtractFailed where there is none or it can't be read."""
    for name in CHECKPOINT_FILES:
        try:
            return _parse((folder / name).read_text(errors="replace"))
        except FileNotFoundError:
            continue
        except (KeyError, ValueError, OSError) as error:
            raise ExtractFailed(f"can't read {folder / name}: {error!r}") from error
    raise ExtractFailed(f"{folder} holds no {CHECKPOINT_FILES[0]}: it is not a whole backup")


def _parse(text: str) -> Checkpoints:
    pairs = (line.partition("=") for line in text.splitlines())
    values = {key.strip(): value.strip() for key, _, value in pairs}
    from_lsn, to_lsn, last_lsn = (int(values[key]) for key in ("from_lsn", "to_lsn", "last_lsn"))
    return Checkpoints(values["backup_type"], from_lsn, to_lsn, last_lsn)
