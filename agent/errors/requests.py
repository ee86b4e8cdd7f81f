"""What was asked for or configured can't be done as it stands."""

from agent.errors.base import AgentError


class ConfigInvalid(AgentError):
    """The configuration can't be read, or a value in it is wrong or doesn't fit the machine.

    A file or folder that it names, such as a secret or the datadir, may be missing or closed to
    this user.
    """

    code = "config_invalid"
    exit_status = 2
    default_hint = (
        "correct that in agent.toml, or in the BACKUP_AGENT_ variable that sets it; "
        "docs/configuration.md has every key"
    )


class UsageWrong(ConfigInvalid):
    """The command can't be done with what was typed."""

    code = "usage_wrong"
    default_hint = "run the command with --help to see what it takes"


class KeyUnusable(ConfigInvalid):
    """A key file is missing, has not the form of a key, or is open to others."""

    code = "key_unusable"
    default_hint = (
        "a master key is a file named <id>.key, mode 0600, holding 32 random bytes in base64"
    )


class TaskRefused(AgentError):
    """The request itself can't be done; repeating it unchanged won't help."""


class MessageUnreadable(TaskRefused):
    """The message is no task: not JSON, too long, or a field is wrong."""

    code = "message_unreadable"
    default_hint = "compare the message with 'Tasks and reports' in the README"


class TaskUnsupported(TaskRefused):
    """The task is of a type that this agent does not do."""

    code = "task_unsupported"
    default_hint = "this version of the agent does not do that kind of task"


class TaskUnknown(TaskRefused):
    """The journal knows no task of that id."""

    code = "task_unknown"
    default_hint = "check the task id; the agent forgets tasks that ended long ago"


class BackupUnknown(TaskRefused):
    """The store has no record of that backup."""

    code = "backup_unknown"
    default_hint = (
        "see what there is with backup-list, with the same --store or --config if there was one"
    )


class BackupExists(TaskRefused):
    """The id of the backup to be made is taken."""

    code = "backup_exists"
    default_hint = "use a fresh id for each backup"


class BackupUnusable(TaskRefused):
    """The backup or one of its ancestors is not COMPLETED, or they do not fit together."""

    code = "backup_unusable"
    default_hint = "only a COMPLETED backup whose ancestors are all COMPLETED can be restored"


class BackupBusy(TaskRefused):
    """A task that can't be ended is at work on the backup."""

    code = "backup_busy"
    default_hint = "wait until the running task on that backup has ended, then try again"


class InstanceBusy(TaskRefused):
    """Another agent or command makes a backup of the same datadir, or has the same state folder."""

    code = "instance_busy"
    default_hint = "wait until the other agent's backup of this datadir has ended"


class TooLate(TaskRefused):
    """The task that is to be cancelled has ended, or can't be ended any more."""

    code = "too_late"
    default_hint = "the task is done or about to be; delete the backup if it isn't wanted"


class StorageRefused(TaskRefused):
    """The task names a container or a storage URL that isn't one for this agent."""

    code = "storage_refused"
    default_hint = "name a container of the tenant, and a URL that [store] storage_urls lists"


class TokenLost(TaskRefused):
    """The agent ended while it had the task's token, which it keeps in memory only."""

    code = "token_lost"
    default_hint = "send the task again, with a fresh task id and a fresh token"


class ParentUnknown(TaskRefused):
    """The store has no record of the parent that was named."""

    code = "parent_unknown"
    default_hint = "name an existing COMPLETED backup as parent, or make a full backup"


class ParentUnusable(TaskRefused):
    """The parent that was named can't be continued."""

    code = "parent_unusable"
    default_hint = "name a COMPLETED backup of this instance as parent, or make a full backup"


class LineageChanged(TaskRefused):
    """An incremental on the parent would lack something.

    The datadir is not the one that it was made of (restored, replaced, rolled back), or has a table
    with pages of another past: imported, put in place, half-made while the parent was made.
    """

    code = "lineage_changed"
    default_hint = (
        "the datadir's history changed since the parent was made: make a full backup; with "
        'on_broken_chain = "full" it is made by itself'
    )


class TargetRefused(TaskRefused):
    """The folder to restore into is not empty, not allowed, or can't be used."""

    code = "target_refused"
    default_hint = "restore into an empty or missing folder; a task's lies below a restore root"


class SpaceLacking(TaskRefused):
    """The filesystem has not enough free space for what was asked."""

    code = "space_lacking"
    default_hint = "free some space on that filesystem or name another target"
