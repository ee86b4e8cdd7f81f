"""The keys at hand: they open data keys, and tell whether a record is as it was signed."""

import hmac
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

from agent.errors import DataDamaged, Internal, KeyNotHere, KeyUnusable
from agent.keys.master import MASTER, MasterKey
from agent.keys.recovery import RecoveryKey
from agent.model import WrappedKey

# Entries of one key in a record that nobody vouches for; a real one has one.
_TRIED: Final = 3
_SEAL: Final = re.compile(rb'\{"key_id": "([A-Za-z0-9._-]{1,64})", "mac": "([0-9a-f]{64})"\}\n')


class RecordState(StrEnum):
    """Whether a record is as it was written.

    `key-not-here` and `other-key` mean that it can't be told here: the key of that id is missing,
    or is another one of the same id.
    """

    OK = "ok"
    BAD = "bad"
    KEY_NOT_HERE = "key-not-here"
    OTHER_KEY = "other-key"


class Keyring:
    """The keys at hand; `active` is the master key that new backups use.

    `recovery` are the recovery keys that each data key is wrapped by besides.
    """

    def __init__(
        self,
        keys: Mapping[str, MasterKey],
        active: str,
        recovery: Sequence[RecoveryKey] = (),
    ) -> None:
        """KeyUnusable where no key has the id `active`."""
        self._keys = dict(keys)
        self.recovery = tuple(recovery)
        if active not in keys:
            raise KeyUnusable(
                f"the active master key {active!r} is not among the key files",
                hint="put its file into [keys] folder, or correct [keys] active",
            )
        self.active = self._keys[active]

    def key(self, key_id: str) -> MasterKey:
        """The master key `key_id`; KeyNotHere where it is not at hand."""
        if key_id not in self._keys:
            raise KeyNotHere(f"the master key {key_id[:64]!r} is not here")
        return self._keys[key_id]

    def _key(self, key_id: str | None) -> MasterKey:
        return self.active if key_id is None else self.key(key_id)

    def wrap_all(self, data_key: bytes, key_id: str | None = None) -> tuple[WrappedKey, ...]:
        """All entries of a record's `keys`: by a master key (the active one) and each recovery key.

        KeyNotHere where the master key `key_id` is not here.
        """
        master = self._key(key_id).wrap(data_key)
        return (master, *(recovery.wrap(data_key) for recovery in self.recovery))

    def unwrap(self, wrapped: Sequence[WrappedKey]) -> bytes:
        """The data key, by the first of `wrapped` whose master key is here.

        KeyNotHere, with the ids that would do, where none is; DataDamaged as in MasterKey.
        """
        masters = [entry for entry in wrapped if entry.alg == MASTER]
        for candidate in masters:
            if candidate.id in self._keys:
                return self._keys[candidate.id].unwrap(candidate)
        missing = ", ".join(repr(candidate.id[:64]) for candidate in masters[:10]) or "none named"
        raise KeyNotHere(f"no master key here opens this backup; it needs one of: {missing}")

    def sign(self, line: bytes, key_id: str | None = None) -> bytes:
        """The two lines of a record object: `line`, and the MAC over its exact bytes.

        Signed by the master key `key_id`, the active one by default; KeyNotHere without it.
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
        """Whether a record object is as it was signed, and its first line in any case."""
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
        """Return the key here that has the id of a record's signer, and is another key.

        For a record object that fails its MAC, with the wrapped data keys that it names: they
        don't open either then. Somebody who changed both looks the same.
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
    """The id of the master key that a record object says it was signed by; None without one."""
    match = _SEAL.fullmatch(raw.partition(b"\n")[2])
    return match[1].decode() if match else None
