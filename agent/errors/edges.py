"""Foreign things that refuse or don't answer: database, engine, store, broker, journal."""

from agent.errors.base import AgentError


class DatabaseError(AgentError):
    """The database server refuses or does not answer."""


class DatabaseUnreachable(DatabaseError):
    code = "database_unreachable"
    default_hint = "check that the server runs and that [database] socket names its socket"


class DatabaseDenied(DatabaseError):
    code = "database_denied"
    default_hint = "check [database] user and password_file, and the user's grants"


class DatabaseQueryFailed(DatabaseError):
    code = "database_query_failed"
    default_hint = "check the grants of the agent's database user against the README"


class EngineError(AgentError):
    """`mariadb-backup`, `xtrabackup` or `mbstream` failed."""


class EngineMissing(EngineError):
    code = "engine_missing"
    default_hint = "install the package mariadb-backup, or set [engine] program to its path"


class EngineUnsupported(EngineError):
    code = "engine_unsupported"
    default_hint = "install the engine of the server's own version; see docs/engines.md"


class EngineFailed(EngineError):
    code = "engine_failed"
    default_hint = "the engine's last lines above tell why; the server's error log may tell more"


class EngineUnproved(EngineError):
    code = "engine_unproved"
    default_hint = "the engine ended without proof of success; look at the server's error log"


class ExtractFailed(EngineError):
    code = "extract_failed"
    default_hint = "check the target's free space and permissions, empty it and restore again"


class PrepareFailed(EngineError):
    code = "prepare_failed"
    default_hint = "empty the target and restore again with an engine of the server's own version"


class StoreError(AgentError):
    """The object store refuses or does not answer."""


class StoreUnreachable(StoreError):
    code = "store_unreachable"
    retryable = True
    default_hint = "check the network and that [store] url names the Swift authentication URL"


class StoreBusy(StoreError):
    code = "store_busy"
    retryable = True
    default_hint = "the store is overloaded or failing; try again later"


class StoreMismatch(StoreError):
    code = "store_mismatch"
    retryable = True
    default_hint = "what the store holds differs from what was sent; check it and the network"


class StoreDenied(StoreError):
    code = "store_denied"
    default_hint = "check [store] user and key_file, and the account's rights on the container"


class StoreNotFound(StoreError):
    code = "store_not_found"
    default_hint = "the object or container does not exist; check the id and [store] container"


class StoreFull(StoreError):
    code = "store_full"
    default_hint = "raise the account's quota or delete old backups"


class StoreRejected(StoreError):
    code = "store_rejected"
    default_hint = "the store does not accept the request; see Limits in the README"


class Fenced(StoreError):
    code = "fenced"
    default_hint = "another agent or a later attempt owns this backup; look at its record"


class BrokerError(AgentError):
    """RabbitMQ refuses or does not answer."""


class BrokerUnreachable(BrokerError):
    code = "broker_unreachable"
    retryable = True
    default_hint = "check that RabbitMQ runs and that [broker] url names it"


class BrokerDenied(BrokerError):
    code = "broker_denied"
    default_hint = "check the user and virtual host in [broker] url, password_file, and its rights"


class InstanceNotServed(BrokerError):
    code = "instance_not_served"
    default_hint = "check the instance id, and that an agent has run for it at least once"


class Unroutable(BrokerError):
    code = "unroutable"
    retryable = True
    default_hint = "bind a queue to the exchange backup.reports so that reports are read"


class ReplyTimeout(BrokerError):
    code = "reply_timeout"
    default_hint = "the agent did not answer in time; see its log on the database VM"


class JournalError(AgentError):
    code = "journal_failed"
    default_hint = "check the free space and permissions of [agent] state_folder"


class JournalFull(JournalError):
    code = "journal_full"
    default_hint = "wait until running tasks end; new tasks stay on the broker"
