"""A backup without an agent.toml: what it would say follows from this user and one URL.

State is in `$XDG_STATE_HOME/backup-agent`, `~/.local/state/backup-agent` by default (XDG Base
Directory Specification): the instance's id, made once, the journal, and the folder of master
keys. The database's user has the OS user's name and no password (unix_socket authentication).
The environment overrides each of these, as it does an agent.toml.
"""

import argparse
import os
import pwd
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from pydantic import ValidationError

from agent import wiring
from agent.cli.keyfile import make_folder, write_once
from agent.config.secrets import read_secret
from agent.config.settings import (
    DEFAULT_PATH,
    ENV_PREFIX,
    Config,
    KeysSection,
    StoreSection,
    embedded,
    load,
)
from agent.errors import ConfigInvalid, KeyUnusable, StoreNotFound, UsageWrong
from agent.keys.ids import unique_key_id
from agent.keys.keyring import Keyring, RecordState
from agent.keys.master import KEY_BYTES, MasterKey, fingerprint, key_text
from agent.model import BackupStatus, printable, utc_now

TENANT: Final = "local"
_STORE_URL: Final = f"{ENV_PREFIX}STORE__URL"
_STATE_FOLDER: Final = f"{ENV_PREFIX}AGENT__STATE_FOLDER"
_KEYS_FOLDER: Final = f"{ENV_PREFIX}KEYS__FOLDER"
_KEYS_ACTIVE: Final = f"{ENV_PREFIX}KEYS__ACTIVE"


def configuration(
    path: Path, store_url: str, environment: Mapping[str, str] = os.environ
) -> Config:
    """agent.toml with another store, or the embedded default where `applies(path)`.

    ConfigInvalid where it is wrong. The embedded default has no section [keys] as long as there
    is no master key.
    """
    if not store_url.startswith(("file:///", "swift:")):
        raise _no_store(store_url)
    if not applies(path):
        config = load(path, environment)
        return config.model_copy(update={"store": _store(config.store, store_url)})
    state = _state_folder(environment)
    instance_id = _instance_id(state)
    tables: dict[str, Any] = {
        "agent": {
            "instance_id": instance_id,
            "tenant_id": TENANT,
            "state_folder": str(state),
        },
        "store": {},
        "database": {"user": _user()},
    }
    if keys := _keys(state, _own_keys(instance_id), environment):
        tables["keys"] = keys
    # what was typed wins
    return embedded(tables, {**environment, _STORE_URL: store_url})


def applies(path: Path) -> bool:
    """Whether there is no agent.toml: none was named, and none is where it usually is."""
    return path == DEFAULT_PATH and not _exists(path)


def fresh_key(config: Config, arguments: argparse.Namespace) -> "FreshKey | None":
    """A master key for a backup where the embedded default has none; None if there is one."""
    return FreshKey(config) if _lacks_key(config, arguments) else None


class FreshKey:
    """A master key that is in memory alone until a backup is about to need it: see `keep`."""

    def __init__(self, config: Config) -> None:
        self._folder = _keys_folder(config)
        self._key = _fresh_key(config.agent.instance_id)
        section = KeysSection(folder=self._folder, active=self._key.id)
        self.config = config.model_copy(update={"keys": section})
        self.keyring = Keyring({self._key.id: self._key}, self._key.id)

    def keep(self) -> None:
        """Write the key, say so, and warn if backups of this instance need one that isn't here.

        StoreError if the store can't be asked for these, KeyUnusable if it can't be written.
        """
        lost = _lost_keys(self.config, self.keyring)
        path = self._folder / f"{self._key.id}.key"
        make_folder(self._folder)
        write_once(path, key_text(self._key.secret).encode() + b"\n", 0o600)
        print(
            f"backup-agent: note: made the master key {path}: keep a copy of this file on another "
            "machine, for without it no backup can be opened",
            file=sys.stderr,
        )
        for key_id, backups in sorted(lost.items()):
            _warn_of_lost(key_id, backups, self._folder)


def _fresh_key(instance_id: str) -> MasterKey:
    secret = os.urandom(KEY_BYTES)
    digest = fingerprint(key_text(secret).encode())
    day = utc_now()[:10].replace("-", "")
    return MasterKey(unique_key_id(_own_keys(instance_id), day, digest), secret)


def _lost_keys(config: Config, keyring: Keyring) -> Counter[str]:
    """How many COMPLETED backups of this instance need a master key that isn't here, by its id."""
    lost = Counter[str]()
    try:
        with wiring.catalogue(config, keyring) as catalogue:
            for listed in catalogue.records():
                record = listed.record
                if (
                    record is not None
                    and listed.state is RecordState.KEY_NOT_HERE
                    and record.instance_id == config.agent.instance_id
                    and record.status is BackupStatus.COMPLETED
                ):
                    lost[record.keys[0].id if record.keys else "<id>"] += 1
    except StoreNotFound:
        return lost  # the first backup makes the store
    return lost


def _warn_of_lost(key_id: str, backups: int, folder: Path) -> None:
    """Say loudly that a key is gone: each backup before this one is lost unless it comes back."""
    shown = printable(key_id[:64])
    print(
        f"backup-agent: WARNING: the master key {shown} of earlier backups ({backups}) of this "
        f"database is not in {folder}: without it none of them can be restored\n"
        f"  what to do: put its copy back as {folder / shown}.key, mode 0600, beside the key that "
        "was made for this backup; both are needed",
        file=sys.stderr,
    )


def need_key(config: Config, arguments: argparse.Namespace) -> None:
    """KeyUnusable where the embedded default has no master key to open anything with."""
    if _lacks_key(config, arguments):
        raise KeyUnusable(
            f"there is no master key in {_keys_folder(config)}",
            hint="put a copy of the key that the backup was made with there, as <id>.key with "
            "mode 0600; backup-show --json, with the same --store, names its id",
        )


def _lacks_key(config: Config, arguments: argparse.Namespace) -> bool:
    return config.keys is None and arguments.store is not None and applies(arguments.config)


def _keys_folder(config: Config) -> Path:
    return config.agent.state_folder / "keys"


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # to be told why it can't be read
    return True


def _store(section: StoreSection | None, url: str) -> StoreSection:
    told = section.model_dump() if section else {}
    try:
        return StoreSection(**{**told, "url": url})
    except ValidationError as error:
        raise _no_store(url) from error


def _no_store(url: str) -> UsageWrong:
    # a password in it is in the shell's history already, and need not get into a log
    shown = re.sub(r"//[^/]*@", "//...@", url)
    return UsageWrong(
        f"--store {shown!r} is not a store that can be used here",
        hint="name a folder, as file:///var/backups/db, or the authentication URL of a Swift, as "
        "swift:https://HOST/auth/v1.0, whose [store] user and key_file agent.toml names",
    )


def _keys(state: Path, own: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What [keys] would say; nothing as long as there is no key in the folder for those made here.

    KeyUnusable if there is none in the folder that the environment names.
    """
    told = _told_folder(environment.get(_KEYS_FOLDER))
    folder = told or state / "keys"
    active = environment.get(_KEYS_ACTIVE) or _active_key(folder, own)
    if active is not None:
        return {"folder": str(folder), "active": active}
    if told is None:
        return {}
    raise KeyUnusable(
        f"there is no master key in {folder}, which {_KEYS_FOLDER} names",
        hint=f"put one there as <id>.key with mode 0600, or unset {_KEYS_FOLDER}",
    )


def _told_folder(told: str | None) -> Path | None:
    return Path.cwd() / told if told else None


def _state_folder(environment: Mapping[str, str]) -> Path:
    if told := _told_folder(environment.get(_STATE_FOLDER)):
        return told
    home = Path(environment.get("XDG_STATE_HOME", ""))
    try:
        # a relative one is to be ignored, says the specification
        return (home if home.is_absolute() else Path.home() / ".local/state") / "backup-agent"
    except RuntimeError as error:
        raise ConfigInvalid(
            "nobody knows this user's home folder", hint=f"set {_STATE_FOLDER} to a folder"
        ) from error


def _instance_id(state: Path) -> str:
    """The id that this user's database has had from the first backup on."""
    path = state / "instance-id"
    if not _exists(path):
        try:
            make_folder(state)
            write_once(path, f"{uuid4()}\n".encode(), 0o600)
        except KeyUnusable as error:
            if not _exists(path):  # else another process was quicker
                raise ConfigInvalid(
                    str(error), hint=f"set {_STATE_FOLDER} to a folder that this user may write to"
                ) from error
    return read_secret(path, "the instance's id")


def _own_keys(instance_id: str) -> str:
    """How the ids of the keys begin that are made here: a record names the key that opens it."""
    return f"{TENANT}-{instance_id[:8]}"


def _active_key(folder: Path, own: str) -> str | None:
    """The key for new backups: the latest of those made here, or else the last by its id."""
    try:
        found = sorted(path.stem for path in folder.iterdir() if path.suffix == ".key")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeyUnusable(f"the keys in {folder} can't be read: {error.strerror}") from error
    made_here = [key_id for key_id in found if key_id.startswith(own)]
    return next(reversed(made_here or found), None)


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
