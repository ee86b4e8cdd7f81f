"""The files that hold secrets and keys: read once, and refused where others can reach them."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from agent.config.settings import DEFAULT_PATH, KeysSection
from agent.errors import ConfigInvalid, KeyUnusable
from agent.keys.keyring import Keyring
from agent.keys.master import MasterKey, parse_key_text
from agent.keys.recovery import RecoveryKey, parse_recovery_key

_SECRET_LIMIT = 64 << 10
_DENIED_HINT = "run the command as the user whose file that is: root, as a rule"


def read_secret(path: Path, what: str) -> str:
    """A secret's file without its last newline.

    ConfigInvalid where it is empty, or can be reached by others than us.
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
    """A small file whose mode has none of the `forbidden` bits; ConfigInvalid otherwise."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            raw = file.read(_SECRET_LIMIT)
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
    return raw


def _named(path: Path) -> str:
    """Return the path, for a credential with the file that systemd makes it from."""
    origin = _origin(path)
    return f"{path} (made from {origin})" if origin else str(path)


def _rewrite(path: Path) -> str:
    origin = _origin(path)
    if origin is None:
        return (
            f"make {path} with the secret alone in it, mode 0600, owned by the agent's OS user, or "
            "name another file"
        )
    return (
        f"write the secret into {origin}, owned by root, mode 0600, and restart the unit, which "
        "hands it over (LoadCredential=)"
    )


def _origin(path: Path) -> Path | None:
    """Return the file of a credential `<folder>_<file>` if the unit is the one that we ship."""
    folder, _, name = path.name.partition("_")
    return DEFAULT_PATH.parent / folder / name if name and _is_credential(path) else None


def _denied(error: OSError) -> str | None:
    """What to do where a right is missing; None where the error's own hint fits."""
    return _DENIED_HINT if isinstance(error, PermissionError) else None


def _credentials() -> Path | None:
    """Where systemd put this service's credentials, if it did (systemd.exec(5))."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return Path(folder) if folder else None


def handed_over(folder: Path) -> bool:
    """Whether systemd hands the files of [keys] folder over one by one: see `load_keyring`."""
    return folder.parent == _credentials() and not folder.exists()


def _is_credential(path: Path) -> bool:
    """Whether systemd handed this file over, in a folder that only this service can enter.

    It grants access by an ACL, which shows as mode 0440 (systemd.exec(5), LoadCredential=).
    """
    return path.parent == _credentials()


def load_keyring(section: KeysSection) -> Keyring:
    """All `<id>.key` files of the folder, and the `<id>.pub` files of the recovery keys in use.

    KeyUnusable if one is wrong, missing or open to others; `.pub` files may be read by anybody.

    Under systemd `LoadCredential=keys:/etc/backup-agent/keys` hands the files of a folder over
    as `$CREDENTIALS_DIRECTORY/keys_<file>`. For that, set `[keys] folder` to `keys` in there:
    `Environment=BACKUP_AGENT_KEYS__FOLDER=%d/keys`.
    """
    files = _key_files(section.folder)
    keys: dict[str, MasterKey] = {}
    for name in sorted(files):
        if name.endswith(".key") and (key_id := name.removesuffix(".key")):
            keys[key_id] = read_key(key_id, files[name])
    if section.active not in keys:
        there = ", ".join(sorted(keys)) or "none"
        raise KeyUnusable(
            f"[keys] active: the key {section.active!r} is not in {section.folder}; there: {there}",
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
    """Return a master key; KeyUnusable if its file is missing, wrong, or open to others."""
    try:
        return parse_key_text(key_id, read_secret(path, "master key"))
    except KeyUnusable:
        raise
    except ConfigInvalid as error:
        raise KeyUnusable(str(error), hint=error.hint) from error


def _key_folder(folder: Path) -> Path:
    """Return the folder of the keys, for credentials the one that systemd makes them from."""
    return DEFAULT_PATH.parent / folder.name if handed_over(folder) else folder


def _key_files(folder: Path) -> dict[str, Path]:
    """The files of [keys] folder by name; KeyUnusable where it can't be read."""
    prefix = f"{folder.name}_"
    try:
        # not glob(), which takes a folder it may not read for an empty one
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
            or "backup-agent keygen ID makes the folder with a key in it; or correct [keys] folder",
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
