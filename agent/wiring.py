"""Build the agent's objects from its configuration. Below, only agent/config knows agent.toml."""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from urllib.parse import unquote
from uuid import uuid4

from agent.broker.amqp import BrokerSettings
from agent.broker.rights import agent_rights, operator_rights
from agent.config.cloud import cloud_of
from agent.config.secrets import load_keyring, read_secret
from agent.config.settings import Config, StoreSection, need
from agent.database.server import Database, DatabaseSettings
from agent.engine.choice import Engines
from agent.engine.mariadb import MariadbBackup, MariadbBackupSettings
from agent.engine.protocol import Engine
from agent.engine.xtrabackup import XtraBackup, XtraBackupSettings
from agent.errors import ConfigInvalid, JournalError, TokenLost
from agent.journal import Journal
from agent.keys.keyring import Keyring
from agent.machine.host import cores, end_processes
from agent.machine.lock import SECOND_AGENT, WriteActivity, only_agent
from agent.machine.tls import ClientCertificate, client_context
from agent.model import TaskStore
from agent.operations.resources import BackupResources, PathSettings, RestoreResources
from agent.records.cache import RecordCache, open_cache
from agent.records.catalogue import Catalogue
from agent.records.object_names import container_name
from agent.store.directory.store import DirectoryStore
from agent.store.policy import StorageRules
from agent.store.protocol import Store
from agent.store.swift.keystone import TOKEN, KeystoneLogin
from agent.store.swift.login import Authenticate, AuthToken, AuthV1
from agent.store.swift.store import SwiftSettings, SwiftStore
from agent.tasks.executor import Executor
from agent.tasks.stores import TaskStores

log = logging.getLogger(__name__)

_CHILD_OF: Final = "BACKUP_AGENT_CHILD_OF"
_LEFTOVER_SECONDS: Final = 10.0


def keyring(config: Config) -> Keyring:
    """Return the keys of [keys]. Raise ConfigInvalid or KeyUnusable if there are none."""
    return load_keyring(need(config.keys, "keys"))


def store(config: Config) -> Store:
    """Return the store of [store] url, not opened yet."""
    return _stores(config)(None)


def _stores(config: Config) -> Callable[[TaskStore | None], Store]:
    """Return a function that builds the configured store, or the one that a task names.

    The secret is read now. The process may be another user later.
    """
    section, container = need(config.store, "store"), _container(config)
    if folder := store_folder(config):
        return lambda asked: DirectoryStore(folder, (asked and asked.container) or container)
    login, ca_file = _login(section)
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


def _login(section: StoreSection) -> tuple[Authenticate, Path | None]:
    """Return the configured login of Swift, and the file with the store's own authority."""
    if section.auth == "v1" and section.address:
        if section.key_file is None:
            raise ConfigInvalid("[store] key_file is missing")
        key = read_secret(section.key_file, "[store] key_file")
        return AuthV1(section.address, section.user, key), section.ca_file
    cloud = cloud_of(section)
    return KeystoneLogin(cloud.keystone), cloud.ca_file


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
    if section.kind == "file" or (section.auth == "v1" and section.address):
        return section.user, section.address
    keystone = cloud_of(section).keystone
    return keystone.who, keystone.auth_url


def store_account(config: Config) -> str:
    """Return a text that differs for different accounts of stores, without a secret."""
    section = need(config.store, "store")
    if section.kind == "file" or (section.auth == "v1" and section.address):
        return f"{section.url} {section.user}"
    return cloud_of(section).keystone.account


def _container(config: Config) -> str:
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
    account = (asked and asked.account) or store_account(config)
    name = f"{account} {(asked and asked.container) or _container(config)}"
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


def broker(config: Config) -> BrokerSettings:
    """Return how the agent reaches its broker. Raise ConfigInvalid if [broker] is missing."""
    section = need(config.broker, "broker")
    return BrokerSettings(
        url=section.url,
        password=_password(section.password_file, "password_file"),
        ca_file=section.ca_file,
        certificate=_certificate(section.certificate_file, section.key_file, ""),
        queue_type=section.queue_type,
        rights=agent_rights(config.agent.instance_id),
    )


def control(config: Config) -> BrokerSettings:
    """Return how commands that send tasks reach the broker. The default is the agent's account."""
    section = need(config.broker, "broker")
    if section.control_url is None:
        return replace(broker(config), rights=None)
    return BrokerSettings(
        url=section.control_url,
        password=_password(section.control_password_file, "control_password_file"),
        ca_file=section.ca_file,
        certificate=_certificate(
            section.control_certificate_file, section.control_key_file, "control_"
        ),
        rights=operator_rights(config.agent.instance_id),
    )


def _password(path: Path | None, key: str) -> str:
    return "" if path is None else read_secret(path, f"[broker] {key}")


def _certificate(file: Path | None, key_file: Path | None, prefix: str) -> ClientCertificate | None:
    if file is None or key_file is None:
        return None
    key = f"[broker] {prefix}"
    check = partial(read_secret, key_file, f"{key}key_file")
    return ClientCertificate(file, key_file, check, key)


def restore_resources(
    config: Config, cache: RecordCache | None = None, keys: Keyring | None = None
) -> RestoreResources:
    """Return the resources of a restore. `keys` are those of [keys] by default."""
    section = need(config.keys, "keys")
    keys = keys or keyring(config)
    objects = store(config)
    return RestoreResources(
        store=objects,
        catalogue=Catalogue(objects, keys, cache),
        keyring=keys,
        engines=engines(config, ""),
        path=path_settings(config),
        prepare_memory_bytes=config.engine.prepare_memory_bytes,
        allow_plaintext=section.allow_plaintext or not section.encrypt,
        reserve_percent=config.agent.restore_reserve_percent,
    )


def backup_resources(
    config: Config,
    cache: RecordCache | None = None,
    *,
    exclusive: bool = False,
    keys: Keyring | None = None,
) -> BackupResources:
    """Return the resources of a backup, which also needs the database and a temporary directory.

    `exclusive` is for an agent that holds the lock of its state directory. Its engines get a
    variable by which `end_leftovers` knows them. It makes no backup while another such agent makes
    one of the same datadir.
    """
    server = database_settings(config)
    mark = dict([_mark(config)]) if exclusive else {}
    resources = vars(restore_resources(config, cache, keys))
    resources |= {"engines": engines(config, server.password, mark)}
    return BackupResources(
        **resources,
        instance_id=config.agent.instance_id,
        database=Database(server),
        scratch=config.agent.scratch_folder,
        exclusive=exclusive,
        encrypt=need(config.keys, "keys").encrypt,
        safe_slave_backup=config.engine.safe_slave_backup,
        lock_wait_seconds=config.engine.lock_wait_seconds,
        uncopied_engines=frozenset(name.lower() for name in config.engine.uncopied_engines),
        store_folder=store_folder(config),
    )


class AgentRun(NamedTuple):
    """One run of an agent that holds the lock of its state directory.

    `note` writes a line about the run into the lock file, for `backup-agent status`. `started` is
    in Unix seconds.
    """

    journal: Journal
    executor: Executor
    note: WriteActivity
    started: float


@contextmanager
def agent_run(
    config: Config,
    resources: BackupResources,
    stores: TaskStores,
    *,
    note: str,
    wake: Callable[[], None],
    progress_seconds: float,
    ended: Callable[[], None] = lambda: None,
    store_override: bool = False,
    busy_hint: str = SECOND_AGENT,
) -> Iterator[AgentRun]:
    """Lock the state directory, clean up after a killed agent, and open the journal.

    `wake` is called after each report, and `ended` after each final one. `note` goes into the lock
    file. The store of `resources` is closed at the end.

    Raises:
        InstanceBusy: another agent holds the lock. `busy_hint` says what to do then.
        ConfigInvalid: the state directory belongs to another user.
        JournalError: the state directory or the journal can't be used.
    """
    started = time.time()
    with only_agent(config.agent.lock_file, hint=busy_hint) as say, ExitStack() as end:
        say(note)
        end.callback(resources.store.close)
        end_leftovers(config)
        # files that an engine of a killed agent left are of no use
        shutil.rmtree(resources.scratch, ignore_errors=True)
        opened = journal(config, store_override=store_override)
        end.callback(opened.close)
        executor = Executor(
            opened,
            stores,
            restore_roots=config.agent.restore_roots,
            progress_seconds=progress_seconds,
            wake=wake,
            ended=ended,
        )
        yield AgentRun(opened, executor, say, started)


@contextmanager
def metrics(
    config: Config, run: AgentRun, consuming: Callable[[], bool]
) -> Iterator[Callable[[], None]]:
    """Export the metrics of a daemon while the block runs, if [metrics] asks for them.

    A port or a file that can't be used keeps no backup from being made. Yield a function to call
    after the end of a task, from any thread.
    """
    section = config.metrics
    if section.listen is None and section.textfile is None:
        yield lambda: None
        return
    # here, because most agents and commands need no library for metrics
    from agent.metrics.export import exported
    from agent.metrics.families import Source

    source = Source(config.agent.journal_file, consuming, run.started)
    with exported(source, section.address, section.textfile) as ended:
        yield ended


def write_metrics(config: Config, run: AgentRun) -> None:
    """Write the file of [metrics] textfile, if it is set, for an agent that is no daemon.

    A failure is logged. It must not spoil a backup.
    """
    if config.metrics.textfile is None:
        return
    from agent.metrics.families import Source, exposition
    from agent.metrics.textfile import write

    consuming = (lambda: False) if config.broker else None
    source = Source(config.agent.journal_file, consuming, run.started)
    try:
        write(config.metrics.textfile, partial(exposition, source))
    except (ConfigInvalid, JournalError) as error:
        log.warning("%s. What to do: %s", error, error.hint)


def end_leftovers(config: Config) -> None:
    """Kill the processes that a killed agent left. The caller holds the lock."""
    ended = end_processes(*_mark(config), _LEFTOVER_SECONDS)
    if ended:
        log.warning("killed processes that a killed agent had left: %s", ", ".join(ended))


def _mark(config: Config) -> tuple[str, str]:
    """Return the variable, and its value, that mark children of this state directory's agents."""
    return _CHILD_OF, os.path.realpath(config.agent.state_folder)


def task_stores(
    config: Config, resources: BackupResources, environment: Mapping[str, str] = os.environ
) -> TaskStores:
    """Return the stores of tasks. The default is the store of `resources`."""
    section = need(config.store, "store")
    rules = StorageRules(
        configured=_container(config),
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
    if section.kind != "swift" or (section.auth == "v1" and section.address):
        return None
    return frozenset((config.agent.tenant_id, *section.projects))


def database_settings(config: Config) -> DatabaseSettings:
    """Return how to reach the server, with the password of [database] password_file."""
    section = config.database
    password = ""
    if section.password_file is not None:
        password = read_secret(section.password_file, "[database] password_file")
    return DatabaseSettings(socket=section.socket, user=section.user, password=password)


def journal(config: Config, *, store_override: bool = False) -> Journal:
    """Open the journal of the state directory for one run.

    `store_override` means that the store is not that of agent.toml, but was named for this run.

    Raises:
        JournalError: the journal can't be used.
    """
    path = config.agent.journal_file
    section = need(config.store, "store")
    address = section.url.rstrip("/") if section.address else store_account(config)
    where = f"{address} {_container(config)}"
    run_id = str(uuid4())
    return Journal(
        path, config.agent.instance_id, run_id, store=where, store_override=store_override
    )


def engines(
    config: Config, password: str, environment: Mapping[str, str] = MappingProxyType({})
) -> Engines:
    """Return all engines.

    With [engine] kind `auto`, all have the configured program and extractor, as one of them is
    used.
    """
    section = config.engine
    given = {"program": section.program, "extractor": section.extractor}

    def common(name: str) -> dict[str, Any]:
        programs = given if section.kind in ("auto", name) else {}
        return {key: value for key, value in programs.items() if value} | {
            "socket": config.database.socket,
            "user": config.database.user,
            "password": password,
            "environment": environment,
            "lock_wait_seconds": section.lock_wait_seconds,
            "silent_seconds": section.silent_seconds,
            "safe_slave_backup": section.safe_slave_backup,
            "options": section.options,
        }

    xtrabackup = XtraBackupSettings(
        **common(XtraBackup.name),
        register_redo_log_consumer=section.register_redo_log_consumer,
    )
    known: tuple[Engine, ...] = (
        MariadbBackup(MariadbBackupSettings(**common(MariadbBackup.name))),
        XtraBackup(xtrabackup),
    )
    return Engines(
        {engine.name: engine for engine in known},
        kind=None if section.kind == "auto" else section.kind,
    )


def path_settings(config: Config) -> PathSettings:
    """Return the budget of the data path on this machine."""
    section = config.pipeline
    return PathSettings(
        memory_bytes=section.memory_bytes,
        segment_bytes=section.segment_bytes,
        connections=section.connections,
        cores=section.cores or cores(),
        level=section.level,
        bytes_per_second=section.bytes_per_second,
    )
