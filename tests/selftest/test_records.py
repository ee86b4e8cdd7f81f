"""Self-test checks of the stored backups: their keys and their chains."""

import base64
from collections.abc import Sequence
from pathlib import Path

import pytest

from agent.records.object_names import record_name
from agent.selftest.check import Result, Verdict
from agent.store.directory.store import DirectoryStore
from agent.store.protocol import Container
from tests.operations.stored import place_record, put
from tests.records.made import INSTANCE, completed, keyring
from tests.selftest.site import look
from tests.stack.agent import write_private

KEYS = keyring()
OTHER = "5f2c1d84-0d9e-4c7f-9b1e-2f5f3b0c8d11"


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    for name in ("keys", "state"):
        (tmp_path / name).mkdir(mode=0o700)
    write_private(tmp_path / "keys" / "k1.key", base64.b64encode(bytes([7]) * 32).decode())
    write_private(
        tmp_path / "agent.toml",
        f'[agent]\ninstance_id = "{INSTANCE}"\ntenant_id = "x"\n'
        f'state_folder = "{tmp_path}/state"\n[store]\nurl = "file://{tmp_path}/store"\n'
        f'[keys]\nfolder = "{tmp_path}/keys"\nactive = "k1"\n',
    )
    store = DirectoryStore(tmp_path / "store", "database_backups_x")
    store.open()
    return store


def records(tmp_path: Path) -> Sequence[Result]:
    return look(tmp_path / "agent.toml", "records")


def verdicts(tmp_path: Path) -> list[Verdict]:
    return [one.verdict for one in records(tmp_path)]


def test_nothing_there_and_all_as_it_should_be(store: DirectoryStore, tmp_path: Path) -> None:
    assert verdicts(tmp_path) == [Verdict.PASS, Verdict.PASS]
    base = completed()
    place_record(store, KEYS, base)
    place_record(store, KEYS, completed(base, to_lsn=200))
    assert verdicts(tmp_path) == [Verdict.PASS, Verdict.PASS]
    # the self-test leaves nothing behind, not even a cache
    assert list((tmp_path / "state").iterdir()) == []


def test_a_backup_of_this_instance_by_another_key_of_the_same_id(
    store: DirectoryStore, tmp_path: Path
) -> None:
    other = keyring("k1", fill=9)
    theirs = completed(keys=other.wrap_all(bytes(32)), instance_id=OTHER)
    place_record(store, other, theirs)
    assert verdicts(tmp_path) == [Verdict.PASS, Verdict.PASS]
    mine = completed(keys=other.wrap_all(bytes(32)))
    place_record(store, other, mine)
    keys, _ = records(tmp_path)
    assert keys.verdict is Verdict.FAIL
    assert mine.id in keys.found
    assert KEYS.active.fingerprint in keys.found
    assert "escrow" in keys.cure


def test_a_backup_of_this_instance_whose_key_is_not_here(
    store: DirectoryStore, tmp_path: Path
) -> None:
    place_record(store, keyring("k9", fill=9), completed())
    assert verdicts(tmp_path) == [Verdict.WARN, Verdict.PASS]


def test_a_backup_of_this_instance_by_a_later_agent(store: DirectoryStore, tmp_path: Path) -> None:
    one = completed()
    line = one.model_dump_json().replace('"format":1', '"format":2')
    put(store, Container.OBJECTS, record_name(one.id), KEYS.sign(line.encode()))
    keys, chains = records(tmp_path)
    assert (keys.verdict, chains.verdict) == (Verdict.WARN, Verdict.PASS)
    assert f"a later agent made backup {one.id}" in keys.found
    assert "upgrade this agent" in keys.cure


@pytest.mark.parametrize(("owner", "verdict"), [(INSTANCE, Verdict.FAIL), (OTHER, Verdict.WARN)])
def test_a_completed_backup_that_lacks_its_ancestor(
    store: DirectoryStore, tmp_path: Path, owner: str, verdict: Verdict
) -> None:
    base = completed()
    place_record(store, KEYS, completed(base, instance_id=owner))
    _, chains = records(tmp_path)
    assert chains.verdict is verdict
    assert f"its ancestor {base.id} has no record" in chains.found
