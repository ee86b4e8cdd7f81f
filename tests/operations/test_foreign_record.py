"""A backup whose id already has a record that the agent can't read."""

from pathlib import Path

import pytest

from agent.errors import AgentError, KeyNotHere, RecordDamaged
from agent.keys.keyring import Keyring
from agent.model import ErrorInfo
from tests.operations.stored import held, place_record
from tests.operations.workshop import Workshop
from tests.records.made import completed, keyring
from tests.stack.mariadb import MariaDB


@pytest.mark.parametrize(
    ("keys", "error"),
    [(keyring("k9", fill=9), KeyNotHere), (keyring(fill=9), RecordDamaged)],
    ids=["key elsewhere", "damaged"],
)
def test_it_is_left_alone(
    mariadb: MariaDB, tmp_path: Path, keys: Keyring, error: type[AgentError]
) -> None:
    """The attempt leaves no remains, so no hint may say that this backup is its own."""
    workshop = Workshop(mariadb, tmp_path)
    there = completed()
    place_record(workshop.parts.store, keys, there)
    before = held(workshop.parts.store)
    operation = workshop.operation(backup_id=there.id)
    with pytest.raises(error):
        operation.run()
    assert operation.record is None
    assert operation.abandon(ErrorInfo(code="internal", message="it failed", hint="")) is None
    assert held(workshop.parts.store) == before
