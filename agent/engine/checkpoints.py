"""The engine's checkpoints file in an extracted backup, which states the type and the LSNs."""

from pathlib import Path

from agent.codec.metadata import Checkpoints, parse_checkpoints
from agent.errors import ExtractFailed, StreamInvalid

# Later releases of mariadb-backup write the second name.
CHECKPOINT_FILES = ("xtrabackup_checkpoints", "mariadb_backup_checkpoints")
_MOST_BYTES = 64 << 10  # engines write about 130 bytes


def read_checkpoints(folder: Path) -> Checkpoints:
    """Read the checkpoints file of an extracted backup in the directory `folder`.

    Its `backup_type` is `full-backuped` or `incremental` after extraction. mariadb-backup
    changes it to `log-applied` when the directory has been prepared.

    Raises:
        ExtractFailed: the directory holds no such file, or the file can't be read.
    """
    for name in CHECKPOINT_FILES:
        try:
            with (folder / name).open("rb") as file:
                return parse_checkpoints(file.read(_MOST_BYTES))
        except FileNotFoundError:
            continue
        except (StreamInvalid, OSError) as error:
            raise ExtractFailed(f"can't read {folder / name}: {error}") from error
    raise ExtractFailed(f"{folder} holds no {CHECKPOINT_FILES[0]}: the backup is incomplete")
