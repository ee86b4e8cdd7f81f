"""Bring every record under another master key, without touching stored bytes.

Each record is a step of its own and says by itself whether it is done: its signature and
its wrapped keys. So a run that was cut off anywhere is simply repeated.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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

# Records in work or waiting for their turn to be reported, for each connection.
_AHEAD = 4


class Outcome(StrEnum):
    """What became of a record: `left` ones still need the old key, and so do `failed` ones."""

    DONE = "done"
    ALREADY = "already"
    LEFT = "left"
    FAILED = "failed"


class Rekeyed(NamedTuple):
    """One record; `code` and `why` say what is in the way of one that wasn't done."""

    backup_id: str
    outcome: Outcome
    code: str = ""
    why: str = ""


class Rekey:
    """One run over all records of a container; with `dry_run` nothing is written."""

    def __init__(
        self, catalogue: Catalogue, keyring: Keyring, to: str, *, dry_run: bool = False
    ) -> None:
        """`to` is the id of a master key of the keyring; KeyNotHere otherwise."""
        self._catalogue = catalogue
        self._keyring = keyring
        self._to = keyring.key(to).id
        self._dry_run = dry_run

    def run(self, connections: int) -> Iterator[Rekeyed]:
        """Do all records, `connections` at a time, and tell of each in order of ids.

        Raises StoreError where the store can't be reached or refuses; run it again then.
        """
        ahead: deque[Future[Rekeyed]] = deque()
        with ThreadPoolExecutor(connections, "rekey") as workers:
            for backup_id in self._catalogue.ids():
                ahead.append(workers.submit(self.one, backup_id))
                if len(ahead) >= connections * _AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def one(self, backup_id: str) -> Rekeyed:
        """Do one record; what is wrong with it alone is told and not raised."""
        try:
            signed = self._catalogue.signed(backup_id)
            if signed is None:
                return Rekeyed(backup_id, Outcome.ALREADY, why="it is deleted")
            return self._change(signed)
        except Fenced as error:
            return _told(backup_id, Outcome.LEFT, error)
        except (DataError, StoreBusy, StoreMismatch, StoreRejected) as error:
            return _told(backup_id, Outcome.FAILED, error)

    def _change(self, signed: Signed) -> Rekeyed:
        record = signed.record
        keys = self._keys(record)
        if signed.key_id == self._to and _owners(keys) == _owners(record.keys):
            return Rekeyed(record.id, Outcome.ALREADY)
        if record.status in (BackupStatus.BUILDING, BackupStatus.DELETING):
            busy = Fenced(f"a task is at work on it: it is {record.status}")
            return _told(record.id, Outcome.LEFT, busy)
        if not self._dry_run:
            self._catalogue.rewrap(record, keys, self._to)
        return Rekeyed(record.id, Outcome.DONE)

    def _keys(self, record: Record) -> tuple[WrappedKey, ...]:
        """The record's data key, wrapped by the keys that are to open it from now on."""
        if not record.sealed:
            return ()
        data_key = self._keyring.unwrap(record.keys)
        keys = self._keyring.wrap_all(data_key, self._to)
        # what is about to replace the only way to the data must be one
        if self._keyring.unwrap(keys) != data_key:
            raise DataDamaged(f"the data key of backup {record.id} was not wrapped right")
        return keys


def _owners(keys: tuple[WrappedKey, ...]) -> list[tuple[str, str]]:
    return sorted((entry.id, entry.alg) for entry in keys)


def _told(backup_id: str, outcome: Outcome, error: AgentError) -> Rekeyed:
    return Rekeyed(backup_id, outcome, error.code, str(error))
