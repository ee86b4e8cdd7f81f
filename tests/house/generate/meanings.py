"""What each section and key of agent.toml means, for docs/configuration.md."""

from typing import Final

SECTIONS: Final[dict[str, str]] = {
    "agent": "The identity of this agent, and its own files.",
    "broker": "The RabbitMQ broker, which delivers the tasks and takes the reports.",
    "store": "The store of the backups.",
    "database": "The server that is backed up, through its local socket.",
    "engine": "The program that copies the database.",
    "keys": "Master keys `<id>.key` and recovery keys `<id>.pub`; see [format.md](format.md).",
    "metrics": "Metrics for Prometheus, see [metrics.md](metrics.md). There are none by default.",
    "pipeline": "Limits of the data path. A task's `limits` may lower cores and rate.",
    "log": "The daemon's log; see [operations.md](operations.md#logs).",
}

MEANINGS: Final[dict[str, str]] = {
    "agent.instance_id": "id (UUID, lower case) of the instance; this agent takes its tasks",
    "agent.tenant_id": "tenant that owns the backups; part of the default container's name",
    "agent.state_folder": "directory of the journal, the lock and temporary files; each agent "
    "needs its own",
    "agent.restore_reserve_percent": "percentage of the target's filesystem that a restore leaves "
    "free",
    "agent.restore_roots": "directories below which restore tasks may write; none means that no "
    "task may restore",
    "agent.progress_seconds": "seconds between two progress reports",
    "broker.url": "`amqp://user@host:port/vhost` or `amqps://...`, never with a password in it",
    "broker.password_file": "file with the password of that user; without it, the login is by "
    "`certificate_file`",
    "broker.control_url": "like `url`, with the user that the commands send tasks as; none means "
    "the agent's own user",
    "broker.control_password_file": "file with the password of the user in `control_url`",
    "broker.queue_type": "type of the queues that the agent creates; existing queues keep their "
    "type",
    "broker.ca_file": "certificates of the authorities to trust for the broker's certificate, "
    "instead of those of the system; see [operations.md](operations.md#tls)",
    "broker.certificate_file": "certificate that the agent shows to the broker (PEM)",
    "broker.key_file": "private key of that certificate, without a passphrase",
    "broker.control_certificate_file": "like `certificate_file`, for `control_url`",
    "broker.control_key_file": "private key of that certificate",
    "store.url": "`swift:` and the URL of a login, or `file:///` and a directory. `swift:` alone "
    "is the OpenStack cloud of `cloud`, of `OS_CLOUD` or of `OS_AUTH_URL`",
    "store.auth": "kind of the login at `url`: Swift's own, or one of Keystone's; see "
    "[stores.md](stores.md#keystone)",
    "store.user": "user, such as `account:user` for `v1`; required for `v1` and `v3password`",
    "store.key_file": "file with the key, the password, the secret of the application credential, "
    "or the token; required for a `url` that begins with `swift:http`",
    "store.application_credential": "id of the application credential; required for "
    "`v3applicationcredential`",
    "store.user_domain": "domain of the user",
    "store.project": "project that owns the containers; required for `v3password` and `v3token`",
    "store.project_domain": "domain of the project",
    "store.cloud": "name of a cloud in clouds.yaml, instead of `url`",
    "store.region": "region of the object store in Keystone's catalogue; required if there are "
    "several",
    "store.interface": "interface of the object store in Keystone's catalogue",
    "store.container": "name of the container; none means `database_backups_<tenant_id>`. Segments "
    "are in `<container>_segments`",
    "store.ca_file": "certificates of the authorities to trust for the store's certificate, "
    "instead of those of the system; see [operations.md](operations.md#tls)",
    "store.storage_urls": "storage URLs that a task may name if it brings its own token",
    "store.projects": "ids of Keystone's projects that a task may name if it brings its own token; "
    "`tenant_id` may always be named",
    "store.timeout_seconds": "seconds to wait for an answer",
    "store.attempts": "number of times that a request is tried before it counts as failed",
    "database.socket": "path of the server's socket",
    "database.user": "account of the agent; systemd/grants.sql makes it",
    "database.password_file": "file with the password of that account; none means that the account "
    "logs in by its OS user",
    "engine.kind": "the engine; `auto` chooses it by the server's version, see "
    "[engines.md](engines.md)",
    "engine.program": "name or path of the engine; none means its usual name",
    "engine.extractor": "name or path of `mbstream` or `xbstream`; none means the engine's own",
    "engine.lock_wait_seconds": "seconds that the engine may wait for the server's backup lock",
    "engine.silent_seconds": "seconds that the engine may write nothing before it is ended",
    "engine.uncopied_engines": "storage engines of tables that may lack their data in a backup, "
    'such as `["CONNECT"]`',
    "engine.safe_slave_backup": "`true` stops the SQL thread of a replica during the backup",
    "engine.options": 'options for the engine, each as `--name=value`, such as `["--parallel=4"]`; '
    "only those that [engines.md](engines.md#options-of-your-own) lists",
    "engine.register_redo_log_consumer": "`true` makes the server keep redo log until the engine "
    "has read it (MySQL 8.0.30 and later)",
    "engine.prepare_memory_bytes": "memory of `--prepare` during a restore, in bytes",
    "keys.folder": "directory of the key files",
    "keys.active": "id of the master key for new backups and records",
    "keys.recovery": "ids of the recovery keys that can open new backups, too",
    "keys.encrypt": "`false` stores new backups unencrypted",
    "keys.allow_plaintext": "`true` allows reading backups that were stored unencrypted",
    "pipeline.memory_bytes": "memory of all buffers of one backup or restore, in bytes",
    "pipeline.segment_bytes": "size of a stored segment in bytes; raised if one object could not "
    "join all segments",
    "pipeline.connections": "number of parallel requests to the store",
    "pipeline.cores": "number of cores for compression; 0 means all that this process may use",
    "pipeline.level": "gzip level of ISA-L",
    "pipeline.bytes_per_second": "limit of the raw stream in bytes a second; none means no limit",
    "log.format": "form of a line; `auto` means `journal` if standard error leads to the systemd "
    "journal, else `text`. A command on a terminal always writes text",
    "log.level": "lowest level that `run` logs; `--quiet` and `--verbose` override it",
    "metrics.listen": "loopback address and port of the daemon's metrics, such as "
    "`127.0.0.1:9399` or `[::1]:9399`",
    "metrics.textfile": "file for node_exporter's textfile collector, an absolute path that ends "
    "in `.prom`",
}
