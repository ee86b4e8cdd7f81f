"""Errors in the bytes of a backup, from the engine or from the store."""

from agent.errors.base import AgentError


class StreamError(AgentError):
    """The engine's stream is not the requested backup."""


class StreamInvalid(StreamError):
    """The engine's output is a truncated or damaged xbstream, or has an unknown form."""

    code = "stream_invalid"
    default_hint = "the engine's output is not a complete xbstream: check the engine's version"


class StreamIncomplete(StreamError):
    """The xbstream is complete, but a part of the database is missing in it."""

    code = "stream_incomplete"
    default_hint = "a part of the database is missing in the stream: make a full backup again"


class LsnMismatch(StreamError):
    """The stream covers other log sequence numbers (LSNs) than the requested ones."""

    code = "lsn_mismatch"
    default_hint = "the stream does not continue its parent: make a full backup"


class DataError(AgentError):
    """Stored bytes can't be trusted or can't be decrypted."""


class DataDamaged(DataError):
    """Stored bytes were changed, truncated or swapped, or are missing."""

    code = "data_damaged"
    default_hint = "the stored bytes were changed or lost: restore another backup of the chain"


class ContentRefused(DataError):
    """A backup has content that the agent never restores.

    Examples are a path outside the target, an option that is not allowed, and a stream that is no
    backup.
    """

    code = "content_refused"
    default_hint = (
        "if the message names a setting of your server, an earlier agent made this backup without "
        "a check of that setting: change the setting and make a full backup. If not, an engine of "
        "an unknown version made this backup, or an attacker who had its keys: find out who made "
        "it, don't restore it by hand either, and restore another backup"
    )


class RecordDamaged(DataError):
    """A record fails the check of its MAC, or does not have the form of a record."""

    code = "record_damaged"
    default_hint = (
        "the record was changed after it was written, or another key with the same id signed it: "
        "compare the SHA-256 of the key with its page in escrow. If it is the right key, treat "
        "the backup as lost"
    )


class RecordUnsupported(DataError):
    """A later agent wrote the record, in a form that this agent doesn't know."""

    code = "record_unsupported"
    default_hint = "upgrade this agent to the version that made the backup, or a later one"


class KeyNotHere(DataError):
    """No key on this machine can decrypt the backup or check its record."""

    code = "key_not_here"
    default_hint = (
        "put a copy of that key as <id>.key, mode 0600, into the directory of [keys] folder "
        "(without an agent.toml it is ~/.local/state/backup-agent/keys)"
    )


class PlaintextRefused(DataError):
    """The backup is not encrypted, and the configuration does not allow reading such backups."""

    code = "plaintext_refused"
    default_hint = "set [keys] allow_plaintext = true to read backups that were never encrypted"
