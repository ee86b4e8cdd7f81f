"""Checks of the group `records`, which tell if this instance's backups can be restored here."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Final, NamedTuple

from agent import wiring
from agent.errors import StoreNotFound
from agent.keys.keyring import Keyring, RecordState
from agent.records.ancestry import Ancestry, Unrestorable
from agent.records.catalogue import Catalogue, ListedRecord
from agent.selftest.check import Check, CheckOutcome, failed, passed, warned
from agent.selftest.context import Context

# The number of records that are read, which takes about a second. `backup-list` and `gc` read all.
_MOST: Final = 1000
_NO_BACKUP: Final = "this instance has no backup yet"


class _Found(NamedTuple):
    """The records that were read.

    `own` has one record of this instance for each state. `broken` are the backups of all instances
    that lack an ancestor.
    """

    own: Mapping[RecordState, ListedRecord]
    broken: Sequence[Unrestorable]


class _Group:
    def __init__(self, context: Context) -> None:
        self._context = context

    @cached_property
    def _keyring(self) -> Keyring:
        return wiring.keyring(self._context.config)

    @cached_property
    def _found(self) -> _Found:
        """Read the records. Both checks use this one reading."""
        instance_id = self._context.config.agent.instance_id
        # without the cache of records: a self-test leaves nothing behind
        catalogue = Catalogue(self._context.store, self._keyring)
        ancestry, own = Ancestry(), dict[RecordState, ListedRecord]()
        try:
            for row in islice(catalogue.records(), _MOST):
                ancestry.add(row)
                if row.instance_id == instance_id:
                    own[row.state] = row
            return _Found(own, ancestry.broken(catalogue.find))
        except StoreNotFound:
            return _Found({}, [])  # before the first backup there is no container

    def keys(self) -> CheckOutcome:
        """Check that the keys here are the keys of this instance's backups."""
        own = self._found.own
        if RecordState.OTHER_KEY in own:
            return failed(
                f"backup {own[RecordState.OTHER_KEY].backup_id} of this instance was made "
                f"with another key that has the same id as a key here (active: {self._active})",
                "compare the SHA-256 with the pages in escrow, put the right key into [keys] "
                "folder, and give each machine a key with its own id: keygen, then rekey",
            )
        if RecordState.KEY_NOT_HERE in own:
            return warned(
                f"no key here opens backup {own[RecordState.KEY_NOT_HERE].backup_id} of this "
                "instance",
                "put its key back from escrow: backup-agent backup-show --json names its id",
            )
        if RecordState.UNSUPPORTED in own:
            return warned(
                f"a later agent made backup {own[RecordState.UNSUPPORTED].backup_id} of this "
                "instance, and this agent can't read its record",
                "upgrade this agent to the version that made the backup, or a later one",
            )
        good = own.get(RecordState.OK)
        if good is None or good.record is None:
            return passed(_NO_BACKUP)
        if good.record.sealed:
            self._keyring.unwrap(good.record.keys)
        return passed(f"backup {good.backup_id} was made with a key that is here")

    @property
    def _active(self) -> str:
        active = self._keyring.active
        return f"{active.id}, SHA-256 {active.fingerprint}..."

    def chains(self) -> CheckOutcome:
        """Check that no COMPLETED backup lacks an ancestor."""
        broken = self._found.broken
        if not broken:
            return passed(f"no completed backup lacks an ancestor (up to {_MOST} were checked)")
        mine = [one for one in broken if one.instance_id == self._context.config.agent.instance_id]
        first = (mine or broken)[0]
        found = (
            f"nothing can be restored from {len(broken)} completed backups, {len(mine)} of them "
            f"of this instance; the first is {first.backup_id} ({first.why})"
        )
        cure = "make a full backup, and delete the backups that backup-list names"
        return failed(found, cure) if mine else warned(found, cure)


def checks(context: Context) -> Sequence[Check]:
    group = _Group(context)
    needs = ("store: container", "keys: active")
    return [Check("keys", group.keys, needs), Check("chains", group.chains, needs)]
