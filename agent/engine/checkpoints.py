"""The engine's own note in an extracted backup about its kind and its LSNs."""

from pathlib import Path

from agent.codec.metadata import Checkpoints, parse_checkpoints
from agent.errors import ExtractFailed, StreamInvalid

# The second is what later releases of mariadb-backup write.
CHECKPOINT_FILES = ("xtrabackup_checkpoints", "mariadb_backup_checkpoints")
_MOST_BYTES = 64 << 10  # engines write some 130


def read_checkpoints(folder: Path) -> Checkpoints:
    """Read the note in `folder`; ExtractFailed where there is none or it can't be read.

    Its `backup_type` is `full-backuped` or `incremental` after extraction, and (by
    mariadb-backup) `log-applied` once the folder has been prepared.
    """
    for name in CHECKPOINT_FILES:
        try:
            with (folder / name).open("rb") as file:
                return parse_checkpoints(file.read(_MOST_BYTES))
        except FileNotFoundError:
            continue
        except (StreamInvalid, OSError) as error:
            raise ExtractFailed(f"can't read {folder / name}: {error}") from error
    raise ExtractFailed(f"{folder} holds no {CHECKPOINT_FILES[0]}: it is not a whole backup")
