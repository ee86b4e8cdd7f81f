"""The output of the five verbs beside the operators' own examples, and lists of any record.

LIST, LIST_INSTANCE and CREATED are the tables that the operators know, character by character.
Their `Value` column is wider than its content, so there only the text is compared, not the blanks
after it.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from agent.cli.main import main
from agent.config.reading import load
from agent.config.secrets import load_keyring
from agent.config.settings import need
from agent.keys.keyring import Keyring
from agent.model import BackupStatus, Datastore, ErrorInfo, Record
from agent.records.object_names import container_name, record_name
from agent.store.protocol import Container
from agent.store.swift.login import AuthV1
from agent.store.swift.store import SwiftSettings, SwiftStore
from tests.broker.probe import probing
from tests.records.made import completed, keyring, record
from tests.stack.agent import KEY_ID, Agent
from tests.stack.mariadb import MariaDB
from tests.stack.rabbitmq import RabbitMQ
from tests.stack.swift import SwiftServer

LIST = """\
+--------------------------------------+--------------------------------------+----------+-----------+--------------------------------------+---------------------+
| ID                                   | Instance ID                          | Name     | Status    | Parent ID                            | Updated             |
+--------------------------------------+--------------------------------------+----------+-----------+--------------------------------------+---------------------+
| 22ec1d70-7e62-450c-b462-3b55f4b353f0 | a17461ab-6c97-4abf-8890-9f8b10886ecc | back.001 | COMPLETED | None                                 | 2016-12-28T02:23:49 |
| 8f714e0f-4cfe-45a3-9205-8c933a9a8d4b | a17461ab-6c97-4abf-8890-9f8b10886ecc | base     | COMPLETED | None                                 | 2016-12-28T02:24:13 |
| 1c8c6038-e2a8-4e48-983b-ac104e93b304 | a17461ab-6c97-4abf-8890-9f8b10886ecc | inc.001  | COMPLETED | 8f714e0f-4cfe-45a3-9205-8c933a9a8d4b | 2016-12-28T02:24:47 |
+--------------------------------------+--------------------------------------+----------+-----------+--------------------------------------+---------------------+
"""  # noqa: E501 - as wide as the table is

LIST_INSTANCE = """\
+--------------------------------------+---------+-----------+--------------------------------------+---------------------+
| ID                                   | Name    | Status    | Parent ID                            | Updated             |
+--------------------------------------+---------+-----------+--------------------------------------+---------------------+
| 8f714e0f-4cfe-45a3-9205-8c933a9a8d4b | base    | COMPLETED | None                                 | 2016-12-28T02:24:13 |
| 1c8c6038-e2a8-4e48-983b-ac104e93b304 | inc.001 | COMPLETED | 8f714e0f-4cfe-45a3-9205-8c933a9a8d4b | 2016-12-28T02:24:47 |
+--------------------------------------+---------+-----------+--------------------------------------+---------------------+
"""  # noqa: E501

CREATED = """\
+-------------+--------------------------------------------------------------------------------------------------+
| Property    | Value                                                                                            |
+-------------+--------------------------------------------------------------------------------------------------+
| created     | 2016-12-30T03:06:41                                                                              |
| datastore   | {'version': '5.5', 'type': 'mysql', 'version_id': '35b4c566-935c-4606-b077-20b90f2bf5df'}        |
| description | inc backup inc.001                                                                               |
| id          | 9697e010-ec8d-4881-bccb-cd1b3aac57cf                                                             |
| instance_id | a17461ab-6c97-4abf-8890-9f8b10886ecc                                                             |
| locationRef | None                                                                                             |
| name        | inc.001                                                                                          |
| parent_id   | 3d0a46de-b5e0-4c9e-937f-e87b610961c6                                                             |
| size        | None                                                                                             |
| status      | NEW                                                                                              |
| updated     | 2016-12-30T03:06:41                                                                              |
+-------------+--------------------------------------------------------------------------------------------------+
"""  # noqa: E501

# the values that differ from CREATED when the backup is COMPLETED
SHOWN = {
    "locationRef": "http://obs.example.com:9090/swift/v1/database_backups_"
    "0cbb58a3a7fd4c1d89e4a5f3b8cc0c76/af5c746d-fda9-4e7d-b2ab-24857498ec4a.xbstream.gz.enc",
    "size": "0.1",
    "status": "COMPLETED",
}

INSTANCE = "a17461ab-6c97-4abf-8890-9f8b10886ecc"
MYSQL = Datastore(type="mysql", version="5.5", version_id="35b4c566-935c-4606-b077-20b90f2bf5df")


class Operator:
    """The command line on a separate machine, and the content of its tenant's container."""

    def __init__(self, agent: Agent, store: SwiftStore, keys: Keyring) -> None:
        self.agent = agent
        self.store = store
        self.keys = keys

    def place(self, *records: Record, keys: Keyring | None = None) -> None:
        for one in records:
            self.put(one.id, (keys or self.keys).sign(one.model_dump_json().encode()))

    def put(self, backup_id: str, raw: bytes) -> None:
        self.store.put(Container.OBJECTS, record_name(backup_id), [memoryview(raw)])

    def says(self, *arguments: str) -> str:
        """Run a command that must succeed with an empty standard error, and return its output."""
        done = self.agent.cli(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.says(*arguments, "--json"))


@pytest.fixture(scope="module")
def sender(scratch: Path, rabbitmq: RabbitMQ, swift_session: SwiftServer) -> Agent:
    """Return an agent that has a configuration with a broker, but no daemon and no database."""
    folder = scratch / f"operator-{uuid4()}"
    agent = Agent(folder, rabbitmq, swift_session, MariaDB(folder / "no-mariadb"))
    agent.write()
    return agent


@pytest.fixture
def operator(sender: Agent, swift: SwiftServer) -> Iterator[Operator]:
    """Yield an operator with a separate empty container."""
    sender.tenant_id = uuid4().hex
    config = load(sender.write())
    container = container_name(sender.tenant_id)
    store = SwiftStore(SwiftSettings(AuthV1(swift.auth_url, swift.user, swift.key), container))
    store.open()
    yield Operator(sender, store, load_keyring(need(config.keys, "keys")))
    store.close()


def _backup(backup_id: str, name: str, updated: str, parent: Record | None = None) -> Record:
    return completed(
        parent,
        id=backup_id,
        name=name,
        instance_id=INSTANCE,
        datastore=MYSQL,
        created="2016-12-28T02:20:00Z",
        updated=f"{updated}Z",
    )


def _examples() -> list[Record]:
    base = _backup("8f714e0f-4cfe-45a3-9205-8c933a9a8d4b", "base", "2016-12-28T02:24:13")
    return [
        _backup("22ec1d70-7e62-450c-b462-3b55f4b353f0", "back.001", "2016-12-28T02:23:49"),
        base,
        _backup("1c8c6038-e2a8-4e48-983b-ac104e93b304", "inc.001", "2016-12-28T02:24:47", base),
    ]


def _text(table: str) -> str:
    """Return a table without the blanks that fill its last column."""
    return re.sub(r" +\|$|-+\+$", " |", table, flags=re.MULTILINE)


def _as_wide_as_its_text(table: str) -> bool:
    """Return True if all lines are equally long, and end with the longest cell."""
    lines = table.splitlines()
    cells = [line for line in lines if not line.startswith("+")]
    return len({len(line) for line in lines}) == 1 and any(line[-3] != " " for line in cells)


# --- beside the examples -----------------------------------------------------------------


def test_lists(operator: Operator) -> None:
    operator.place(*_examples(), record(status=BackupStatus.FAILED, updated="2016-01-01T00:00:00Z"))
    of_one = operator.says("backup-list-instance", "--limit", "2", INSTANCE)
    assert of_one == LIST_INSTANCE
    assert operator.says("backup-list-instance", INSTANCE, "--limit", "2") == LIST_INSTANCE
    [failed] = [one for one in operator.json("backup-list") if one["status"] == "FAILED"]
    operator.store.delete(Container.OBJECTS, record_name(failed["id"]))
    assert operator.says("backup-list") == LIST
    ids = [one["id"] for one in operator.json("backup-list-instance", INSTANCE)]
    assert ids == [one.id for one in _examples()]


def test_show(operator: Operator) -> None:
    one = completed(
        id="9697e010-ec8d-4881-bccb-cd1b3aac57cf",
        name="inc.001",
        description="inc backup inc.001",
        instance_id=INSTANCE,
        parent_id="3d0a46de-b5e0-4c9e-937f-e87b610961c6",
        from_lsn=100,
        datastore=MYSQL,
        created="2016-12-30T03:06:41Z",
        updated="2016-12-30T03:06:41Z",
        size=0.1,
        locationRef=SHOWN["locationRef"],
    )
    operator.place(completed(id=str(one.parent_id)), one)
    expected = CREATED
    for name, value in SHOWN.items():
        expected = re.sub(rf"(\| {name} +\| )[^ ]+", rf"\g<1>{value}", expected)
    shown = operator.says("backup-show", one.id)
    assert _text(shown) == _text(expected)
    assert _as_wide_as_its_text(shown)
    assert operator.json("backup-show", one.id)["stored"]["raw_bytes"] == 10


def test_show_says_why_a_backup_failed(operator: Operator) -> None:
    error = ErrorInfo(code="engine_failed", message="it\x1b[2J ended", hint="look there")
    one = record(status=BackupStatus.FAILED, error=error)
    operator.place(one)
    shown = operator.says("backup-show", one.id)
    assert shown.endswith("+\nengine_failed: it?[2J ended\n  what to do: look there\n")
    assert operator.json("backup-show", one.id)["error"] == error.model_dump()


def test_create_and_delete(operator: Operator, rabbitmq: RabbitMQ) -> None:
    with probing(rabbitmq) as probe:
        queue = f"backup.tasks.{INSTANCE}"
        probe.channel.exchange_declare("backup.tasks", "direct", durable=True)
        probe.channel.queue_declare(queue, durable=True)
        probe.channel.queue_bind(queue, "backup.tasks", INSTANCE)
        try:
            parent = "3d0a46de-b5e0-4c9e-937f-e87b610961c6"
            about = ["--description", "inc backup inc.001", "--parent", parent]
            made = operator.agent.cli("backup-create", INSTANCE, "inc.001", *about)
            gone = operator.agent.cli("backup-delete", parent, "--instance", INSTANCE)
            tasks = [json.loads(probe.take(queue)[2]) for _ in range(2)]
        finally:
            probe.channel.queue_delete(queue)
    assert made.returncode == 0
    assert "the task waits in its queue" in made.stderr
    expected = CREATED.replace("9697e010-ec8d-4881-bccb-cd1b3aac57cf", tasks[0]["backup"]["id"])
    # the server's version is unknown until its agent answers
    for value in ("'5.5'", "'35b4c566-935c-4606-b077-20b90f2bf5df'"):
        expected = expected.replace(value, "None")
    now = re.search(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d", made.stdout)
    assert now
    assert _text(made.stdout) == _text(expected.replace("2016-12-30T03:06:41", now[0]))
    assert _as_wide_as_its_text(made.stdout)
    assert (gone.returncode, gone.stdout) == (0, "")
    assert tasks[1]["backup_id"] == parent


# --- lists of any record -----------------------------------------------------------------


def _many(count: int, **changes: Any) -> list[Record]:
    """Return backups of one instance, each a second later than the one before.

    Their ids are in no order.
    """
    return [
        completed(
            id=str(UUID(int=(7 * number) % 101)),
            name=f"n{number}",
            updated=f"2026-03-01T00:00:{number:02}Z",
            **changes,
        )
        for number in range(count)
    ]


def test_the_newest_and_of_these_the_oldest_first(operator: Operator) -> None:
    operator.place(*_many(10))
    for limit, first in {"1": 9, "3": 7, "10": 0, "99": 0}.items():
        rows = operator.json("backup-list-instance", INSTANCE, "--limit", limit)
        assert [row["name"] for row in rows] == [f"n{number}" for number in range(first, 10)]


@pytest.mark.parametrize("limit", ["0", "-1", "1.5", "x", "", "٣", "00"])
def test_a_limit_that_is_none(capsys: pytest.CaptureFixture[str], limit: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["backup-list-instance", INSTANCE, f"--limit={limit}"])
    assert ended.value.code == 2
    assert (
        f"argument --limit: {limit!r} is not a whole number of at least 1"
        in capsys.readouterr().err
    )


def test_an_instance_that_nobody_knows(operator: Operator) -> None:
    operator.place(*_many(2))
    said = operator.says("backup-list-instance", str(uuid4()))
    assert said.splitlines()[1] == "| ID | Name | Status | Parent ID | Updated |"
    assert len(said.splitlines()) == 4
    assert operator.json("backup-list-instance", str(uuid4())) == []


def test_an_empty_container(operator: Operator) -> None:
    assert len(operator.says("backup-list").splitlines()) == 4
    assert operator.json("backup-list") == []


def test_no_container_is_a_note(operator: Operator, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    done = operator.agent.cli("backup-list", "--json", "--store", f"file://{nowhere}")
    assert (done.returncode, json.loads(done.stdout)) == (0, [])
    assert f"note: no backups found: there is no directory {nowhere}" in done.stderr
    assert not nowhere.exists()


def test_a_missing_container_is_told_with_those_that_are_there(
    operator: Operator, swift: SwiftServer, tmp_path: Path
) -> None:
    """The folder may hold another tenant's backups, or it may be the wrong folder."""
    container = f"database_backups_{operator.agent.tenant_id}"
    for other in ("database_backups_other", "database_backups_other_segments", "odd\nname"):
        (tmp_path / other).mkdir()
    (tmp_path / "a file").touch()
    at = ("--store", f"file://{tmp_path}")
    done = operator.agent.cli("backup-list", *at)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 4)
    there = f"there is no container {container} in {tmp_path}, only database_backups_other\n"
    assert f"note: no backups found: {there}" in done.stderr
    assert "[agent] tenant_id" in done.stderr
    for verb in (("backup-show", str(uuid4())), ("restore", str(uuid4()), "/srv/x", "--local")):
        done = operator.agent.cli(*verb, *at)
        assert done.returncode == 1
        assert there in done.stderr

    missing = {"BACKUP_AGENT_STORE__CONTAINER": "never-made"}
    operator.store.open()
    done = operator.agent.cli("backup-list", environment=missing)
    assert "there is no container never-made in the account, only " in done.stderr
    done = operator.agent.cli("gc", environment=missing)
    assert done.returncode == 0
    # the account's listing is refused
    swift.inject([{"match": r"AUTH_test\?", "status": 403, "times": 9}])
    done = operator.agent.cli("backup-list", environment=missing)
    assert "there is no container never-made in the account\n" in done.stderr


def test_bad_records_are_shown_and_hide_no_other(operator: Operator) -> None:
    good = _many(3)
    forged = completed(id=str(UUID(int=200)), name="forged", updated="9999-12-31T23:59:59Z")
    foreign = completed(id=str(UUID(int=201)), name="foreign", updated="2026-02-01T00:00:00Z")
    junk = str(UUID(int=202))
    operator.place(*good)
    operator.place(foreign, keys=keyring("k9"))
    namesake = keyring(KEY_ID, fill=9)
    other = completed(
        id=str(UUID(int=203)),
        name="other",
        updated="2026-02-01T00:00:01Z",
        keys=namesake.wrap_all(bytes(32)),
    )
    operator.place(other, keys=namesake)
    operator.put(forged.id, forged.model_dump_json().encode())
    operator.put(junk, b"junk")
    later = completed(id=str(UUID(int=204)))
    line = later.model_dump_json().replace('"format":1', '"format":2')
    operator.put(later.id, operator.keys.sign(line.encode()))
    rows = operator.says("backup-list").splitlines()[3:-1]
    told = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert [(row[0], row[2], row[3]) for row in told] == [
        (junk, "None", "UNREADABLE"),
        (forged.id, "forged", "COMPLETED (bad)"),
        (foreign.id, "foreign", "COMPLETED (key-not-here)"),
        (other.id, "other", "COMPLETED (other-key)"),
        *((one.id, one.name, "COMPLETED") for one in good),
        (later.id, "None", "UNSUPPORTED"),
    ]
    done = operator.agent.cli("backup-list-instance", INSTANCE, "--limit", "3", "--json")
    newest = [*(one.id for one in good[-2:]), later.id]
    assert [row["id"] for row in json.loads(done.stdout)] == newest
    assert "note: 1 of the container's records can't be read" in done.stderr
    shown = operator.json("backup-show", junk)
    known = {"id": junk, "status": "UNREADABLE", "record_state": "bad"}
    assert {name: value for name, value in shown.items() if value is not None} == known
    keys = [list(row) for row in operator.json("backup-list")]
    assert keys == [[*keys[0]]] * len(rows)
    assert keys[0] == list(shown)


def test_lists_need_no_keys(operator: Operator) -> None:
    operator.place(*_examples())
    text = operator.agent.config.read_text()
    operator.agent.config.write_text(text[: text.index("[keys]")])
    said = operator.says("backup-list")
    assert said.count("COMPLETED (key-not-here)") == 3


def test_the_second_list_reads_no_record(operator: Operator, swift: SwiftServer) -> None:
    operator.place(*_examples())
    before = operator.says("backup-list")
    asked = len(swift.requests())
    assert operator.says("backup-list") == before
    gets = [line for line in swift.requests()[asked:] if re.search(r"GET .*\.json ", line)]
    assert gets == []
    assert any((operator.agent.folder / "state" / "cache").glob("*.records"))


def test_a_backup_that_is_not_there(operator: Operator) -> None:
    missing = str(uuid4())
    done = operator.agent.cli("backup-show", missing)
    assert (done.returncode, done.stdout) == (1, "")
    what, todo = done.stderr.splitlines()
    assert what.startswith(f"backup-agent: backup_unknown: there is no backup {missing} in http")
    assert todo.startswith("  what to do: ")


def test_a_store_that_is_away(operator: Operator, swift: SwiftServer) -> None:
    operator.place(*_examples())
    swift.inject([{"match": r"\.json", "method": "GET", "times": 1000, "status": 403}])
    for verb in (["backup-list"], ["backup-list-instance", INSTANCE]):
        done = operator.agent.cli(*verb)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("backup-agent: store_denied: ")


def test_a_backup_without_its_ancestor_is_named_by_all_that_list(operator: Operator) -> None:
    base = completed()
    middle = completed(base, to_lsn=200)
    last = completed(middle, to_lsn=300)
    operator.place(middle, last)
    why = f"its ancestor {base.id} has no record"
    note = f"note: nothing can be restored from backup {last.id}: {why}"
    for words in (
        ["backup-list"],
        ["backup-list-instance", INSTANCE],
        ["backup-show", last.id],
        ["gc", "--dry-run"],
    ):
        told = operator.agent.cli(*words)
        assert (told.returncode, note in told.stderr) == (0, True), words
        assert note not in told.stdout
    rows = json.loads(operator.agent.cli("backup-list", "--json").stdout)
    assert {row["id"]: row["unrestorable"] for row in rows} == dict.fromkeys(
        (middle.id, last.id), f"its ancestor {base.id} has no record"
    )
    refused = operator.agent.cli("restore", "--local", last.id, operator.agent.folder / "back")
    assert f"backup {middle.id} needs its parent {base.id}" in refused.stderr
    operator.place(base)
    assert operator.says("backup-list")
