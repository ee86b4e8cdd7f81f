"""Foreign things that refuse or don't answer: database, engine, store, broker, journal."""

from agent.errors.base import AgentError


class DatabaseError(AgentError):
    """The database server refuses or does not answer."""


class DatabaseUnreachable(DatabaseError):
    """The database server does not answer on its socket."""

    code = "database_unreachable"
    default_hint = "check that the server runs and that [database] socket names its socket"


class DatabaseDenied(DatabaseError):
    """The database server refuses the agent's user or password, or lacks a grant."""

    code = "database_denied"
    default_hint = "check [database] user and password_file, and the user's grants"


class DatabaseQueryFailed(DatabaseError):
    """The database server answered a query with an error."""

    code = "database_query_failed"
    default_hint = "compare the grants of the agent's database user with docs/engines.md"


class DatadirUnfit(DatabaseError):
    """The datadir holds what no engine can copy, or what no backup of it could be restored with."""

    code = "datadir_unfit"
    default_hint = "run the agent as the database server's own OS user, on the server's machine"


class EngineError(AgentError):
    """`mariadb-backup`, `xtrabackup` or `mbstream` failed."""


class EngineMissing(EngineError):
    """The engine's program is not installed or can't be started."""

    code = "engine_missing"
    default_hint = "install the package mariadb-backup, or set [engine] program to its path"


class EngineUnsupported(EngineError):
    """The engine is not one for this server's version."""

    code = "engine_unsupported"
    default_hint = "install the engine of the server's own version; see docs/engines.md"


class EngineFailed(EngineError):
    """The engine ended with an error."""

    code = "engine_failed"
    default_hint = "the engine's last lines above tell why; the server's error log may tell more"


class EngineKilled(EngineError):
    """The engine was ended by a signal that the agent did not send."""

    code = "engine_killed"
    default_hint = (
        "look for the kernel's out-of-memory killer in the system's log (journalctl -k), and give "
        "the machine more memory or the agent's unit a higher MemoryMax"
    )


class EngineSilent(EngineError):
    """The engine has written nothing for too long."""

    code = "engine_silent"
    default_hint = (
        "see what the engine waits for in the server's process list and error log, and on its "
        "disks; where it is only slow, raise [engine] silent_seconds"
    )


class LockTimeout(EngineError):
    """A lock of the server, such as its backup lock, was not to be had in time."""

    code = "lock_timeout"
    default_hint = (
        "end the session that holds it (SHOW PROCESSLIST, KILL), wait until its statement or LOCK "
        "TABLES has ended, or raise [engine] lock_wait_seconds"
    )


class RedoOverwritten(EngineError):
    """The server wrote its redo log faster than the engine could read it."""

    code = "redo_overwritten"
    default_hint = "enlarge the server's redo log, or make the backup at a quieter time"


class EngineUnproved(EngineError):
    """The engine ended with exit status 0, but without its own words of success."""

    code = "engine_unproved"
    default_hint = "the engine ended without proof of success; look at the server's error log"


class ExtractFailed(EngineError):
    """The files of a backup could not be written to the target."""

    code = "extract_failed"
    default_hint = "check the target's free space and permissions, empty it and restore again"


class PrepareFailed(EngineError):
    """The engine could not make the extracted files consistent."""

    code = "prepare_failed"
    default_hint = "empty the target and restore again with an engine of the server's own version"


class StoreError(AgentError):
    """The object store refuses or does not answer.

    `without_effect`: the store has said that it did not do it, each time that it was asked. Else
    a write may still reach it.
    """

    without_effect = False


class StoreUnreachable(StoreError):
    """The store does not answer."""

    code = "store_unreachable"
    retryable = True
    default_hint = "check the network and that [store] url names the Swift authentication URL"


class StoreSilent(StoreUnreachable):
    """The store took the request, and then neither went on nor answered in time."""

    code = "store_silent"
    default_hint = "check the store's health and the network; [store] timeout_seconds is the limit"


class StoreBusy(StoreError):
    """The store answers that it can't serve the request at the moment."""

    code = "store_busy"
    retryable = True
    default_hint = "the store is overloaded or failing; try again later"


class StoreMismatch(StoreError):
    """What the store holds or returned is not what was sent or announced."""

    code = "store_mismatch"
    retryable = True
    default_hint = "what the store holds differs from what was sent; check it and the network"


class StoreDenied(StoreError):
    """The store refuses the user, the key or the right to do this."""

    code = "store_denied"
    default_hint = "check [store] user and key_file, and the account's rights on the container"


class TokenExpired(StoreError):
    """The store refuses the token that came with the task, for which there is no other."""

    code = "token_expired"
    default_hint = "send the task again with a token that lives for the whole backup"


class StoreNotFound(StoreError):
    """The store has no such object or container."""

    code = "store_not_found"
    default_hint = (
        "the first backup makes what is missing; if there was one, check the id, and where the "
        "store is: --store or [store] url, [store] container, and [agent] tenant_id, which the "
        "container is usually named after"
    )


class StoreFull(StoreError):
    """The store has no room left: a quota, or a full disk."""

    code = "store_full"
    default_hint = "raise the account's quota or delete old backups"


class StoreRejected(StoreError):
    """The store does not accept a request of this kind or size."""

    code = "store_rejected"
    default_hint = "the store does not accept the request; see Limits in the README"


class Fenced(StoreError):
    """Another attempt owns the backup, or its chain is no longer whole: nothing was written."""

    code = "fenced"
    default_hint = "another agent or a later attempt owns this backup; look at its record"


class BrokerError(AgentError):
    """RabbitMQ refuses or does not answer."""


class BrokerUnreachable(BrokerError):
    """RabbitMQ does not answer, or the connection was lost."""

    code = "broker_unreachable"
    retryable = True
    default_hint = "check that RabbitMQ runs and that [broker] url names it"


class BrokerSilent(BrokerUnreachable):
    """RabbitMQ is connected, and does not answer or confirm in time."""

    code = "broker_silent"
    default_hint = "check RabbitMQ's health: an alarm for memory or disk makes it stop taking"


class BrokerDenied(BrokerError):
    """RabbitMQ refuses the user, the password, the virtual host or a right."""

    code = "broker_denied"
    default_hint = "check the user and virtual host in [broker] url, password_file, and its rights"


class InstanceNotServed(BrokerError):
    """There is no queue for that instance, so no agent would get the task."""

    code = "instance_not_served"
    default_hint = "check the instance id, and that an agent has run for it at least once"


class Unroutable(BrokerError):
    """No queue is bound that would take the message."""

    code = "unroutable"
    retryable = True
    default_hint = "bind a queue to the exchange backup.reports so that reports are read"


class QueueFull(BrokerError):
    """A queue that would take the message is full, and refuses it (`reject-publish`)."""

    code = "queue_full"
    retryable = True
    default_hint = (
        "have the queue read, or raise its limit; the agent keeps its reports and tries again"
    )


class ReplyTimeout(BrokerError):
    """The agent has reported nothing for too long; the task may still go on."""

    code = "reply_timeout"
    default_hint = "the agent did not answer in time; see its log on the database VM"


class OutputFailed(AgentError):
    """Standard output takes no more: it is closed, or its disk is full."""

    code = "output_failed"
    default_hint = "what was asked for may be done: look with backup-list or status"


class JournalError(AgentError):
    """The agent's own journal can't be read or written."""

    code = "journal_failed"
    default_hint = "check the free space and permissions of [agent] state_folder"


class JournalFull(JournalError):
    """The journal holds as many unfinished tasks or unsent reports as it may."""

    code = "journal_full"
    default_hint = "wait until running tasks end; new tasks stay on the broker"
