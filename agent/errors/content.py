"""Bytes that aren't what they should be: the engine's, or the stored ones."""

from agent.errors.base import AgentError


class StreamError(AgentError):
    """The engine's stream is not the backup that was asked for."""


class StreamInvalid(StreamError):
    """What the engine wrote is not a whole xbstream: cut, damaged, or of an unknown form."""

    code = "stream_invalid"
    default_hint = "the engine's output is not a whole xbstream; check the engine's version"


class StreamIncomplete(StreamError):
    """The xbstream is whole, but a part of the database is missing in it."""

    code = "stream_incomplete"
    default_hint = "the stream lacks a part of the database; run a full backup again"


class LsnMismatch(StreamError):
    """The stream covers other log sequence numbers than those asked for."""

    code = "lsn_mismatch"
    default_hint = "the stream does not continue its parent; make a full backup"


class DataError(AgentError):
    """Stored bytes can't be trusted or can't be opened."""


class DataDamaged(DataError):
    """Stored bytes are not those that were written: changed, cut, swapped or missing."""

    code = "data_damaged"
    default_hint = "the stored bytes were changed or lost; restore another backup of the chain"


class ContentRefused(DataError):
    """A backup holds what no restore takes: a path outside, an option, a false stream."""

    code = "content_refused"
    default_hint = (
        "if the message names a setting that your server has, an earlier agent made this backup "
        "without judging it: change the setting and make a full backup; if not, an engine of an "
        "unknown version made it, or somebody who held its keys and chose what is in it: find out "
        "who, and don't restore it by hand either; restore another backup"
    )


class RecordDamaged(DataError):
    """A record fails its MAC, or does not have the form of a record."""

    code = "record_damaged"
    default_hint = (
        "the record was changed after it was written, or another key with the same id signed it: "
        "compare the SHA-256 of the key with its page in escrow; if it is the right key, treat the "
        "backup as lost"
    )


class RecordUnsupported(DataError):
    """A record has a format version that this agent does not know."""

    code = "record_unsupported"
    default_hint = "upgrade this agent to the version that made the backup, or a later one"


class KeyNotHere(DataError):
    """No key on this machine opens the backup or can check its record."""

    code = "key_not_here"
    default_hint = (
        "put the copy of that key as <id>.key, mode 0600, into [keys] folder, which without an "
        "agent.toml is the folder keys in ~/.local/state/backup-agent"
    )


class PlaintextRefused(DataError):
    """The backup was never encrypted, and reading such backups is not allowed here."""

    code = "plaintext_refused"
    default_hint = "set [keys] allow_plaintext = true to read backups that were never encrypted"
