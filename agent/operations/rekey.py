"""Sign every record and wrap its data key by another master key, without changing stored bytes.

Each record is a step of its own. Its signature and its wrapped keys show if the step is done. So a
run that was interrupted at any point can be repeated.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from enum import StrEnum
from typing import NamedTuple

from agent.errors import (
    AgentError,
    DataDamaged,
    DataError,
    Fenced,
    StoreBusy,
    StoreMismatch,
    StoreRejected,
)
from agent.keys.keyring import Keyring
from agent.model import BackupStatus, Record, WrappedKey
from agent.records.catalogue import Catalogue, Signed
from agent.threads import Workers

# For each connection, the number of records that are in work or wait to be reported in order.
_AHEAD = 4


class RekeyOutcome(StrEnum):
    """The outcome for a record.

    LEFT and FAILED records still need the old key.
    """

    DONE = "done"
    ALREADY = "already"
    LEFT = "left"
    FAILED = "failed"


class Rekeyed(NamedTuple):
    """The result for one record, with an error code and the reason if it wasn't done."""

    backup_id: str
    outcome: RekeyOutcome
    code: str = ""
    why: str = ""


class Rekey:
    """One run over all records of a container, which writes nothing with `dry_run`."""

    def __init__(
        self, catalogue: Catalogue, keyring: Keyring, to: str, *, dry_run: bool = False
    ) -> None:
        """Prepare a run that moves all records to the master key with the id `to`.

        Raises:
            KeyNotHere: the keyring doesn't have that key.
        """
        self._catalogue = catalogue
        self._keyring = keyring
        self._to = keyring.key(to).id
        self._dry_run = dry_run

    def run(self, connections: int) -> Iterator[Rekeyed]:
        """Change all records, `connections` at a time, and yield their results in order of ids.

        Raises:
            StoreError: the store can't be reached or refuses a request. Repeat the run then.
        """
        ahead: deque[Future[Rekeyed]] = deque()
        with Workers(connections, "rekey") as workers:
            for backup_id in self._catalogue.ids():
                ahead.append(workers.submit(self.one, backup_id))
                if len(ahead) >= connections * _AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def one(self, backup_id: str) -> Rekeyed:
        """Change one record. Return an error that concerns only this record as its result."""
        try:
            signed = self._catalogue.signed(backup_id)
            if signed is None:
                return Rekeyed(backup_id, RekeyOutcome.ALREADY, why="it is deleted")
            return self._change(signed)
        except Fenced as error:
            return _with_error(backup_id, RekeyOutcome.LEFT, error)
        except (DataError, StoreBusy, StoreMismatch, StoreRejected) as error:
            return _with_error(backup_id, RekeyOutcome.FAILED, error)

    def _change(self, signed: Signed) -> Rekeyed:
        record = signed.record
        keys = self._keys(record)
        if signed.key_id == self._to and _owners(keys) == _owners(record.keys):
            return Rekeyed(record.id, RekeyOutcome.ALREADY)
        if record.status in (BackupStatus.BUILDING, BackupStatus.DELETING):
            busy = Fenced(f"a task is working on this backup, which is {record.status}")
            return _with_error(record.id, RekeyOutcome.LEFT, busy)
        if not self._dry_run:
            self._catalogue.rewrap(record, keys, self._to)
        return Rekeyed(record.id, RekeyOutcome.DONE)

    def _keys(self, record: Record) -> tuple[WrappedKey, ...]:
        """Wrap the record's data key by the target key and by each recovery key.

        Return an empty tuple for a backup without encryption.
        """
        if not record.sealed:
            return ()
        data_key = self._keyring.unwrap(record.keys)
        keys = self._keyring.wrap_all(data_key, self._to)
        # The wrapped keys replace the only way to the data, so check first that they work.
        if self._keyring.unwrap(keys) != data_key:
            raise DataDamaged(
                f"the data key of backup {record.id} was not wrapped correctly: it unwraps to "
                "another key"
            )
        return keys


def _owners(keys: tuple[WrappedKey, ...]) -> list[tuple[str, str]]:
    return sorted((entry.id, entry.alg) for entry in keys)


def _with_error(backup_id: str, outcome: RekeyOutcome, error: AgentError) -> Rekeyed:
    return Rekeyed(backup_id, outcome, error.code, str(error))
