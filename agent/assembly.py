"""Builds the agent's objects from its configuration; nothing below knows of agent.toml."""

from pathlib import Path

from agent.broker.amqp import BrokerSettings
from agent.catalogue import Catalogue
from agent.config import Config, load_keyring, need, read_secret
from agent.database import Database, DatabaseSettings
from agent.engine.mariadb import MariadbBackup, MariadbBackupSettings
from agent.errors import ConfigInvalid
from agent.host import cores
from agent.keys import Keyring
from agent.layout import container_name
from agent.operations.parts import BackupParts, PathSettings, RestoreParts
from agent.store.swift import SwiftSettings, SwiftStore


def keyring(config: Config) -> Keyring:
    return load_keyring(need(config.keys, "keys"))


def store(config: Config) -> SwiftStore:
    """The store, not opened yet."""
    section = need(config.store, "store")
    if section.key_file is None:
        raise ConfigInvalid(f"[store] url: {section.url} is not a store that this version knows")
    settings = SwiftSettings(
        auth_url=section.url.removeprefix("swift:"),
        user=section.user,
        key=read_secret(section.key_file, "[store] key_file"),
        container=section.container or container_name(config.agent.tenant_id),
        timeout_seconds=section.timeout_seconds,
        attempts=section.attempts,
        ca_file=str(section.ca_file) if section.ca_file else None,
    )
    return SwiftStore(settings)


def catalogue(config: Config) -> Catalogue:
    """The records of the store, which is opened."""
    opened = store(config)
    opened.open()
    return Catalogue(opened, keyring(config))


def broker(config: Config) -> BrokerSettings:
    section = need(config.broker, "broker")
    password = ""
    if section.password_file is not None:
        password = read_secret(section.password_file, "[broker] password_file")
    return BrokerSettings(
        url=section.url,
        password=password,
        ca_file=section.ca_file,
        queue_type=section.queue_type,
    )


def restore_parts(config: Config) -> RestoreParts:
    """What `restore --local` needs: a store, keys and an engine."""
    keys = keyring(config)
    objects = store(config)
    return RestoreParts(
        store=objects,
        catalogue=Catalogue(objects, keys),
        keyring=keys,
        engine=_engine(config, ""),
        path=_path(config),
        prepare_memory_bytes=config.engine.prepare_memory_bytes,
    )


def backup_parts(config: Config) -> BackupParts:
    """What the daemon needs on top: the database, and a folder for scratch files."""
    password = ""
    if config.database.password_file is not None:
        password = read_secret(config.database.password_file, "[database] password_file")
    parts = vars(restore_parts(config)) | {"engine": _engine(config, password)}
    return BackupParts(
        **parts,
        instance_id=config.agent.instance_id,
        database=Database(
            DatabaseSettings(
                socket=config.database.socket, user=config.database.user, password=password
            )
        ),
        scratch=config.agent.state_folder / "scratch",
    )


def journal_path(config: Config) -> Path:
    return config.agent.state_folder / "journal.sqlite"


def _engine(config: Config, password: str) -> MariadbBackup:
    return MariadbBackup(
        MariadbBackupSettings(
            socket=config.database.socket,
            user=config.database.user,
            password=password,
            program=config.engine.program or "mariadb-backup",
            extractor=config.engine.extractor or "mbstream",
        )
    )


def _path(config: Config) -> PathSettings:
    section = config.pipeline
    return PathSettings(
        memory_bytes=section.memory_bytes,
        segment_bytes=section.segment_bytes,
        connections=section.connections,
        cores=section.cores or cores(),
        level=section.level,
        bytes_per_second=section.bytes_per_second,
    )
