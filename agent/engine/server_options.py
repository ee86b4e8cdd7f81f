"""Option files for a server that is started on a restored datadir.

The engine notes some of the server's options in `backup-my.cnf`. That file is for the engine's
own prepare: XtraBackup writes names that no MySQL server knows, and both write paths of the machine
that was copied. It also came out of a backup, whose maker may have named a plugin folder.
"""

import re
from pathlib import Path
from typing import Final

from agent.errors import EngineFailed

NOTED: Final = "backup-my.cnf"
# How InnoDB's files are laid out, and how MariaDB reads encrypted ones. Not innodb_undo_directory:
# it is the copied server's own. Not plugin_dir: plugins come from the installation.
_KNOWN: Final = frozenset(
    {
        "innodb_checksum_algorithm",
        "innodb_data_file_path",
        "innodb_page_size",
        "innodb_undo_tablespaces",
        "plugin_load",
        "plugin_load_add",
    }
)
_KEY_PLUGINS: Final = ("file_key_management", "hashicorp_key_management", "aws_key_management")
_LINE: Final = re.compile(r"(?:loose[-_])?([a-z_-]+)\s*=\s*(\S.*)")


def noted_options(datadir: Path) -> list[str]:
    """Return what `backup-my.cnf` says that any server may be started with, as `name=value`.

    Raises:
        EngineFailed: the file can't be read; a folder without one has no such options.
    """
    try:
        text = (datadir / NOTED).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise EngineFailed(f"can't read {datadir / NOTED}: {error.strerror}") from error
    found = (_LINE.fullmatch(line.strip()) for line in text.splitlines())
    pairs = [(one[1].replace("-", "_"), one[2]) for one in found if one]
    return [f"{name}={value}" for name, value in pairs if _known(name)]


def _known(name: str) -> bool:
    return name in _KNOWN or name.startswith(_KEY_PLUGINS)
