"""The objects that a run under Trove works with. agent/wiring/trove.py builds them."""

from dataclasses import dataclass, replace
from typing import Self

from agent.codec.aead import OpeningStream
from agent.codec.plain import PlainOpening
from agent.errors import KeyNotHere
from agent.keys.keyring import Keyring
from agent.model import Record
from agent.operations.resources import InstanceResources, MachineResources
from agent.pipeline.download import Opening
from agent.store.protocol import Interruption
from agent.store.swift.store import SwiftStore


@dataclass(frozen=True, kw_only=True)
class TroveRestoreResources(MachineResources):
    """The resources of a restore, which needs no database.

    `store` is the account. `keyring` is None if there are no keys here.
    """

    store: SwiftStore
    keyring: Keyring | None

    def opening(self, record: Record) -> Opening:
        """Return an object that decrypts the stored slabs of one backup, for one run only.

        Raises:
            KeyNotHere, DataDamaged: the data key of the backup can't be unwrapped.
        """
        if not record.sealed:
            return PlainOpening()
        if self.keyring is None:
            raise KeyNotHere(f"backup {record.id} is encrypted, and there are no keys here")
        return OpeningStream(self.keyring.unwrap(record.keys), record.id.encode())

    def bound(self, stop: Interruption) -> Self:
        return replace(super().bound(stop), store=self.store.bound(stop))


@dataclass(frozen=True, kw_only=True)
class TroveResources(TroveRestoreResources, InstanceResources):
    """The resources of one run of the image.

    The container of `store` is that of new backups. They are encrypted if there is a `keyring` and
    `encrypt` is True.
    """

    encrypt: bool = True
