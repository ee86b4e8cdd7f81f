"""Checks of the group `keys`, which tell if backups can be decrypted again, here and elsewhere."""

import os
import stat
from collections.abc import Sequence

from agent import wiring
from agent.config.secrets import handed_over, read_key
from agent.config.settings import Config, KeysSection, need
from agent.errors import KeyUnusable
from agent.keys.keyring import RecordState
from agent.selftest.check import Check, CheckOutcome, failed, passed, warned
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


def _files(section: KeysSection) -> CheckOutcome:
    """Check that every key file is private and holds a key, and that the directory is private."""
    folder = section.folder
    if handed_over(folder):
        return passed(f"{folder}: the keys are credentials of systemd")
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
            f"{folder} is writable for other users (mode {mode:04o})", f"chmod 0700 {folder}"
        )
    if mode & 0o077:
        return warned(
            f"{folder} is accessible to other users (mode {mode:04o})", f"chmod 0700 {folder}"
        )
    names = ", ".join(path.stem for path in paths) or "none"
    return passed(f"keys in {folder}: {names}; all private")


def _active(context: Context, section: KeysSection) -> CheckOutcome:
    """Check that the active key wraps and unwraps a data key, and signs and verifies a record."""
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
        return failed(
            f"{section.active} does not unwrap a data key that it wrapped", "replace the key file"
        )
    if keyring.check(keyring.sign(_RECORD))[0] is not RecordState.OK:
        return failed(
            f"{section.active} does not verify a record that it signed", "replace the key file"
        )
    named = f"{section.active} (SHA-256 {keyring.active.fingerprint}...)"
    return passed(f"{named} wraps and unwraps a data key, signs and verifies a record")


def _without_recovery(context: Context) -> Config:
    """Return the configuration without recovery keys, which have their own check."""
    section = need(context.config.keys, "keys").model_copy(update={"recovery": ()})
    return context.config.model_copy(update={"keys": section})


def _recovery(context: Context, section: KeysSection) -> CheckOutcome:
    if not section.recovery:
        return warned(
            "there is no recovery key: if this machine and its master key are lost, every backup "
            "is lost",
            "make one with `backup-agent keygen --recovery ID --private FILE`, keep FILE away "
            "from this machine, and name ID in [keys] recovery",
        )
    wrapped = wiring.keyring(context.config).wrap_all(os.urandom(32))
    return passed(f"each data key is also wrapped for {', '.join(one.id for one in wrapped[1:])}")


def _encryption(section: KeysSection) -> CheckOutcome:
    if not section.encrypt:
        return warned(
            "off: everyone who can read the store can read the database",
            "set [keys] encrypt = true, or remove it",
        )
    if section.allow_plaintext:
        return warned(
            "on, but backups without encryption are accepted too, and one of them may be forged",
            "set [keys] allow_plaintext = false when no such backup is needed any more",
        )
    return passed("on")
