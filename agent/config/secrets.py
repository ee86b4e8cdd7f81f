"""Read the files that hold secrets and keys, and refuse them if other users can access them."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from agent.config.settings import DEFAULT_PATH, KeysSection
from agent.errors import ConfigInvalid, KeyUnusable
from agent.keys.keyring import Keyring
from agent.keys.master import MasterKey, parse_key_text
from agent.keys.recovery import RecoveryKey, parse_recovery_key

_SECRET_LIMIT = 64 << 10  # bytes
_DENIED_HINT = "run the command as the owner of the file, usually root"


def read_secret(path: Path, what: str) -> str:
    """Read a secret from its file, without the last newline.

    `what` names the secret in errors.

    Raises:
        ConfigInvalid: the file is missing, can't be read, is not UTF-8 text, is empty, is longer
            than 64 KiB, or is accessible to other users.
    """
    raw = _read(path, what, forbidden=0o077)
    try:
        text = raw.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ConfigInvalid(
            f"{what}: {_named(path)} is not UTF-8 text", hint=_rewrite(path)
        ) from error
    if not text.strip():
        raise ConfigInvalid(f"{what}: {_named(path)} is empty", hint=_rewrite(path))
    return text


def _read(path: Path, what: str, *, forbidden: int) -> bytes:
    """Read a file of at most 64 KiB, once. Refuse it if its mode has one of the `forbidden` bits.

    The mode of a credential of systemd is not checked.

    Raises:
        ConfigInvalid: the file can't be read, is longer, or has a forbidden mode.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            raw = file.read(_SECRET_LIMIT + 1)
    except OSError as error:
        raise ConfigInvalid(
            f"{what}: {_named(path)} can't be read: {error.strerror}",
            hint=_denied(error) or _rewrite(path),
        ) from error
    if mode & forbidden and not _is_credential(path):
        done = "read" if forbidden & 0o044 else "written"
        raise ConfigInvalid(
            f"{what}: {path} can be {done} by others (mode {mode:04o})",
            hint=f"chmod {0o777 & ~forbidden & 0o666:04o} {path}",
        )
    if len(raw) > _SECRET_LIMIT:
        raise ConfigInvalid(
            f"{what}: {_named(path)} has more than {_SECRET_LIMIT} bytes", hint=_rewrite(path)
        )
    return raw


def _named(path: Path) -> str:
    """Return the path as text, and for a credential also the file that systemd makes it from."""
    origin = _origin(path)
    return f"{path} (made from {origin})" if origin else str(path)


def _rewrite(path: Path) -> str:
    """Return a hint how to write the secret's file."""
    origin = _origin(path)
    if origin is None:
        return (
            f"make {path} with only the secret in it, mode 0600, owned by the agent's OS user, or "
            "name another file"
        )
    return (
        f"write the secret into {origin}, owned by root, mode 0600, and restart the unit, which "
        "passes it to the agent (LoadCredential=)"
    )


def _origin(path: Path) -> Path | None:
    """Return the file that systemd makes the credential `<folder>_<file>` from.

    This is right if the unit is the one that we ship. None if `path` is not such a credential.
    """
    folder, _, name = path.name.partition("_")
    return DEFAULT_PATH.parent / folder / name if name and _is_credential(path) else None


def _denied(error: OSError) -> str | None:
    """Return the hint for a missing right. None means that the error has a hint of its own."""
    return _DENIED_HINT if isinstance(error, PermissionError) else None


def _credentials() -> Path | None:
    """Return the directory of this service's credentials, None without one (systemd.exec(5))."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return Path(folder) if folder else None


def handed_over(folder: Path) -> bool:
    """Return True if systemd passes the files of [keys] folder as credentials, one by one.

    `load_keyring` describes this.
    """
    return folder.parent == _credentials() and not folder.exists()


def _is_credential(path: Path) -> bool:
    """Return True if systemd passed this file as a credential.

    Only this service can enter the directory of its credentials. systemd grants the access by an
    ACL, which shows as mode 0440 (systemd.exec(5), LoadCredential=).
    """
    return path.parent == _credentials()


def load_keyring(section: KeysSection) -> Keyring:
    """Load all `<id>.key` files of [keys] folder, and the `<id>.pub` files of [keys] recovery.

    Under systemd `LoadCredential=keys:/etc/backup-agent/keys` passes the files of a directory as
    `$CREDENTIALS_DIRECTORY/keys_<file>`. For that, set `[keys] folder` to `keys` in that directory:
    `Environment=BACKUP_AGENT_KEYS__FOLDER=%d/keys`.

    Raises:
        KeyUnusable: the directory can't be read, or a file is wrong, missing or accessible to other
            users. A `.pub` file may be readable for all users.
    """
    files = _key_files(section.folder)
    keys: dict[str, MasterKey] = {}
    for name in sorted(files):
        if name.endswith(".key") and (key_id := name.removesuffix(".key")):
            keys[key_id] = read_key(key_id, files[name])
    if section.active not in keys:
        there = ", ".join(sorted(keys)) or "none"
        raise KeyUnusable(
            f"[keys] active: the key {section.active!r} is not in {section.folder}, "
            f"which has: {there}",
            hint=f"put it into {_key_folder(section.folder)} as {section.active}.key, mode 0600, "
            "or correct [keys] active",
        )
    recovery = [_recovery_key(key_id, files, section.folder) for key_id in section.recovery]
    for twice in sorted(keys.keys() & set(section.recovery)):
        raise KeyUnusable(
            f"{twice!r} names both a master key and a recovery key",
            hint=f"rename {twice}.pub, and correct [keys] recovery",
        )
    return Keyring(keys, section.active, recovery)


def read_key(key_id: str, path: Path) -> MasterKey:
    """Read a master key from its file.

    Raises:
        KeyUnusable: the file is missing, wrong, or accessible to other users.
    """
    try:
        return parse_key_text(key_id, read_secret(path, "master key"))
    except KeyUnusable:
        raise
    except ConfigInvalid as error:
        raise KeyUnusable(str(error), hint=error.hint) from error


def _key_folder(folder: Path) -> Path:
    """Return the directory of the keys, or for credentials the one that systemd makes them from."""
    return DEFAULT_PATH.parent / folder.name if handed_over(folder) else folder


def _key_files(folder: Path) -> dict[str, Path]:
    """Return the files of [keys] folder by name.

    Raises:
        KeyUnusable: the directory can't be read.
    """
    prefix = f"{folder.name}_"
    try:
        # not glob(), which finds nothing and raises nothing in a directory that it may not read
        if not handed_over(folder):
            return {path.name: path for path in folder.iterdir()}
        return {
            path.name.removeprefix(prefix): path
            for path in folder.parent.iterdir()
            if path.name.startswith(prefix)
        }
    except OSError as error:
        raise KeyUnusable(
            f"[keys] folder: {folder} can't be read: {error.strerror}",
            hint=_denied(error)
            or "make the directory and a key with backup-agent keygen ID, or correct [keys] folder",
        ) from error


def _recovery_key(key_id: str, files: Mapping[str, Path], folder: Path) -> RecoveryKey:
    path = files.get(f"{key_id}.pub")
    if path is None:
        raise KeyUnusable(
            f"the recovery key {key_id!r} is not in {folder}",
            hint=f"put its public half into {_key_folder(folder)} as {key_id}.pub, or correct "
            "[keys] recovery",
        )
    try:
        return parse_recovery_key(key_id, _read(path, "recovery key", forbidden=0o022))
    except KeyUnusable:
        raise
    except ConfigInvalid as error:
        raise KeyUnusable(str(error), hint=error.hint) from error
