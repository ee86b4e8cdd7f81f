"""All errors of the agent, in one tree.

    AgentError
    ├── ConfigInvalid            config_invalid        a wrong configuration value
    │   ├── UsageWrong           usage_wrong
    │   └── KeyUnusable          key_unusable          a master key file
    ├── TaskRefused                                    the request can't be done as it stands
    │   ├── MessageUnreadable    message_unreadable
    │   ├── TaskUnsupported      task_unsupported
    │   ├── TaskUnknown          task_unknown
    │   ├── BackupUnknown        backup_unknown
    │   ├── BackupExists         backup_exists
    │   ├── BackupUnusable       backup_unusable       it exists but isn't COMPLETED
    │   ├── BackupBusy           backup_busy           a task that can't be stopped uses it
    │   ├── InstanceBusy         instance_busy         datadir or state directory in use
    │   ├── TooLate              too_late              the task can't be cancelled any more
    │   ├── StorageRefused       storage_refused       a container or URL not allowed here
    │   ├── TokenLost            token_lost
    │   ├── ParentUnknown        parent_unknown
    │   ├── ParentUnusable       parent_unusable
    │   ├── LineageChanged       lineage_changed
    │   ├── TargetRefused        target_refused
    │   └── SpaceLacking         space_lacking
    ├── DatabaseError
    │   ├── DatabaseUnreachable  database_unreachable
    │   ├── DatabaseDenied       database_denied
    │   ├── DatabaseQueryFailed  database_query_failed
    │   └── DatadirUnfit         datadir_unfit         files that can't be copied or restored
    ├── EngineError
    │   ├── EngineMissing        engine_missing
    │   ├── EngineUnsupported    engine_unsupported    it does not fit this server
    │   ├── EngineFailed         engine_failed
    │   ├── EngineKilled         engine_killed         by another process's signal
    │   ├── EngineSilent         engine_silent
    │   ├── LockTimeout          lock_timeout
    │   ├── RedoOverwritten      redo_overwritten
    │   ├── EngineUnproved       engine_unproved       exit status 0 without proof of success
    │   ├── ExtractFailed        extract_failed
    │   └── PrepareFailed        prepare_failed
    ├── StreamError
    │   ├── StreamInvalid        stream_invalid        not a complete xbstream
    │   ├── StreamIncomplete     stream_incomplete     a part of the database is missing
    │   └── LsnMismatch          lsn_mismatch
    ├── DataError
    │   ├── DataDamaged          data_damaged          stored bytes fail a check
    │   ├── ContentRefused       content_refused       unsafe content, never restored
    │   ├── RecordDamaged        record_damaged
    │   ├── RecordUnsupported    record_unsupported
    │   ├── KeyNotHere           key_not_here
    │   └── PlaintextRefused     plaintext_refused     unencrypted, not allowed here
    ├── StoreError
    │   ├── StoreUnreachable     store_unreachable     retryable
    │   │   └── StoreSilent      store_silent          retryable
    │   ├── StoreUntrusted       store_untrusted       its certificate can't be trusted
    │   ├── StoreBusy            store_busy            retryable
    │   ├── StoreMismatch        store_mismatch        retryable: stored bytes differ from sent
    │   ├── StoreDenied          store_denied
    │   │   ├── LoginDenied      login_denied
    │   │   └── TokenRefused     token_refused         retryable
    │   ├── LoginRejected        login_rejected        its URL is not one of a login
    │   ├── EndpointMissing      endpoint_missing      not in the catalogue of Keystone
    │   ├── StoreRedirected      store_redirected
    │   ├── TokenExpired         token_expired
    │   ├── StoreNotFound        store_not_found
    │   ├── StoreFull            store_full
    │   ├── StoreRejected        store_rejected
    │   └── Fenced               fenced                another attempt owns the record
    ├── BrokerError
    │   ├── BrokerUnreachable    broker_unreachable    retryable
    │   │   └── BrokerSilent     broker_silent         retryable
    │   ├── BrokerUntrusted      broker_untrusted      a certificate is refused
    │   ├── BrokerDenied         broker_denied
    │   ├── InstanceNotServed    instance_not_served   no queue for that instance
    │   ├── Unroutable           unroutable            retryable: no queue is bound for it
    │   ├── QueueFull            queue_full            retryable: a full queue refuses it
    │   └── ReplyTimeout         reply_timeout
    ├── OutputFailed             output_failed         standard output is full or closed
    ├── JournalError             journal_failed
    │   └── JournalFull          journal_full
    ├── Interrupted              interrupted           the agent was stopped or died
    ├── Cancelled                cancelled
    └── Internal                 internal              a defect of the agent itself

The `code` of a class is part of the wire contract, because reports and records carry it. So a
code is never reused for another meaning. The `hint` of an error says how to fix the problem.
"""

from agent.errors.base import (
    AgentError as AgentError,
    Cancelled as Cancelled,
    Internal as Internal,
    Interrupted as Interrupted,
)
from agent.errors.content import (
    ContentRefused as ContentRefused,
    DataDamaged as DataDamaged,
    DataError as DataError,
    KeyNotHere as KeyNotHere,
    LsnMismatch as LsnMismatch,
    PlaintextRefused as PlaintextRefused,
    RecordDamaged as RecordDamaged,
    RecordUnsupported as RecordUnsupported,
    StreamError as StreamError,
    StreamIncomplete as StreamIncomplete,
    StreamInvalid as StreamInvalid,
)
from agent.errors.edges import (
    BrokerDenied as BrokerDenied,
    BrokerError as BrokerError,
    BrokerSilent as BrokerSilent,
    BrokerUnreachable as BrokerUnreachable,
    BrokerUntrusted as BrokerUntrusted,
    DatabaseDenied as DatabaseDenied,
    DatabaseError as DatabaseError,
    DatabaseQueryFailed as DatabaseQueryFailed,
    DatabaseUnreachable as DatabaseUnreachable,
    DatadirUnfit as DatadirUnfit,
    EndpointMissing as EndpointMissing,
    EngineError as EngineError,
    EngineFailed as EngineFailed,
    EngineKilled as EngineKilled,
    EngineMissing as EngineMissing,
    EngineSilent as EngineSilent,
    EngineUnproved as EngineUnproved,
    EngineUnsupported as EngineUnsupported,
    ExtractFailed as ExtractFailed,
    Fenced as Fenced,
    InstanceNotServed as InstanceNotServed,
    JournalError as JournalError,
    JournalFull as JournalFull,
    LockTimeout as LockTimeout,
    LoginDenied as LoginDenied,
    LoginRejected as LoginRejected,
    OutputFailed as OutputFailed,
    PrepareFailed as PrepareFailed,
    QueueFull as QueueFull,
    RedoOverwritten as RedoOverwritten,
    ReplyTimeout as ReplyTimeout,
    StoreBusy as StoreBusy,
    StoreDenied as StoreDenied,
    StoreError as StoreError,
    StoreFull as StoreFull,
    StoreMismatch as StoreMismatch,
    StoreNotFound as StoreNotFound,
    StoreRedirected as StoreRedirected,
    StoreRejected as StoreRejected,
    StoreSilent as StoreSilent,
    StoreUnreachable as StoreUnreachable,
    StoreUntrusted as StoreUntrusted,
    TokenExpired as TokenExpired,
    TokenRefused as TokenRefused,
    Unroutable as Unroutable,
)
from agent.errors.requests import (
    BackupBusy as BackupBusy,
    BackupExists as BackupExists,
    BackupUnknown as BackupUnknown,
    BackupUnusable as BackupUnusable,
    ConfigInvalid as ConfigInvalid,
    InstanceBusy as InstanceBusy,
    KeyUnusable as KeyUnusable,
    LineageChanged as LineageChanged,
    MessageUnreadable as MessageUnreadable,
    ParentUnknown as ParentUnknown,
    ParentUnusable as ParentUnusable,
    SpaceLacking as SpaceLacking,
    StorageRefused as StorageRefused,
    TargetRefused as TargetRefused,
    TaskRefused as TaskRefused,
    TaskUnknown as TaskUnknown,
    TaskUnsupported as TaskUnsupported,
    TokenLost as TokenLost,
    TooLate as TooLate,
    UsageWrong as UsageWrong,
)
