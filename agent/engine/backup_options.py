"""The filter for `backup-my.cnf`, the option file in a backup.

The engine reads this file at prepare, and no other option file. The file comes from the maker of
the backup, who may be hostile. So the agent rewrites it before the prepare. The result holds only
known options, with values that can only be numbers, words or plain file names. An option that names
a directory gets the directory of the backup. A plugin may be named only if it manages keys or
compresses. The plugin's file always comes from the installation.

The engines write the file in write_backup_config_file(). It is in
extra/mariabackup/backup_mysql.cc of MariaDB Server, together with encryption_plugin.cc, and in
storage/innobase/xtrabackup/src/backup_mysql.cc of Percona XtraBackup.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from agent.codec.xbstream import MAX_OPTIONS, OPTION_FILE
from agent.errors import ContentRefused

_PLUGIN_LOAD: Final = "plugin_load"

_LINE: Final = re.compile(r"([a-z0-9_-]{1,64})[ \t]*(?:=[ \t]*(.*?))?")
_NUMBER: Final = re.compile(r"\d{0,20}[KMGT]?", re.IGNORECASE)
_WORD: Final = re.compile(r"[A-Za-z0-9_]{0,64}")
_UUID: Final = re.compile(r"[0-9A-Fa-f-]{0,36}")
_NAME: Final = re.compile(r"(\./)?[A-Za-z0-9_#@$-][A-Za-z0-9_#@$.-]{0,199}")
_DATA_FILE: Final = (
    r"(\./)?[A-Za-z0-9_#@$-][A-Za-z0-9_#@$.-]{0,199}:\d{1,12}[KMGT]?"
    r"(:autoextend)?(:max:\d{1,12}[KMGT]?)?"
)
_DATA_FILES: Final = re.compile(rf"{_DATA_FILE}(;{_DATA_FILE}){{0,99}}", re.IGNORECASE)
# One entry of a list is matched at a time, and no entry can match in two ways. So the maker of a
# hostile backup can't block the whole agent with a slow regular expression.
_PLUGIN: Final = r"(?:[a-z0-9_]{0,50}key_management|provider_[a-z0-9]{1,50})"
_PLUGIN_ENTRY: Final = re.compile(rf"({_PLUGIN})(?:=(?:lib)?{_PLUGIN}(?:\.so)?)?")
_MOST_PLUGINS: Final = 16
# A path, a URL or a secret of a plugin. It may hold anything but control characters, such as a
# newline.
_PRINTABLE: Final = re.compile(r"[^\x00-\x1f\x7f]{0,4096}")

_VALUES: Final = {
    "innodb_checksum_algorithm": _WORD,
    "innodb_log_checksum_algorithm": _WORD,
    "innodb_log_checksums": _WORD,
    "innodb_data_file_path": _DATA_FILES,
    "innodb_log_file_size": _NUMBER,
    "innodb_log_files_in_group": _NUMBER,
    "innodb_log_block_size": _NUMBER,
    "innodb_page_size": _NUMBER,
    "innodb_fast_checksum": _WORD,
    "innodb_undo_tablespaces": _NUMBER,
    "innodb_compression_level": _NUMBER,
    "innodb_buffer_pool_filename": _NAME,
    "innodb_doublewrite_file": _NAME,
    "innodb_encrypt_log": _WORD,
    "innodb_encrypt_tables": _WORD,
    "innodb_redo_log_encrypt": _WORD,
    "innodb_undo_log_encrypt": _WORD,
    "server_id": _NUMBER,
    "server_uuid": _UUID,
    "redo_log_version": _NUMBER,
    "master_key_id": _NUMBER,
}
# The files of these directories are in the backup itself.
_DIRECTORIES: Final = frozenset(
    {"innodb_undo_directory", "innodb_data_home_dir", "innodb_log_group_home_dir"}
)
# The agent passes the installation's directory by `--plugin-dir` instead.
_DROPPED: Final = frozenset({"plugin_dir"})


def disarm(folder: Path, check: Callable[[], None]) -> None:
    """Remove from an extracted backup the paths that lead an engine out of `folder`.

    Link files to tables outside (`.isl`) are removed, because the tables themselves are in the
    backup. The option file is rewritten. `check` is called for each directory, and can end the work
    by an exception.

    Raises:
        ContentRefused: an entry is neither a file nor a directory, or the option file is refused.
    """
    folders = [folder]
    while folders:
        check()
        folders += _disarm_directory(folders.pop())
    _rewrite(folder / OPTION_FILE)


def _disarm_directory(folder: Path) -> list[Path]:
    """Remove the link files of one directory, and return the directories in it.

    Raises:
        ContentRefused: an entry is neither a file nor a directory.
    """
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                found.append(Path(entry))
            elif not entry.is_file(follow_symlinks=False):
                raise ContentRefused(
                    f"the backup holds {entry.name!r}, which is neither a file nor a directory"
                )
            elif os.path.splitext(entry.name)[1] == ".isl":
                os.unlink(entry)
    return found


def _rewrite(path: Path) -> None:
    """Replace the option file `path` by its safe form, with the same mode.

    Raises:
        ContentRefused: the file holds a line that is not allowed.
    """
    try:
        content = _read(path)
    except FileNotFoundError:
        # Incremental backups of some versions have no option file. If the engine needs one, it
        # reports that.
        return
    draft = path.with_suffix(".partial")
    draft.unlink(missing_ok=True)
    with draft.open("x", encoding="utf-8") as file:
        file.write(safe_options(content))
        os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
    draft.replace(path)


def _read(path: Path) -> bytes:
    """Return the bytes of the option file `path`.

    Raises:
        ContentRefused: it is a directory, or is longer than MAX_OPTIONS bytes.
    """
    if path.is_dir() or path.stat().st_size > MAX_OPTIONS:
        raise ContentRefused(
            f"{path.name} of the backup is no option file: it is a directory, or is too large"
        )
    return path.read_bytes()


def safe_options(content: bytes) -> str:
    """Return an option file with the harmless options of `content`.

    Raises:
        ContentRefused: a line is not allowed. The message names it.
    """
    lines = ["# Checked and written anew by backup-agent.", "[mysqld]"]
    options = list(_options(content))
    plugins = _plugins(next((value for name, value in options if name == _PLUGIN_LOAD), ""))
    for name, value in options:
        if name in _DROPPED:
            continue
        if name in _DIRECTORIES:
            lines.append(f"{name}=./")
            continue
        if not _allowed(name, value, plugins):
            # The value of a plugin's own option may be a secret, so it isn't shown.
            shown = f" to {value[:200]!r}" if name in _VALUES or name == _PLUGIN_LOAD else ""
            raise ContentRefused(
                f"the backup's own {OPTION_FILE} sets {name}{shown}, which is not allowed"
            )
        lines.append(f"{name}={value}")
    return "\n".join(lines) + "\n"


def server_options(folder: Path) -> str:
    """Return an option file for a server that runs on the restored datadir `folder`.

    The server ignores options that only the engine knows, with a warning.

    Raises:
        ContentRefused: the backup's option file holds a line that is not allowed.
    """
    try:
        lines = safe_options(_read(folder / OPTION_FILE)).splitlines()
    except FileNotFoundError:
        return "[mysqld]\n"
    return "".join(
        f"{line if line[0] in '#[' or line.startswith('plugin_load=') else f'loose_{line}'}\n"
        for line in lines
    )


def _options(content: bytes) -> Iterator[tuple[str, str]]:
    """Yield the names and values of the only allowed group, `[mysqld]`.

    Raises:
        ContentRefused: a line is neither an option, a comment, nor the head of that group.
    """
    try:
        # The engines split lines only at "\n". Other characters at which Python's splitlines()
        # splits are part of a value.
        lines = content.decode().split("\n")
    except UnicodeDecodeError:
        raise ContentRefused(
            f"the backup's own {OPTION_FILE} is no text: it is not UTF-8"
        ) from None
    for line in lines:
        line = line.strip(" \t\r")
        if not line or line[0] in "#;" or line == "[mysqld]":
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise ContentRefused(
                f"the backup's own {OPTION_FILE} has the line {line[:80]!r}, which is no option"
            )
        yield found[1].replace("-", "_"), found[2] or ""


def _allowed(name: str, value: str, plugins: tuple[str, ...]) -> bool:
    """Return True if the option `name` is allowed and may have this value.

    It is an option of an engine, or of one of the `plugins`.
    """
    if name == _PLUGIN_LOAD:
        return bool(_plugins(value))
    pattern = _VALUES.get(name)
    if pattern is None and name.startswith(tuple(f"{plugin}_" for plugin in plugins)):
        pattern = _PRINTABLE
    return pattern is not None and pattern.fullmatch(value) is not None


def _plugins(value: str) -> tuple[str, ...]:
    """Return the plugins in the value of `plugin_load`, which has the form `name=library;...`.

    Return none of them if one isn't allowed.
    """
    entries = value.removeprefix(";").split(";", _MOST_PLUGINS)
    found = [_PLUGIN_ENTRY.fullmatch(entry) for entry in entries[:_MOST_PLUGINS]]
    names = tuple(one[1] for one in found if one)
    return names if len(names) == len(entries) else ()
