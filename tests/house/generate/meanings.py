"""What each section and key of agent.toml means, for docs/configuration.md."""

from typing import Final

SECTIONS: Final[dict[str, str]] = {
    "agent": "Who this agent is, and where it keeps its own files.",
    "broker": "RabbitMQ, where tasks come from and reports go to.",
    "store": "Where backups are kept.",
    "database": "The server to back up, over its local socket.",
    "engine": "The program that copies the database.",
    "keys": "Master keys `<id>.key` and recovery keys `<id>.pub`; see [format.md](format.md).",
    "pipeline": "What the data path may use. A task's `limits` may lower cores and rate.",
}

MEANINGS: Final[dict[str, str]] = {
    "agent.instance_id": "the id (UUID, lower case) of the instance whose tasks this agent takes",
    "agent.tenant_id": "the tenant that the backups belong to; names the default container",
    "agent.state_folder": "journal, lock and scratch files; one agent a folder",
    "agent.restore_reserve_percent": "how much of its filesystem a restore leaves free, in percent",
    "agent.restore_roots": "folders below which restore tasks may write; none: no restore by task",
    "agent.progress_seconds": "seconds between two progress reports",
    "broker.url": "`amqp://user@host:port/vhost` or `amqps://...`, never with a password in it",
    "broker.password_file": "the user's password",
    "broker.control_url": "as `url`, with the user as which commands send tasks; none: the agent's",
    "broker.control_password_file": "that user's password",
    "broker.queue_type": "of queues that the agent has to create; others are taken as they are",
    "broker.ca_file": "authority of the broker's certificate, where the system doesn't know it",
    "store.url": "`swift:` and the authentication URL (auth v1), or `file:///` and a folder",
    "store.user": "Swift's user, such as `account:user`; needed for `swift:`",
    "store.key_file": "the user's key; needed for `swift:`",
    "store.container": "the container; none: `database_backups_<tenant_id>`. Segments are in "
    "`<container>_segments`",
    "store.ca_file": "authority of the store's certificate, where the system doesn't know it",
    "store.storage_urls": "storage URLs that a task may name, with a token of its own",
    "store.timeout_seconds": "how long to wait for an answer",
    "store.attempts": "how often a request is made before it counts as failed",
    "database.socket": "the server's socket",
    "database.user": "the agent's account; systemd/grants.sql makes it",
    "database.password_file": "its password; none where the account logs in by its OS user",
    "engine.kind": "`auto` goes by the server's own version, see [engines.md](engines.md)",
    "engine.program": "name or path of the engine; none: its usual name",
    "engine.extractor": "name or path of `mbstream` or `xbstream`; none: the engine's own",
    "engine.lock_wait_seconds": "how long the engine may wait for the server's backup lock",
    "engine.silent_seconds": "how long the engine may write nothing before it is ended",
    "engine.uncopied_engines": "storage engines whose tables may lack their data in a backup, such "
    'as `["CONNECT"]`',
    "engine.safe_slave_backup": "on a replica: its SQL thread stands still meanwhile",
    "engine.options": "options for the engine, each as `--name=value`: those that "
    '[engines.md](engines.md#options-of-your-own) lists and no other, as `["--parallel=4"]`',
    "engine.register_redo_log_consumer": "MySQL 8.0.30 and later: the server keeps redo until the "
    "engine has read it",
    "engine.prepare_memory_bytes": "memory of `--prepare` during a restore",
    "keys.folder": "the folder of the key files",
    "keys.active": "the id of the master key for new backups and records",
    "keys.recovery": "ids of the recovery keys that open new backups as well",
    "keys.encrypt": "`false` stores new backups unencrypted",
    "keys.allow_plaintext": "reads backups that were stored unencrypted",
    "pipeline.memory_bytes": "all buffers of a run, a backup or a restore",
    "pipeline.segment_bytes": "size of the stored parts; raised where one object couldn't join all",
    "pipeline.connections": "parallel requests to the store",
    "pipeline.cores": "cores for compression; 0: all that this process may use",
    "pipeline.level": "gzip level of ISA-L",
    "pipeline.bytes_per_second": "limit of the raw stream; none: no limit",
}
