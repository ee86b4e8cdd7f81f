"""Every error of the agent, in one tree.

    AgentError
    ├── ConfigInvalid            config_invalid        what the operator wrote is wrong
    │   ├── UsageWrong           usage_wrong
    │   └── KeyUnusable          key_unusable          a master key file
    ├── TaskRefused                                    the request can't be done as asked
    │   ├── MessageUnreadable    message_unreadable
    │   ├── TaskUnsupported      task_unsupported
    │   ├── TaskUnknown          task_unknown
    │   ├── BackupUnknown        backup_unknown
    │   ├── BackupExists         backup_exists
    │   ├── BackupUnusable       backup_unusable       it exists but isn't COMPLETED
    │   ├── ParentUnknown        parent_unknown
    │   ├── ParentUnusable       parent_unusable
    │   ├── LineageChanged       lineage_changed
    │   ├── TargetRefused        target_refused
    │   └── SpaceLacking         space_lacking
    ├── DatabaseError
    │   ├── DatabaseUnreachable  database_unreachable
    │   ├── DatabaseDenied       database_denied
    │   └── DatabaseQueryFailed  database_query_failed
    ├── EngineError
    │   ├── EngineMissing        engine_missing
    │   ├── EngineFailed         engine_failed
    │   ├── EngineUnproved       engine_unproved       exit 0, yet no proof of success
    │   ├── ExtractFailed        extract_failed
    │   └── PrepareFailed        prepare_failed
    ├── StreamError
    │   ├── StreamInvalid        stream_invalid        not a whole xbstream
    │   ├── StreamIncomplete     stream_incomplete     something is missing in it
    │   └── LsnMismatch          lsn_mismatch
    ├── DataError
    │   ├── DataDamaged          data_damaged          stored bytes fail a check
    │   ├── RecordDamaged        record_damaged
    │   ├── RecordUnsupported    record_unsupported
    │   └── KeyNotHere           key_not_here
    ├── StoreError
    │   ├── StoreUnreachable     store_unreachable     retryable
    │   ├── StoreBusy            store_busy            retryable
    │   ├── StoreMismatch        store_mismatch        retryable: stored bytes differ from sent
    │   ├── StoreDenied          store_denied
    │   ├── StoreNotFound        store_not_found
    │   ├── StoreFull            store_full
    │   ├── StoreRejected        store_rejected
    │   └── Fenced               fenced                another attempt owns the record
    ├── BrokerError
    │   ├── BrokerUnreachable    broker_unreachable    retryable
    │   ├── BrokerDenied         broker_denied
    │   ├── InstanceNotServed    instance_not_served   no queue for that instance
    │   ├── Unroutable           unroutable            retryable: nobody is bound to read it
    │   └── ReplyTimeout         reply_timeout
    ├── JournalError             journal_failed
    │   └── JournalFull          journal_full
    ├── Interrupted              interrupted           the agent was stopped or died
    ├── Cancelled                cancelled
    └── Internal                 internal              a defect of the agent itself

A leaf's `code` is part of the wire contract: reports and records carry it, so
codes are never reused for another meaning. `hint` says what to do about it.
"""

from typing import ClassVar


class AgentError(Exception):
    """Base of all errors; `str(error)` says what failed and why, `hint` what to do."""

    code: ClassVar[str] = ""
    exit_status: ClassVar[int] = 1
    retryable: ClassVar[bool] = False
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = self.default_hint if hint is None else hint


class ConfigInvalid(AgentError):
    code = "config_invalid"
    exit_status = 2
    default_hint = "correct the configuration file or the BACKUP_AGENT_ variable named above"


class UsageWrong(ConfigInvalid):
    code = "usage_wrong"
    default_hint = "run the command with --help to see what it takes"


class KeyUnusable(ConfigInvalid):
    code = "key_unusable"
    default_hint = (
        "a master key is a file named <id>.key, mode 0600, holding 32 random bytes in base64"
    )


class TaskRefused(AgentError):
    """The request itself can't be done; repeating it unchanged won't help."""


class MessageUnreadable(TaskRefused):
    code = "message_unreadable"
    default_hint = "compare the message with 'Tasks and reports' in the README"


class TaskUnsupported(TaskRefused):
    code = "task_unsupported"
    default_hint = "this version of the agent does not do that kind of task"


class TaskUnknown(TaskRefused):
    code = "task_unknown"
    default_hint = "check the task id; the agent forgets tasks that ended long ago"


class BackupUnknown(TaskRefused):
    code = "backup_unknown"
    default_hint = "see what there is with: backup-agent backup-list"


class BackupExists(TaskRefused):
    code = "backup_exists"
    default_hint = "use a fresh id for each backup"


class BackupUnusable(TaskRefused):
    code = "backup_unusable"
    default_hint = "only a COMPLETED backup whose ancestors are all COMPLETED can be restored"


class ParentUnknown(TaskRefused):
    code = "parent_unknown"
    default_hint = "name an existing COMPLETED backup as parent, or make a full backup"


class ParentUnusable(TaskRefused):
    code = "parent_unusable"
    default_hint = "name a COMPLETED backup of this instance as parent, or make a full backup"


class LineageChanged(TaskRefused):
    code = "lineage_changed"
    default_hint = "the datadir's history changed since the parent was made: make a full backup"


class TargetRefused(TaskRefused):
    code = "target_refused"
    default_hint = "restore into an empty folder under one of the configured restore roots"


class SpaceLacking(TaskRefused):
    code = "space_lacking"
    default_hint = "free some space on that filesystem or name another target"


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


class StreamError(AgentError):
    """The engine's stream is not the backup that was asked for."""


class StreamInvalid(StreamError):
    code = "stream_invalid"
    default_hint = "the engine's output is not a whole xbstream; check the engine's version"


class StreamIncomplete(StreamError):
    code = "stream_incomplete"
    default_hint = "the stream lacks a part of the database; run a full backup again"


class LsnMismatch(StreamError):
    code = "lsn_mismatch"
    default_hint = "the stream does not continue its parent; make a full backup"


class DataError(AgentError):
    """Stored bytes can't be trusted or can't be opened."""


class DataDamaged(DataError):
    code = "data_damaged"
    default_hint = "the stored bytes were changed or lost; restore another backup of the chain"


class RecordDamaged(DataError):
    code = "record_damaged"
    default_hint = "the record was changed after it was written; treat the backup as lost"


class RecordUnsupported(DataError):
    code = "record_unsupported"
    default_hint = "upgrade this agent to the version that made the backup, or a later one"


class KeyNotHere(DataError):
    code = "key_not_here"
    default_hint = "put the key file with that id into the folder named by [keys] folder"


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


class Interrupted(AgentError):
    code = "interrupted"
    default_hint = "the agent stopped before the task ended; send it again with a fresh task id"


class Cancelled(AgentError):
    code = "cancelled"
    default_hint = "someone cancelled the task"


class Internal(AgentError):
    code = "internal"
    default_hint = "this is a defect of backup-agent: report it with the agent's log"
