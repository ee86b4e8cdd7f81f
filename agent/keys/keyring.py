"""The keys on this machine, which decrypt data keys and check the MACs of records."""

import hmac
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

from agent.errors import DataDamaged, Internal, KeyNotHere, KeyUnusable
from agent.keys.master import MASTER, MasterKey
from agent.keys.recovery import RecoveryKey
from agent.model import WrappedKey

# The most entries of one key that are tried in a record with a wrong MAC. A genuine record has one
# entry for each key, but such a record may have any number.
_TRIED: Final = 3
_SEAL: Final = re.compile(rb'\{"key_id": "([A-Za-z0-9._-]{1,64})", "mac": "([0-9a-f]{64})"\}\n')


class RecordState(StrEnum):
    """The result of the check of a record.

    `ok` means that the record is as it was written, and `bad` that it is not. With `unsupported`
    the MAC is right, but a later agent wrote the record, and this one can't read it. The other two
    mean that this machine can't check the record. With `key-not-here`, it lacks the key that signed
    the record. With `other-key`, its key with that id is another one.
    """

    OK = "ok"
    BAD = "bad"
    UNSUPPORTED = "unsupported"
    KEY_NOT_HERE = "key-not-here"
    OTHER_KEY = "other-key"


class Keyring:
    """The keys on this machine.

    `active` is the master key that new backups use. `recovery` has the recovery keys, which also
    wrap each data key.
    """

    def __init__(
        self,
        keys: Mapping[str, MasterKey],
        active: str,
        recovery: Sequence[RecoveryKey] = (),
    ) -> None:
        """Raise KeyUnusable if no key has the id `active`."""
        self._keys = dict(keys)
        self.recovery = tuple(recovery)
        if active not in keys:
            raise KeyUnusable(
                f"the active master key {active!r} is not among the key files",
                hint="put its file into [keys] folder, or correct [keys] active",
            )
        self.active = self._keys[active]

    def key(self, key_id: str) -> MasterKey:
        """Return the master key `key_id`.

        Raises:
            KeyNotHere: this machine does not have the key.
        """
        if key_id not in self._keys:
            raise KeyNotHere(f"the master key {key_id[:64]!r} is not on this machine")
        return self._keys[key_id]

    def _key(self, key_id: str | None) -> MasterKey:
        return self.active if key_id is None else self.key(key_id)

    def wrap_all(self, data_key: bytes, key_id: str | None = None) -> tuple[WrappedKey, ...]:
        """Return the entries of a record's `keys`, one for a master key and each recovery key.

        `key_id` names the master key. None means the active one.

        Raises:
            KeyNotHere: this machine does not have the master key `key_id`.
        """
        master = self._key(key_id).wrap(data_key)
        return (master, *(recovery.wrap(data_key) for recovery in self.recovery))

    def unwrap(self, wrapped: Sequence[WrappedKey]) -> bytes:
        """Return the data key, decrypted with the first named master key that this machine has.

        Raises:
            KeyNotHere: this machine has none of the master keys. The message names their ids, at
                most ten.
            DataDamaged: the master key can't decrypt the data key, as in MasterKey.unwrap.
        """
        masters = [entry for entry in wrapped if entry.alg == MASTER]
        for candidate in masters:
            if candidate.id in self._keys:
                return self._keys[candidate.id].unwrap(candidate)
        missing = ", ".join(repr(candidate.id[:64]) for candidate in masters[:10]) or "none named"
        raise KeyNotHere(
            f"no master key on this machine opens this backup, which needs one of: {missing}"
        )

    def sign(self, line: bytes, key_id: str | None = None) -> bytes:
        """Return the two lines of a record object, `line` and the MAC over its exact bytes.

        The master key `key_id` signs it. None means the active one.

        Raises:
            KeyNotHere: this machine does not have the master key `key_id`.
        """
        if b"\n" in line:
            raise Internal("a record's JSON must be one line")
        key = self._key(key_id)
        return b'%s\n{"key_id": "%s", "mac": "%s"}\n' % (
            line,
            key.id.encode(),
            key.mac(line).encode(),
        )

    def check(self, raw: bytes) -> tuple[RecordState, bytes]:
        """Check the MAC of a record object, and return the result and the object's first line.

        The first line, the JSON, is returned with every result. The result is never OTHER_KEY,
        which `other_key` finds, nor UNSUPPORTED, which needs the content of the JSON.
        """
        line, _, seal = raw.partition(b"\n")
        match = _SEAL.fullmatch(seal)
        if not match:
            return RecordState.BAD, line
        key = self._keys.get(match[1].decode())
        if key is None:
            return RecordState.KEY_NOT_HERE, line
        same = hmac.compare_digest(key.mac(line).encode(), match[2])
        return (RecordState.OK if same else RecordState.BAD), line

    def other_key(self, raw: bytes, wrapped: Sequence[WrappedKey]) -> MasterKey | None:
        """Return the master key that only has the same id as the signer of a record, or None.

        `raw` is a record object that fails the check of its MAC. `wrapped` has the wrapped data
        keys that it names. If the key with the signer's id can't decrypt them either, it is
        probably another key than the signer's. A record in which an attacker changed both the MAC
        and the data keys gives the same result. Return None if this machine has no key with that
        id, if `wrapped` has no entry of it, or if it decrypts one of its entries.
        """
        key = self._keys.get(signer(raw) or "")
        entries = [entry for entry in wrapped if key and (entry.id, entry.alg) == (key.id, MASTER)]
        if key is None or not entries:
            return None
        return None if any(_opens(key, entry) for entry in entries[:_TRIED]) else key


def _opens(key: MasterKey, wrapped: WrappedKey) -> bool:
    try:
        key.unwrap(wrapped)
    except DataDamaged:
        return False
    return True


def signer(raw: bytes) -> str | None:
    """Return the id of the master key that a record object names as its signer.

    Return None if the object does not have the form of a signed record.
    """
    match = _SEAL.fullmatch(raw.partition(b"\n")[2])
    return match[1].decode() if match else None
