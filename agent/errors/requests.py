"""Errors of configurations and requests that can't be used as they stand."""

from agent.errors.base import AgentError


class ConfigInvalid(AgentError):
    """The configuration can't be read, or a value in it is wrong or doesn't fit the machine.

    A file or directory that it names, such as a secret or the datadir, may be missing or not
    accessible to this user.
    """

    code = "config_invalid"
    exit_status = 2
    default_hint = (
        "correct the value in agent.toml, or in the BACKUP_AGENT_ variable that sets it "
        "(docs/configuration.md describes every key)"
    )


class UsageWrong(ConfigInvalid):
    """The arguments or options of the command are wrong."""

    code = "usage_wrong"
    default_hint = "run the command with --help to see its arguments and options"


class KeyUnusable(ConfigInvalid):
    """A key file is missing, is not a valid key, or is accessible to other users."""

    code = "key_unusable"
    default_hint = (
        "a master key is a file named <id>.key, mode 0600, that holds 32 random bytes in base64"
    )


class TaskRefused(AgentError):
    """The request itself can't be done, and repeating it unchanged won't help."""


class MessageUnreadable(TaskRefused):
    """The message is not a valid task, because it is not JSON, too long, or has a wrong field."""

    code = "message_unreadable"
    default_hint = "compare the message with 'Tasks and reports' in the README"


class TaskUnsupported(TaskRefused):
    """This agent does not support the type of the task."""

    code = "task_unsupported"
    default_hint = (
        "this version of the agent does not support that type of task: check the type, or upgrade "
        "the agent"
    )


class TaskUnknown(TaskRefused):
    """The journal has no task with that id."""

    code = "task_unknown"
    default_hint = "check the task id (the agent forgets tasks that ended long ago)"


class BackupUnknown(TaskRefused):
    """The store has no record of that backup."""

    code = "backup_unknown"
    default_hint = (
        "list the backups with backup-list, with the same --store or --config if the command had "
        "one"
    )


class BackupExists(TaskRefused):
    """The id of the requested backup is already in use."""

    code = "backup_exists"
    default_hint = "use a new id for each backup"


class BackupUnusable(TaskRefused):
    """The backup or one of its ancestors is not COMPLETED, or they do not fit together."""

    code = "backup_unusable"
    default_hint = "only a COMPLETED backup whose ancestors are all COMPLETED can be restored"


class BackupBusy(TaskRefused):
    """A task that can't be stopped works on the backup."""

    code = "backup_busy"
    default_hint = "wait until the running task on that backup has ended, then try again"


class InstanceBusy(TaskRefused):
    """Another agent or command makes a backup of this datadir, or uses the same state directory."""

    code = "instance_busy"
    default_hint = "wait until the other agent's backup of this datadir has ended"


class TooLate(TaskRefused):
    """A cancel came too late, because its task has ended or can't be stopped any more."""

    code = "too_late"
    default_hint = "the task is done or almost done: delete the backup if you don't need it"


class StorageRefused(TaskRefused):
    """The task names a container or a storage URL that this agent may not use."""

    code = "storage_refused"
    default_hint = "name a container of the tenant, and a URL that [store] storage_urls lists"


class TokenLost(TaskRefused):
    """The agent ended and lost the task's token, which it keeps in memory only."""

    code = "token_lost"
    default_hint = "send the task again with a new task id and a new token"


class ParentUnknown(TaskRefused):
    """The store has no record of the parent that the task names."""

    code = "parent_unknown"
    default_hint = "name an existing COMPLETED backup as parent, or make a full backup"


class ParentUnusable(TaskRefused):
    """An incremental backup on the parent that the task names is not possible."""

    code = "parent_unusable"
    default_hint = "name a COMPLETED backup of this instance as parent, or make a full backup"


class LineageChanged(TaskRefused):
    """An incremental backup on the parent would lack data.

    The parent was made from another datadir, or the datadir was restored, replaced or rolled back
    since. Or a table has pages that neither the parent nor an incremental on it has. Such a table
    was imported, its file was put in place, or an ALTER was building it while the parent was made.
    """

    code = "lineage_changed"
    default_hint = (
        "the datadir's history changed since the parent was made: make a full backup. A task with "
        'on_broken_chain = "full" makes one automatically in this case'
    )


class TargetRefused(TaskRefused):
    """The target directory of a restore is not empty, not allowed, or can't be used."""

    code = "target_refused"
    default_hint = (
        "restore into an empty or missing directory (the target of a task must be below one of "
        "the restore roots)"
    )


class SpaceLacking(TaskRefused):
    """The filesystem has too little free space for the request."""

    code = "space_lacking"
    default_hint = "free some space on that filesystem, or name another target"
