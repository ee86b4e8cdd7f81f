"""Build the objects of one run under Trove, from the image's configuration and Trove's options."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from agent.config.reading import with_defaults
from agent.config.secrets import load_keyring
from agent.config.settings import DEFAULT_PATH, Config, KeysSection, StoreSection
from agent.database.server import Database, DatabaseSettings
from agent.errors import ConfigInvalid, KeyUnusable, StoreError
from agent.keys.keyring import Keyring
from agent.machine.tls import client_context
from agent.operations.trove.resources import TroveResources, TroveRestoreResources
from agent.store.swift.keystone import TOKEN, KeystoneLogin, KeystoneSettings
from agent.store.swift.login import Authenticate, AuthToken
from agent.store.swift.store import SwiftSettings, SwiftStore
from agent.wiring.agent import engines, path_settings
from agent.wiring.stores import store, store_login

log = logging.getLogger(__name__)

# Trove mounts the directory of the server's socket here.
_SOCKET: Final = "/var/run/mysqld/mysqld.sock"
_KEYS: Final = DEFAULT_PATH.parent / "keys"
_NOBODY: Final = "00000000-0000-4000-8000-000000000000"


def image_config(path: Path = DEFAULT_PATH, environment: Mapping[str, str] = os.environ) -> Config:
    """Return the configuration of the image. Its agent.toml may be missing.

    Raises:
        ConfigInvalid, KeyUnusable: it can't be used.
    """
    # Under Trove the instance and the tenant have no id here.
    defaults: dict[str, dict[str, Any]] = {
        "agent": {"instance_id": _NOBODY, "tenant_id": "trove"},
        "database": {"socket": _SOCKET},
        "store": {},
    }
    config = with_defaults(path, defaults, environment)
    if config.keys is None and (active := _only_key(_KEYS)):
        section = KeysSection(folder=_KEYS, active=active)
        config = config.model_copy(update={"keys": section})
    return config


def _only_key(folder: Path) -> str | None:
    """Return the id of the only master key in `folder`, or None if there is none.

    Raises:
        KeyUnusable: there are several, or the directory can't be read.
    """
    try:
        found = sorted(path.stem for path in folder.iterdir() if path.suffix == ".key")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeyUnusable(f"the keys in {folder} can't be read: {error.strerror}") from error
    if len(found) > 1:
        raise KeyUnusable(
            f"{folder} has several keys: {', '.join(found[:5])}",
            hint=f"name the one for new backups in {DEFAULT_PATH} of the image: [keys] folder and "
            "active",
        )
    return found[0] if found else None


def image_keyring(config: Config) -> Keyring | None:
    """Return the configured keys, or None if there are none."""
    return load_keyring(config.keys) if config.keys else None


def user_login(
    token: str, *, swift_url: str = "", auth_url: str = "", project_id: str = "", region: str = ""
) -> Authenticate:
    """Return the login with the user's token that Trove gives.

    Trove 26 gives the storage URL. Earlier releases give the URL of Keystone instead, whose
    catalogue has it.

    Raises:
        ConfigInvalid: the URL of Keystone or the token can't be used.
    """
    if swift_url:
        return AuthToken(swift_url, token)
    return KeystoneLogin(_token_settings(token, auth_url, project_id, region))


def _token_settings(
    token: str, auth_url: str, project_id: str, region: str = ""
) -> KeystoneSettings:
    options = {"token": token, "project_id": project_id}
    # Trove may name Keystone without a version, or with that of an API that is gone.
    base = auth_url.rstrip("/").removesuffix("/v2.0").removesuffix("/v3")
    return KeystoneSettings(
        f"{base}/v3", TOKEN, options, region=region or None, told_by="the command line of Trove"
    )


def service_login(config: Config) -> KeystoneLogin | None:
    """Return the login of the service user in [store] of the image, or None if there is none.

    Raises:
        ConfigInvalid: it is not a login at Keystone.
    """
    section = config.store or StoreSection()
    if not section.address and section.cloud is None:
        return None
    found, _ = store_login(section)
    if not isinstance(found, KeystoneLogin):
        raise ConfigInvalid(
            "[store] of the image must have the login of a service user at Keystone, or no url",
            hint="remove the url, or set auth, as docs/stores.md describes for Keystone",
        )
    return found


def seconds_left(store: SwiftStore, token: str, auth_url: str = "") -> float | None:
    """Return how long Trove's token is valid in seconds, or None if nothing tells.

    Trove 26 gives no URL of Keystone, so that the store is asked for it. A failure is only logged,
    because the store itself has accepted the token.
    """
    try:
        url = auth_url or store.keystone()
        if not url:
            return None
        # the token itself names its project
        return store.token_seconds_left(KeystoneLogin(_token_settings(token, url, "any")))
    except (StoreError, ConfigInvalid) as error:
        log.info("can't find out how long the token is valid: %s", error)
        return None


def trove_store(config: Config, login: Authenticate, container: str) -> SwiftStore:
    """Return the store of one run, with `container` for new backups."""
    section = config.store or StoreSection()
    if section.ca_file is not None:
        client_context("store", section.ca_file)  # raise at once if the file can't be used
    return SwiftStore(
        SwiftSettings(
            login,
            container,
            timeout_seconds=section.timeout_seconds,
            attempts=section.attempts,
            ca_file=str(section.ca_file) if section.ca_file else None,
        )
    )


def trove_restore_resources(config: Config) -> TroveRestoreResources:
    """Return the resources of a restore with the configured login of the store.

    Raises:
        ConfigInvalid: the store is not Swift.
    """
    objects = store(config)
    if not isinstance(objects, SwiftStore):
        raise ConfigInvalid(
            "backups of OpenStack Trove are in Swift, and the configured store is a directory",
            hint="set [store] url to the login of that Swift, or name it by --store. `--store "
            "swift:` is the cloud that OS_CLOUD or OS_AUTH_URL names",
        )
    return TroveRestoreResources(
        store=objects,
        keyring=image_keyring(config),
        engines=engines(config, ""),
        path=path_settings(config),
        prepare_memory_bytes=config.engine.prepare_memory_bytes,
        reserve_percent=config.agent.restore_reserve_percent,
    )


def trove_resources(
    config: Config, store: SwiftStore, *, user: str = "", password: str = ""
) -> TroveResources:
    """Return the resources of one run. A restore needs no user of the database."""
    section = config.database
    database = section.model_copy(update={"user": user or section.user})
    config = config.model_copy(update={"database": database})
    settings = DatabaseSettings(socket=database.socket, user=database.user, password=password)
    return TroveResources(
        store=store,
        keyring=image_keyring(config),
        encrypt=config.keys is None or config.keys.encrypt,
        engines=engines(config, password),
        path=path_settings(config),
        prepare_memory_bytes=config.engine.prepare_memory_bytes,
        reserve_percent=config.agent.restore_reserve_percent,
        database=Database(settings),
        scratch=config.agent.scratch_folder,
        exclusive=True,
        safe_slave_backup=config.engine.safe_slave_backup,
        lock_wait_seconds=config.engine.lock_wait_seconds,
        uncopied_engines=frozenset(name.lower() for name in config.engine.uncopied_engines),
    )
