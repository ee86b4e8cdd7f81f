"""Errors of the database, the engine, the store, the broker, the output and the journal."""

from agent.errors.base import AgentError


class DatabaseError(AgentError):
    """The database server refuses or does not answer."""


class DatabaseUnreachable(DatabaseError):
    """The database server does not answer on its socket."""

    code = "database_unreachable"
    default_hint = "check that the server runs and that [database] socket names its socket"


class DatabaseDenied(DatabaseError):
    """The database server refuses the agent's user or password, or the user lacks a grant."""

    code = "database_denied"
    default_hint = "check [database] user and password_file, and the user's grants"


class DatabaseQueryFailed(DatabaseError):
    """The database server answered a query with an error."""

    code = "database_query_failed"
    default_hint = "compare the grants of the agent's database user with docs/engines.md"


class DatadirUnfit(DatabaseError):
    """The datadir has files that no engine can copy, or that would make a restore impossible."""

    code = "datadir_unfit"
    default_hint = "run the agent as the database server's own OS user, on the server's machine"


class EngineError(AgentError):
    """The program `mariadb-backup`, `xtrabackup` or `mbstream` failed."""


class EngineMissing(EngineError):
    """The engine's program is not installed or can't be started."""

    code = "engine_missing"
    default_hint = "install the package mariadb-backup, or set [engine] program to its path"


class EngineUnsupported(EngineError):
    """The engine does not support the server's version."""

    code = "engine_unsupported"
    default_hint = "install the engine of the server's own version (see docs/engines.md)"


class EngineFailed(EngineError):
    """The engine ended with an error."""

    code = "engine_failed"
    default_hint = (
        "read the engine's last lines above for the reason, and the server's error log for more"
    )


class EngineKilled(EngineError):
    """A signal that the agent did not send ended the engine."""

    code = "engine_killed"
    default_hint = (
        "look for the kernel's out-of-memory killer in the system's log (journalctl -k), and give "
        "the machine more memory or the agent's unit a higher MemoryMax"
    )


class EngineSilent(EngineError):
    """The engine wrote nothing for too long."""

    code = "engine_silent"
    default_hint = (
        "look for the reason in the server's process list and error log, and on its disks. If the "
        "engine is only slow, raise [engine] silent_seconds"
    )


class LockTimeout(EngineError):
    """The engine did not get a lock of the server, such as its backup lock, in time."""

    code = "lock_timeout"
    default_hint = (
        "end the session that holds the lock (SHOW PROCESSLIST, KILL), wait until its statement "
        "or LOCK TABLES has ended, or raise [engine] lock_wait_seconds"
    )


class RedoOverwritten(EngineError):
    """The server wrote its redo log faster than the engine could read it."""

    code = "redo_overwritten"
    default_hint = "enlarge the server's redo log, or make the backup at a quieter time"


class EngineUnproved(EngineError):
    """The engine ended with exit status 0, but without its message of success."""

    code = "engine_unproved"
    default_hint = "the engine ended without proof of success: read the server's error log"


class ExtractFailed(EngineError):
    """The files of a backup could not be written to the target."""

    code = "extract_failed"
    default_hint = "check the target's free space and permissions, empty it, and restore again"


class PrepareFailed(EngineError):
    """The engine could not make the extracted files consistent."""

    code = "prepare_failed"
    default_hint = "empty the target, and restore again with an engine of the server's own version"


class StoreError(AgentError):
    """The object store refuses or does not answer.

    `without_effect` is True if each attempt had no effect: the store refused it, or the agent sent
    nothing. If it is False, a write may still reach the store.
    """

    without_effect = False


class StoreUnreachable(StoreError):
    """The store does not answer."""

    code = "store_unreachable"
    retryable = True
    default_hint = "check the network, the store, and the URL of its login ([store] url)"


class StoreSilent(StoreUnreachable):
    """The store accepted the request, but made no progress and sent no answer in time."""

    code = "store_silent"
    default_hint = "check the store's health and the network (the limit is [store] timeout_seconds)"


class StoreUntrusted(StoreError):
    """The store's certificate can't be trusted, so the agent sends it nothing."""

    code = "store_untrusted"
    default_hint = "give the store a valid certificate, or name its authority in [store] ca_file"


class StoreBusy(StoreError):
    """The store answers that it can't serve the request at the moment."""

    code = "store_busy"
    retryable = True
    default_hint = "the store is overloaded or fails: try again later"


class StoreMismatch(StoreError):
    """The bytes that the store holds or returned differ from those that were sent or announced."""

    code = "store_mismatch"
    retryable = True
    default_hint = "the stored bytes differ from the sent ones: check the store and the network"


class StoreDenied(StoreError):
    """The store refuses the user or the key, or the user lacks a right."""

    code = "store_denied"
    default_hint = "check [store] user and key_file, and the account's rights on the container"


class LoginDenied(StoreDenied):
    """The login of the store refuses the user, the key, the application credential or the project.

    At Keystone an application credential that was deleted or has expired is such a case.
    """

    code = "login_denied"
    default_hint = "check [store] user and key_file, and that the user is not disabled"


class LoginRejected(StoreError):
    """The URL of the login does not answer as a login of this kind does."""

    code = "login_rejected"
    default_hint = "check the URL of the login: [store] url, auth_url in clouds.yaml or OS_AUTH_URL"


class StoreRedirected(StoreError):
    """The store redirects a request to another address, which is not followed."""

    code = "store_redirected"
    default_hint = "check [store] url, and the proxies between the agent and the store"


class TokenRefused(StoreDenied):
    """The store refuses a token that its login has just granted.

    Swift and Ceph's gateway do so while they can't reach Keystone. Ceph's gateway also does so if
    the user has no role that it accepts.
    """

    code = "token_refused"
    retryable = True
    default_hint = (
        "check that the store can reach Keystone (see authtoken in the log of Swift's proxy, and "
        "`rgw keystone url` of Ceph's gateway), that both belong to the same cloud, and that the "
        "user has a role that the store accepts (`rgw keystone accepted roles`, case-sensitive)"
    )


class EndpointMissing(StoreError):
    """The catalogue of Keystone has no object store for the region and the interface."""

    code = "endpoint_missing"
    default_hint = (
        "correct [store] region and interface (for clouds.yaml region_name and interface, for the "
        "environment OS_REGION_NAME and OS_INTERFACE), or choose another project"
    )


class TokenExpired(StoreError):
    """The store refuses the task's token, usually because it expired, and there is no other one."""

    code = "token_expired"
    default_hint = "send the task again with a token that is valid for the whole backup"


class StoreNotFound(StoreError):
    """The store has no such object or container."""

    code = "store_not_found"
    default_hint = (
        "the first backup makes a missing container. If there was a backup, check its id and the "
        "address of the store: --store or [store] url, [store] container, and [agent] tenant_id, "
        "which is usually a part of the container's name"
    )


class StoreFull(StoreError):
    """The store has no room left, because a quota is reached or a disk is full."""

    code = "store_full"
    default_hint = "raise the account's quota, or delete old backups"


class StoreRejected(StoreError):
    """The store does not accept a request of this kind or size."""

    code = "store_rejected"
    default_hint = "the store does not accept the request: see Limits in the README"


class Fenced(StoreError):
    """Another attempt owns the backup, or the backup's chain is broken, so nothing was written."""

    code = "fenced"
    default_hint = "another agent or a later attempt owns this backup: look at its record"


class BrokerError(AgentError):
    """RabbitMQ refuses or does not answer."""


class BrokerUnreachable(BrokerError):
    """RabbitMQ does not answer, or the connection was lost."""

    code = "broker_unreachable"
    retryable = True
    default_hint = "check that RabbitMQ runs and that [broker] url names it"


class BrokerSilent(BrokerUnreachable):
    """The connection to RabbitMQ is open, but RabbitMQ does not answer or confirm in time."""

    code = "broker_silent"
    default_hint = (
        "check RabbitMQ's health (an alarm for memory or disk makes it stop taking messages)"
    )


class BrokerUntrusted(BrokerError):
    """RabbitMQ's certificate can't be trusted, or RabbitMQ refuses the agent's certificate."""

    code = "broker_untrusted"
    default_hint = "see TLS in docs/operations.md"


class BrokerDenied(BrokerError):
    """RabbitMQ refuses the user, the password or the virtual host, or the user lacks a right."""

    code = "broker_denied"
    default_hint = (
        "check the user and virtual host in [broker] url, the password_file, and the user's rights"
    )


class InstanceNotServed(BrokerError):
    """There is no queue for that instance, so no agent would get the task."""

    code = "instance_not_served"
    default_hint = "check the instance id, and that an agent ran for it at least once"


class Unroutable(BrokerError):
    """No queue is bound that would take the message."""

    code = "unroutable"
    retryable = True
    default_hint = "bind a queue to the exchange backup.reports, and read the reports from it"


class QueueFull(BrokerError):
    """A queue that would take the message is full, and refuses it (`reject-publish`)."""

    code = "queue_full"
    retryable = True
    default_hint = (
        "read the messages of the queue, or raise its limit (the agent keeps its reports and "
        "tries again)"
    )


class ReplyTimeout(BrokerError):
    """The agent sent no report for too long, but the task may still be running."""

    code = "reply_timeout"
    default_hint = "the agent did not answer in time: see its log on the database VM"


class OutputFailed(AgentError):
    """Standard output can't be written, because it is closed or its disk is full."""

    code = "output_failed"
    default_hint = "the request may be done already: check with backup-list or status"


class JournalError(AgentError):
    """The agent's own journal can't be read or written."""

    code = "journal_failed"
    default_hint = "check the free space and permissions of [agent] state_folder"


class JournalFull(JournalError):
    """The journal has reached its limit of unfinished tasks or unsent reports."""

    code = "journal_full"
    default_hint = "wait until running tasks end (new tasks stay on the broker)"
