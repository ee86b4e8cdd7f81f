"""The configuration of a backup without an agent.toml.

It follows from the OS user and from one URL, that of the option --store. The state directory is
`$XDG_STATE_HOME/backup-agent`, by default `~/.local/state/backup-agent` (XDG Base Directory
Specification). It contains the instance's id, which is made once, the journal, and the directory
of master keys. The database user has the OS user's name and no password (unix_socket
authentication). Environment variables override each of these, as they override an agent.toml.
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
from agent.config.cloud import names_cloud
from agent.config.reading import ENV_PREFIX, embedded, load
from agent.config.secrets import read_secret
from agent.config.settings import (
    CLOUD_URL,
    DEFAULT_PATH,
    LOGIN_KEYS,
    Config,
    KeysSection,
    StoreSection,
    names_store,
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
    """Return a configuration with the store `store_url`.

    If `is_embedded(path)`, it is the embedded default, which this module builds. Else it is the
    agent.toml at `path` with another store. The embedded default has no section [keys] while
    there is no master key.

    Raises:
        UsageWrong: the URL names no store that can be used here.
        ConfigInvalid: the configuration is wrong.
        KeyUnusable: the environment names a directory of keys that holds no key, or the keys
            can't be read.
    """
    if not names_store(store_url):
        raise _no_store(store_url)
    if not is_embedded(path):
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
    # the typed --store overrides the environment
    return embedded(tables, {**environment, _STORE_URL: store_url})


def store_of_environment(path: Path, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the URL of the cloud that the environment describes, if there is no agent.toml."""
    if is_embedded(path) and names_cloud(environment):
        return environment.get(_STORE_URL) or CLOUD_URL
    return None


def is_embedded(path: Path) -> bool:
    """Return True if `path` is the default path of agent.toml and no file is there."""
    return path == DEFAULT_PATH and not _exists(path)


def fresh_key(config: Config, arguments: argparse.Namespace) -> "FreshKey | None":
    """Return a master key for a backup if the embedded default has none, else None."""
    return FreshKey(config) if _lacks_key(config, arguments) else None


class FreshKey:
    """A master key that is only in memory until `keep` writes it.

    `keep` is called when a backup is about to need the key.
    """

    def __init__(self, config: Config) -> None:
        self._folder = config.agent.keys_folder
        self._key = _fresh_key(config.agent.instance_id)
        section = KeysSection(folder=self._folder, active=self._key.id)
        self.config = config.model_copy(update={"keys": section})
        self.keyring = Keyring({self._key.id: self._key}, self._key.id)

    def keep(self) -> None:
        """Write the key to its file, and print a note that names the file.

        Also print a warning for each master key that is not here and that backups of this
        instance need.

        Raises:
            StoreError: the records of these backups can't be listed. No key is written then.
            KeyUnusable: the key can't be written.
        """
        lost = _lost_keys(self.config, self.keyring)
        path = self._folder / f"{self._key.id}.key"
        make_folder(self._folder)
        write_once(path, key_text(self._key.secret).encode() + b"\n", 0o600)
        print(
            f"backup-agent: note: made the master key {path}. Keep a copy of this file on another "
            "machine: no backup can be opened without it",
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
    """Count the COMPLETED backups of this instance that need a missing master key, by key id.

    A record that names no key is counted under the text "<id>".
    """
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
    """Print a warning that a master key is missing.

    The `backups` earlier backups that need it are lost unless the key is put back.
    """
    shown = printable(key_id[:64])
    print(
        f"backup-agent: WARNING: the master key {shown} of earlier backups ({backups}) of this "
        f"database is not in {folder}: without it none of them can be restored\n"
        f"  what to do: put a copy of that key back as {folder / shown}.key, mode 0600. Keep the "
        "key that was made for this backup too: both are needed",
        file=sys.stderr,
    )


def need_key(config: Config, arguments: argparse.Namespace) -> None:
    """Raise KeyUnusable if the embedded default has no master key to open backups with."""
    if _lacks_key(config, arguments):
        raise KeyUnusable(
            f"there is no master key in {config.agent.keys_folder}",
            hint="put a copy of the key that the backup was made with there, as <id>.key with "
            "mode 0600. To see its id, run backup-show --json with the same --store",
        )


def _lacks_key(config: Config, arguments: argparse.Namespace) -> bool:
    return config.keys is None and arguments.store is not None and is_embedded(arguments.config)


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # reading it later reports why it can't be read
    return True


def _store(section: StoreSection | None, url: str) -> StoreSection:
    settings = section.model_dump(exclude_unset=True) if section else {}
    # the keys of a login belong to its URL
    for key in LOGIN_KEYS if url == CLOUD_URL else ("cloud",):
        settings.pop(key, None)
    try:
        return StoreSection(**{**settings, "url": url})
    except ValidationError as error:
        raise _no_store(url) from error


def _no_store(url: str) -> UsageWrong:
    # A password in the URL is already in the shell's history. It must not get into a log as well.
    shown = re.sub(r"//[^/]*@", "//...@", url)
    return UsageWrong(
        f"--store {shown!r} is not a store that can be used here",
        hint="name a directory, such as file:///var/backups/db, or the URL of a login, such as "
        "swift:https://HOST/auth/v1.0, for which [store] user and key_file must be set in "
        "agent.toml. swift: alone is the OpenStack cloud that OS_CLOUD or OS_AUTH_URL names",
    )


def _keys(state: Path, own: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the values of section [keys], or none while the default directory holds no key.

    `own` is the prefix of the ids of keys made here.

    Raises:
        KeyUnusable: the environment names a directory that holds no key.
    """
    given = _absolute(environment.get(_KEYS_FOLDER))
    folder = given or state / "keys"
    active = environment.get(_KEYS_ACTIVE) or _active_key(folder, own)
    if active is not None:
        return {"folder": str(folder), "active": active}
    if given is None:
        return {}
    raise KeyUnusable(
        f"there is no master key in {folder}, which {_KEYS_FOLDER} names",
        hint=f"put one there as <id>.key with mode 0600, or unset {_KEYS_FOLDER}",
    )


def _absolute(folder: str | None) -> Path | None:
    return Path.cwd() / folder if folder else None


def _state_folder(environment: Mapping[str, str]) -> Path:
    if given := _absolute(environment.get(_STATE_FOLDER)):
        return given
    home = Path(environment.get("XDG_STATE_HOME", ""))
    try:
        # the XDG specification says that a relative path must be ignored
        return (home if home.is_absolute() else Path.home() / ".local/state") / "backup-agent"
    except RuntimeError as error:
        raise ConfigInvalid(
            "the home directory of this user can't be found",
            hint=f"set {_STATE_FOLDER} to a directory",
        ) from error


def _instance_id(state: Path) -> str:
    """Return the instance id of this user's database, and make it if there is none.

    It is kept in a file of the state directory, so all backups of the database have the same id.
    """
    path = state / "instance-id"
    if not _exists(path):
        try:
            make_folder(state)
            write_once(path, f"{uuid4()}\n".encode(), 0o600)
        except KeyUnusable as error:
            if not _exists(path):  # else another process has just made it
                raise ConfigInvalid(
                    str(error),
                    hint=f"set {_STATE_FOLDER} to a directory that this user may write to",
                ) from error
    return read_secret(path, "the instance's id")


def _own_keys(instance_id: str) -> str:
    """Return the prefix of the ids of keys made here.

    A record names its key by this id, so keys of different instances must have different ids.
    """
    return f"{TENANT}-{instance_id[:8]}"


def _active_key(folder: Path, own: str) -> str | None:
    """Return the id of the key for new backups, or None if there is no key.

    It is the latest of the keys made here (`own` is the prefix of their ids, and the day follows
    it). If no key was made here, it is the last of all ids in alphabetical order. Raise
    KeyUnusable if the directory can't be read.
    """
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
