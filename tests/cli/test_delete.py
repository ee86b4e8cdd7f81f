"""`backup-delete --local` in separate processes, with a real Swift, no broker and no database."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.store.protocol import Container
from agent.store.swift.login import AuthV1
from agent.store.swift.store import SwiftSettings, SwiftStore
from tests.operations.stored import Held, held, place, put
from tests.records.made import INSTANCE, completed, keyring
from tests.stack.agent import write_private
from tests.stack.process import ServerProcess, poll
from tests.stack.swift import SwiftServer

KEYS = keyring()


class Operator:
    """An operator who has a store and its keys, but nothing else."""

    def __init__(self, folder: Path, swift: SwiftServer) -> None:
        self.swift = swift
        self.folder = folder
        self.container = f"database_backups_{uuid.uuid4().hex}"
        self.config = folder / "agent.toml"
        (folder / "keys").mkdir(mode=0o700)
        write_private(folder / "keys" / "k1.key", base64.b64encode(bytes([7]) * 32).decode())
        write_private(folder / "store-key", swift.key)
        write_private(
            self.config,
            f'[agent]\ninstance_id = "{INSTANCE}"\ntenant_id = "t"\n'
            f'[store]\nurl = "swift:{swift.auth_url}"\nuser = "{swift.user}"\n'
            f'key_file = "{folder / "store-key"}"\ncontainer = "{self.container}"\n'
            f'[keys]\nfolder = "{folder / "keys"}"\nactive = "k1"\n'
            "[pipeline]\nconnections = 1\n",
        )
        self.store = SwiftStore(
            SwiftSettings(AuthV1(swift.auth_url, swift.user, swift.key), self.container, attempts=2)
        )
        self.store.open()

    def argv(self, *arguments: str) -> list[str]:
        agent = [sys.executable, "-m", "agent", "--config", str(self.config)]
        return [*agent, "backup-delete", *arguments]

    def delete(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.argv(*arguments), capture_output=True, text=True, timeout=60, check=False
        )

    def stalled(self, backup_id: str, method: str, match: str) -> ServerProcess:
        """Start a delete and return it when it waits for the answer to a matching request.

        The store has not performed that request yet.
        """
        rule = {"method": method, "match": match, "action": "stall", "seconds": 600}
        before = len(self.swift.requests())
        self.swift.inject([rule])
        process = ServerProcess(
            self.argv("--local", backup_id), self.folder / "log", dict(os.environ)
        )
        process.wait_ready(
            lambda: any(
                line.startswith(method) and " stall" in line and re.search(match, line)
                for line in self.swift.requests()[before:]
            ),
            30,
        )
        self.swift.clear_faults()
        return process


@pytest.fixture
def operator(tmp_path: Path, swift: SwiftServer) -> Iterator[Operator]:
    operator = Operator(tmp_path, swift)
    yield operator
    operator.store.close()


def records_in(left: Held) -> set[str]:
    """Return the ids of the backups that have a record."""
    names = (name.removesuffix(".json") for name in left.objects if name.endswith(".json"))
    return {name for name in names if not name.endswith(".checks")}


def test_a_delete_that_is_killed_on_the_way_is_completed_by_repeating_it(
    operator: Operator,
) -> None:
    """The process is killed once in each phase of the delete.

    tests/operations/test_delete.py stops the delete before every call.
    """
    store = operator.store
    base, other = completed(), completed()
    middle = completed(base, to_lsn=200)
    last = completed(middle, to_lsn=300)
    place(store, KEYS, base, middle, last, other, completed(other))
    ids = (base.id, middle.id, last.id)
    others = held(store).without(*ids)
    segments = f"{operator.container}_segments"
    steps = [
        ("PUT", f"{base.id}.json"),
        ("PUT", f"{last.id}.json"),
        ("DELETE", f"{last.id}.xbstream.gz.enc"),
        ("GET", rf"{segments}\?.*prefix={last.id}"),
        ("DELETE", f"{segments}/{last.id}/.*/00000001"),
        ("DELETE", f"{segments}/{last.id}/.*/list-"),
        ("DELETE", f"{last.id}.checks.json"),
        ("DELETE", f"{last.id}.json"),
        ("DELETE", f"{middle.id}.json"),
        ("DELETE", f"{base.id}.json"),
    ]
    for method, match in steps:
        process = operator.stalled(base.id, method, match)
        process.stop(signal.SIGKILL)
        left = held(store)
        assert left.without(*ids) == others, f"killed at {method} {match}"
        assert records_in(left) & set(ids) in (
            {base.id},
            {base.id, middle.id},
            {base.id, middle.id, last.id},
        )
        for backup_id in set(ids) - records_in(left):
            assert left.of(backup_id) == [], "what has no record is gone altogether"
    done = operator.delete("--local", base.id)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert held(store) == others


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_delete_that_is_interrupted_says_how_to_go_on(operator: Operator, number: int) -> None:
    base = completed()
    place(operator.store, KEYS, base, segments=12)
    slow = [{"method": "DELETE", "match": "_segments/", "times": 99, "action": "stall"}]
    operator.swift.inject([rule | {"seconds": 0.2} for rule in slow])
    process = ServerProcess(
        operator.argv("--local", base.id), operator.folder / "log", dict(os.environ)
    )
    poll("it deletes segments", lambda: len(held(operator.store).segments) < 13, 30)
    process.stop(number, 10)
    operator.swift.clear_faults()
    assert process.returncode == 1
    said = process.log.read_text()
    assert said.startswith("backup-agent: interrupted: the delete was interrupted")
    assert "same command again" in said
    left = held(operator.store)
    assert 2 < len(left.segments) < 14
    assert json.loads(operator.delete("--local", "--json", base.id).stdout) == {
        "deleted": [
            {
                "id": base.id,
                "name": "base",
                "parent_id": None,
                "status": "DELETING",
                "created": base.created,
            }
        ]
    }
    assert held(operator.store) == ({}, {})


def test_a_dry_run_draws_what_would_go_and_deletes_nothing(operator: Operator) -> None:
    base = completed(created="2026-02-03T04:05:06Z")
    child = completed(base, name="größer 備份")
    place(operator.store, KEYS, base, child)
    before = held(operator.store)
    shown = operator.delete("--dry-run", base.id)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == (f"{base.id}  base  COMPLETED\n└── {child.id}  größer 備份  COMPLETED\n")
    listed = json.loads(operator.delete("--dry-run", "--json", base.id).stdout)
    assert [one["id"] for one in listed["would_delete"]] == [child.id, base.id]
    assert held(operator.store) == before


def test_a_backup_that_is_not_there(operator: Operator) -> None:
    put(operator.store, Container.OBJECTS, "else", b"")
    asked = operator.delete("--local", INSTANCE)
    assert (asked.returncode, asked.stdout) == (1, "")
    assert f"backup-agent: backup_unknown: there is no backup {INSTANCE}" in asked.stderr
    assert "what to do: " in asked.stderr
