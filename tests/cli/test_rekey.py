"""`rekey` as a command: a thousand records, killed midway and repeated, and its messages."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest

from agent.keys.keyring import Keyring, RecordState, signer
from agent.keys.master import MasterKey, key_text
from agent.model import Record
from agent.records.catalogue import Catalogue
from agent.records.object_names import record_name
from agent.store.directory.store import DirectoryStore
from agent.store.protocol import Container, Store
from agent.store.swift.login import AuthV1
from agent.store.swift.store import SwiftSettings, SwiftStore
from tests.records.made import completed, record
from tests.stack.agent import write_private
from tests.stack.process import poll
from tests.stack.swift import SwiftServer

OLD = MasterKey("old", bytes(32))
NEW = MasterKey("new", bytes(range(32)))
BOTH = Keyring({OLD.id: OLD, NEW.id: NEW}, OLD.id)


class Tenant:
    """A separate container and the configuration of an agent for it, but no agent."""

    def __init__(self, folder: Path, store: Store, section: str) -> None:
        self.store = store
        self.store.open()
        self.keys = folder / "keys"
        self.keys.mkdir(mode=0o700)
        for key in (OLD, NEW):
            write_private(self.keys / f"{key.id}.key", key_text(key.secret))
        self.config = folder / "agent.toml"
        self.config.write_text(
            f'[agent]\ninstance_id = "{uuid4()}"\ntenant_id = "t"\n'
            f"[store]\n{section}\n"
            '[keys]\nfolder = "keys"\nactive = "old"\n'
        )

    def argv(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "agent", "--config", str(self.config), *map(str, arguments)]

    def cli(self, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.argv(*arguments), capture_output=True, text=True, timeout=60, check=False
        )

    def place(self, one: Record, key_id: str = "old") -> None:
        self._put(one.id, BOTH.sign(one.model_dump_json().encode(), key_id))

    def spoil(self, backup_id: str) -> None:
        self._put(backup_id, self._get(backup_id).replace(b'"from_lsn":0', b'"from_lsn":1'))

    def _put(self, backup_id: str, raw: bytes) -> None:
        self.store.put(Container.OBJECTS, record_name(backup_id), [memoryview(raw)])

    def _get(self, backup_id: str) -> bytes:
        return self.store.get(Container.OBJECTS, record_name(backup_id), 1 << 20)

    def signer(self, backup_id: str) -> str | None:
        return signer(self._get(backup_id))


def _on_swift(folder: Path, swift: SwiftServer) -> Tenant:
    container = f"rekey-{uuid4()}"
    write_private(folder / "store-key", swift.key)
    return Tenant(
        folder,
        SwiftStore(SwiftSettings(AuthV1(swift.auth_url, swift.user, swift.key), container)),
        f'url = "swift:{swift.auth_url}"\nuser = "{swift.user}"\n'
        f'key_file = "store-key"\ncontainer = "{container}"',
    )


def _in_a_folder(folder: Path) -> Tenant:
    store = DirectoryStore(folder / "store", "c")
    return Tenant(folder, store, f'url = "file://{folder}/store"\ncontainer = "c"')


@pytest.fixture
def tenant(tmp_path: Path, swift: SwiftServer) -> Iterator[Tenant]:
    tenant = _on_swift(tmp_path, swift)
    yield tenant
    tenant.store.close()


def test_a_thousand_records_killed_midway_and_repeated(tmp_path: Path) -> None:
    _killed_and_repeated(_in_a_folder(tmp_path), 1000)


def test_records_in_swift_killed_midway_and_repeated(tenant: Tenant) -> None:
    _killed_and_repeated(tenant, 120)


def _killed_and_repeated(tenant: Tenant, many: int) -> None:
    data_keys = {str(uuid4()): os.urandom(32) for _ in range(many)}
    ids = sorted(data_keys)
    made = [completed(id=backup_id, keys=BOTH.wrap_all(data_keys[backup_id])) for backup_id in ids]
    with ThreadPoolExecutor(8) as workers:
        assert len(list(workers.map(tenant.place, made))) == many
    with subprocess.Popen(tenant.argv("rekey", "--to", "new")) as running:
        poll("a part is done", lambda: tenant.signer(ids[many // 4]) == "new", 30)
        running.kill()
    with ThreadPoolExecutor(8) as workers:
        signers = list(workers.map(tenant.signer, ids))
    assert many // 5 < signers.count("new") < many
    assert signers.count("new") + signers.count("old") == many

    done = tenant.cli("rekey", "--to", "new", "--json")
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert (counts["done"], counts["already"]) == (signers.count("old"), signers.count("new"))
    assert (counts["left"], counts["failed"], counts["remaining"]) == (0, 0, [])

    only_new = Keyring({NEW.id: NEW}, NEW.id)
    rows = list(Catalogue(tenant.store, only_new).records())
    opened = {row.backup_id: only_new.unwrap(row.record.keys) for row in rows if row.record}
    assert {row.state for row in rows} == {RecordState.OK}
    assert opened == data_keys


def test_what_it_says(tenant: Tenant) -> None:
    good, busy, bad = (
        made(keys=BOTH.wrap_all(os.urandom(32))) for made in (completed, record, completed)
    )
    for one in (good, busy, bad):
        tenant.place(one)
    tenant.spoil(bad.id)
    dry = tenant.cli("rekey", "--to", "new", "--dry-run")
    assert (dry.returncode, tenant.signer(good.id)) == (1, "old")
    assert (
        "3 records: 1 would be re-wrapped for new, 0 were already, 1 left, 1 failed" in dry.stdout
    )
    done = tenant.cli("rekey", "--to", "new")
    assert (done.returncode, tenant.signer(good.id)) == (1, "new")
    assert re.search(rf"\| {busy.id} \| left    \| fenced +\| .* BUILDING", done.stdout)
    assert re.search(rf"\| {bad.id} \| failed  \| record_damaged +\|", done.stdout)
    assert good.id not in done.stdout
    assert "record_damaged: 2 of the records are not under the key new" in done.stderr
    assert "keep the old key" in done.stderr
    assert "active is 'old': backups are still made with that key" in done.stderr


def test_a_key_that_is_not_here(tenant: Tenant) -> None:
    done = tenant.cli("rekey", "--to", "2031")
    assert done.returncode == 1
    assert "key_not_here: the master key '2031' is not on this machine" in done.stderr


def test_a_record_under_a_key_that_is_gone_names_it(tenant: Tenant) -> None:
    one = completed(keys=BOTH.wrap_all(os.urandom(32), "new"))
    tenant.place(one, "new")
    (tenant.keys / "new.key").unlink()
    done = tenant.cli("restore", "--local", one.id, tenant.keys.parent / "back")
    assert done.returncode == 1
    assert "key_not_here" in done.stderr
    assert "master key 'new', which is not on this machine" in done.stderr
