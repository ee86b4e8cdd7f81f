"""Build stores and the logins to them from the configuration."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from agent.config.cloud import Cloud, cloud_of
from agent.config.secrets import read_secret
from agent.config.settings import Config, StoreSection, need
from agent.errors import ConfigInvalid, TokenLost
from agent.keys.keyring import Keyring
from agent.machine.tls import client_context
from agent.model import TaskStore
from agent.operations.resources import BackupResources
from agent.records.cache import RecordCache, open_cache
from agent.records.catalogue import Catalogue
from agent.records.object_names import container_name
from agent.store.directory.store import DirectoryStore
from agent.store.policy import StorageRules
from agent.store.protocol import Store
from agent.store.swift.keystone import TOKEN, KeystoneLogin
from agent.store.swift.login import Authenticate, AuthToken, AuthV1
from agent.store.swift.store import SwiftSettings, SwiftStore
from agent.tasks.stores import TaskStores


def store(config: Config) -> Store:
    """Return the store of [store] url, not opened yet."""
    return _stores(config)(None)


def _stores(config: Config) -> Callable[[TaskStore | None], Store]:
    """Return a function that builds the configured store, or the one that a task names.

    The secret is read now. The process may be another user later.
    """
    section, container = need(config.store, "store"), container_of(config)
    if folder := store_folder(config):
        return lambda asked: DirectoryStore(folder, (asked and asked.container) or container)
    login, ca_file = store_login(section)
    if ca_file is not None:
        client_context("store", ca_file)  # raise at once if the file can't be used
    settings = SwiftSettings(
        login,
        container,
        timeout_seconds=section.timeout_seconds,
        attempts=section.attempts,
        ca_file=str(ca_file) if ca_file else None,
    )

    def build(asked: TaskStore | None) -> Store:
        named = (asked and asked.container) or container
        own = _task_login(asked, login)
        return SwiftStore(replace(settings, container=named, login=own or login))

    return build


def store_login(section: StoreSection) -> tuple[Authenticate, Path | None]:
    """Return the configured login of Swift, and the file with the store's own authority."""
    if not section.behind_keystone:
        if section.key_file is None:
            raise ConfigInvalid("[store] key_file is missing")
        key = read_secret(section.key_file, "[store] key_file")
        return AuthV1(section.address, section.user, key), section.ca_file
    cloud = _cloud(section)
    return KeystoneLogin(cloud.keystone), cloud.ca_file


@cache
def _cloud(section: StoreSection) -> Cloud:
    """Return the cloud of [store].

    It is read once, because the process may be another user later.
    """
    return cloud_of(section)


def _task_login(asked: TaskStore | None, configured: Authenticate) -> Authenticate | None:
    """Return the login of a task that names an account, None for the configured login."""
    if asked is None or asked.account is None:
        return None
    if asked.token is None:
        raise TokenLost("the task names an account, and its token is not here")
    token = asked.token.get_secret_value()
    if asked.storage_url is not None:
        return AuthToken(asked.storage_url, token)
    assert isinstance(configured, KeystoneLogin)  # the rules for tasks demand it
    options = {"token": token, "project_id": str(asked.project_id)}
    settings = replace(configured.settings, kind=TOKEN, options=options, told_by="the task")
    return KeystoneLogin(settings)


def login_of(section: StoreSection) -> tuple[str, str]:
    """Return the user and the URL of the configured login. They are for messages."""
    if not section.behind_keystone:
        return section.user, section.address
    keystone = _cloud(section).keystone
    return keystone.who, keystone.auth_url


def store_account(config: Config) -> str:
    """Return a text that differs for different accounts of stores, without a secret."""
    section = need(config.store, "store")
    if not section.behind_keystone:
        return f"{section.url} {section.user}"
    return _cloud(section).keystone.account


def container_of(config: Config) -> str:
    section = need(config.store, "store")
    return section.container or container_name(config.agent.tenant_id)


def store_folder(config: Config) -> Path | None:
    """Return the directory of a `file:///` URL (RFC 8089, `%20` is a space), None for others.

    Raises:
        ConfigInvalid: the URL names no directory that backups may go to.
    """
    section = need(config.store, "store")
    if section.kind != "file":
        return None
    path = unquote(section.address)
    if "\0" in path or ".." in path.split("/") or not path.strip("/"):
        raise ConfigInvalid(
            f"[store] url: {section.url} names no folder that backups may go to",
            hint="name it as file:///var/backups/db",
        )
    return Path(path)


def record_cache(
    config: Config,
    environment: Mapping[str, str] = os.environ,
    asked: TaskStore | None = None,
) -> RecordCache | None:
    """Return the cache of a store's records, None if no directory can hold it.

    It is in the state directory, or else in the user's own cache directory.
    """
    if asked is not None and asked.storage_url is not None:
        account = asked.storage_url
    else:
        project = f" {asked.account}" if asked and asked.account else ""
        account = f"{store_account(config)}{project}"
    name = f"{account} {(asked and asked.container) or container_of(config)}"
    return open_cache(name, config.agent.state_folder, environment)


@contextmanager
def catalogue(config: Config, keys: Keyring) -> Iterator[Catalogue]:
    """Yield the records of the store. Close the store at the end of the block.

    The store must exist: nothing is created in it.
    """
    opened = store(config)
    try:
        opened.open(create=False)
        yield Catalogue(opened, keys, record_cache(config))
    finally:
        # an interrupted command waits for no retry
        opened.abort()
        opened.close()


def task_stores(
    config: Config, resources: BackupResources, environment: Mapping[str, str] = os.environ
) -> TaskStores:
    """Return the stores of tasks. The default is the store of `resources`."""
    section = need(config.store, "store")
    rules = StorageRules(
        configured=container_of(config),
        own=container_name(config.agent.tenant_id),
        urls=section.storage_urls,
        tokens=section.kind == "swift",
        projects=_projects(config),
    )

    stores = _stores(config)

    def build(asked: TaskStore) -> BackupResources:
        objects = stores(asked)
        cache = record_cache(config, environment, asked)
        return replace(
            resources, store=objects, catalogue=Catalogue(objects, resources.keyring, cache)
        )

    return TaskStores(resources, rules, build)


def _projects(config: Config) -> frozenset[str] | None:
    """Return the projects that tasks may name, None if the store is not behind Keystone."""
    section = need(config.store, "store")
    if not section.behind_keystone:
        return None
    return frozenset((config.agent.tenant_id, *section.projects))
