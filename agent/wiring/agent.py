"""Build the objects of an agent, of a backup and of a restore from the configuration."""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from uuid import uuid4

from agent.config.secrets import load_keyring, read_secret
from agent.config.settings import Config, need
from agent.database.server import Database, DatabaseSettings
from agent.engine.choice import Engines
from agent.engine.mariadb import MariadbBackup, MariadbBackupSettings
from agent.engine.protocol import Engine
from agent.engine.xtrabackup import XtraBackup, XtraBackupSettings
from agent.errors import ConfigInvalid, JournalError
from agent.journal import Journal
from agent.keys.keyring import Keyring
from agent.machine.host import cores, end_processes
from agent.machine.lock import SECOND_AGENT, WriteActivity, only_agent
from agent.operations.resources import BackupResources, PathSettings, RestoreResources
from agent.records.cache import RecordCache
from agent.records.catalogue import Catalogue
from agent.tasks.executor import Executor
from agent.tasks.stores import TaskStores
from agent.wiring.stores import container_of, store, store_account, store_folder

log = logging.getLogger(__name__)
_CHILD_OF: Final = "BACKUP_AGENT_CHILD_OF"
_LEFTOVER_SECONDS: Final = 10.0


def keyring(config: Config) -> Keyring:
    """Return the keys of [keys]. Raise ConfigInvalid or KeyUnusable if there are none."""
    return load_keyring(need(config.keys, "keys"))


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
    where = f"{address} {container_of(config)}"
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
