"""Group `keys`: whether what is sealed here can be opened again, here and elsewhere."""

import os
import stat
from collections.abc import Sequence

from agent import wiring
from agent.config.secrets import handed_over, read_key
from agent.config.settings import Config, KeysSection, need
from agent.errors import KeyUnusable
from agent.keys.keyring import RecordState
from agent.selftest.check import Check, Outcome, failed, passed, warned
from agent.selftest.context import Context

_RECORD = b'{"self-test": true}'


def checks(context: Context) -> Sequence[Check]:
    def section() -> KeysSection:
        return need(context.config.keys, "keys")

    base = ("configuration: sections",)
    return [
        Check("files", lambda: _files(section()), base),
        Check("active", lambda: _active(context, section()), ("files",)),
        Check("recovery", lambda: _recovery(context, section()), ("active",)),
        Check("encryption", lambda: _encryption(section()), base),
    ]


def _files(section: KeysSection) -> Outcome:
    """Every key file is private and holds a key; the folder isn't open to others' files."""
    folder = section.folder
    if handed_over(folder):
        return passed(f"{folder}: handed over by systemd")
    try:
        mode = stat.S_IMODE(folder.stat().st_mode)
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".key")
    except OSError as error:
        return failed(
            f"[keys] folder: {folder} can't be read: {error.strerror}",
            f"install -d -m 0700 -o mysql -g mysql {folder} (the agent's OS user and group); "
            f"then: backup-agent keygen {section.active}",
        )
    for path in paths:
        try:
            read_key(path.stem, path)
        except KeyUnusable as error:
            return failed(str(error), error.hint)
    if mode & 0o022:
        return failed(
            f"{folder} can be written by others (mode {mode:04o})", f"chmod 0700 {folder}"
        )
    if mode & 0o077:
        return warned(f"{folder} is open to others (mode {mode:04o})", f"chmod 0700 {folder}")
    names = ", ".join(path.stem for path in paths) or "none"
    return passed(f"{folder}: {names}; all private")


def _active(context: Context, section: KeysSection) -> Outcome:
    """The active key wraps and unwraps a data key, and vouches for a record."""
    if not handed_over(section.folder):
        path = section.folder / f"{section.active}.key"
        if not path.exists():
            return failed(
                f"the active key {section.active!r} is not in {section.folder}",
                f"put it there as {path.name}, mode 0600, or correct [keys] active; for a first "
                f"key: backup-agent keygen {section.active}",
            )
    keyring = wiring.keyring(_without_recovery(context))
    data_key = os.urandom(32)
    if keyring.unwrap(keyring.wrap_all(data_key)) != data_key:
        return failed(f"{section.active} does not unwrap what it wrapped", "replace the key file")
    if keyring.check(keyring.sign(_RECORD))[0] is not RecordState.OK:
        return failed(f"{section.active} does not know its own record", "replace the key file")
    named = f"{section.active} (SHA-256 {keyring.active.fingerprint}...)"
    return passed(f"{named} wraps and unwraps a data key, signs and checks a record")


def _without_recovery(context: Context) -> Config:
    """The configuration without recovery keys, which are a check of their own."""
    section = need(context.config.keys, "keys").model_copy(update={"recovery": ()})
    return context.config.model_copy(update={"keys": section})


def _recovery(context: Context, section: KeysSection) -> Outcome:
    if not section.recovery:
        return warned(
            "none: if this machine and its master key are lost, so is every backup",
            "make one with `backup-agent keygen --recovery ID --private FILE`, move FILE off this "
            "machine, and name ID in [keys] recovery",
        )
    wrapped = wiring.keyring(context.config).wrap_all(os.urandom(32))
    return passed(f"each data key is also wrapped for {', '.join(one.id for one in wrapped[1:])}")


def _encryption(section: KeysSection) -> Outcome:
    if not section.encrypt:
        return warned(
            "off: whoever reads the store reads the database",
            "set [keys] encrypt = true, or remove it",
        )
    if section.allow_plaintext:
        return warned(
            "on, but backups without encryption are read as well, so that a forged one may be",
            "set [keys] allow_plaintext = false once no such backup is needed any more",
        )
    return passed("on")
