"""The tables that the operators know, character by character."""

import json

import pytest
from wcwidth import wcswidth  # type: ignore[import-untyped,unused-ignore]

from agent.cli import tables
from agent.keys.keyring import RecordState
from agent.model import BackupStatus, Datastore, Record
from agent.records.catalogue import ListedRecord
from agent.records.reading import LaterRecord
from tests.records.made import completed, record

BASE = completed(
    id="11111111-7e62-450c-b462-3b55f4b353f0",
    created="2026-12-28T02:20:00Z",
    updated="2026-12-28T02:24:13Z",
)
INC = completed(
    BASE,
    id="22222222-e2a8-4e48-983b-ac104e93b304",
    name="inc.001",
    description="after the release",
    datastore=Datastore(
        type="mysql", version="5.5", version_id="35b4c566-935c-4606-b077-20b90f2bf5df"
    ),
    size=0.1,
    locationRef="http://obs.example.com:9090/swift/v1/database_backups_0cbb/2222.xbstream.gz.enc",
    created="2026-12-30T03:06:41Z",
    updated="2026-12-30T03:07:02Z",
)


def _row(one: Record, state: RecordState = RecordState.OK) -> dict[str, object]:
    return tables.row(ListedRecord(one.id, state, one))


LIST = """\
+--------------------------------------+--------------------------------------+---------+-----------+--------------------------------------+---------------------+
| ID                                   | Instance ID                          | Name    | Status    | Parent ID                            | Updated             |
+--------------------------------------+--------------------------------------+---------+-----------+--------------------------------------+---------------------+
| 11111111-7e62-450c-b462-3b55f4b353f0 | a17461ab-6c97-4abf-8890-9f8b10886ecc | base    | COMPLETED | None                                 | 2026-12-28T02:24:13 |
| 22222222-e2a8-4e48-983b-ac104e93b304 | a17461ab-6c97-4abf-8890-9f8b10886ecc | inc.001 | COMPLETED | 11111111-7e62-450c-b462-3b55f4b353f0 | 2026-12-30T03:07:02 |
+--------------------------------------+--------------------------------------+---------+-----------+--------------------------------------+---------------------+"""  # noqa: E501 - as wide as the table is

SHOWN = """\
+-------------+-------------------------------------------------------------------------------------------+
| Property    | Value                                                                                     |
+-------------+-------------------------------------------------------------------------------------------+
| created     | 2026-12-30T03:06:41                                                                       |
| datastore   | {'version': '5.5', 'type': 'mysql', 'version_id': '35b4c566-935c-4606-b077-20b90f2bf5df'} |
| description | after the release                                                                         |
| id          | 22222222-e2a8-4e48-983b-ac104e93b304                                                      |
| instance_id | a17461ab-6c97-4abf-8890-9f8b10886ecc                                                      |
| locationRef | http://obs.example.com:9090/swift/v1/database_backups_0cbb/2222.xbstream.gz.enc           |
| name        | inc.001                                                                                   |
| parent_id   | 11111111-7e62-450c-b462-3b55f4b353f0                                                      |
| size        | 0.1                                                                                       |
| status      | COMPLETED                                                                                 |
| updated     | 2026-12-30T03:07:02                                                                       |
+-------------+-------------------------------------------------------------------------------------------+"""  # noqa: E501 - as wide as the table is

ASKED = """\
+-------------+--------------------------------------------------------+
| Property    | Value                                                  |
+-------------+--------------------------------------------------------+
| created     | 2026-02-03T04:05:06                                    |
| datastore   | {'version': None, 'type': 'mysql', 'version_id': None} |
| description |                                                        |
| id          | 33333333-e2a8-4e48-983b-ac104e93b304                   |
| instance_id | a17461ab-6c97-4abf-8890-9f8b10886ecc                   |
| locationRef | None                                                   |
| name        | base                                                   |
| parent_id   | None                                                   |
| size        | None                                                   |
| status      | NEW                                                    |
| updated     | 2026-02-03T04:05:06                                    |
+-------------+--------------------------------------------------------+"""


def test_backup_list() -> None:
    assert tables.list_table([_row(BASE), _row(INC)]) == LIST


def test_backup_show() -> None:
    assert tables.property_table(tables.view(INC.view())) == SHOWN


def test_backup_create() -> None:
    asked = record(
        id="33333333-e2a8-4e48-983b-ac104e93b304",
        status=BackupStatus.NEW,
        datastore=Datastore(type="mysql"),
    )
    assert tables.property_table(tables.view(asked.view())) == ASKED


def test_an_empty_list_is_a_table_with_its_head() -> None:
    head = tables.list_table([]).splitlines()
    assert len(head) == 4
    assert head[1] == "| ID | Instance ID | Name | Status | Parent ID | Updated |"


WIDTHS = {
    "größer": 6,
    "備份.001": 8,
    "山田\u3000太郎": 10,
    "e\u0301te\u0301": 3,
    "тест": 4,
    "עברית": 5,
    "ﷺ": 1,
    "ก็": 1,
    "क्षि": 2,
    "می\u200cخواهم": 7,  # noqa: RUF001
    "\u1112\u1161\u11ab": 2,
    "👍": 2,
    "👍🏽": 2,
    "❤️": 2,
    "1️⃣": 2,
    "👨\u200d👩\u200d👧": 2,
    "🤷🏽\u200d♂️": 2,
    "🏴\u200d☠️": 2,
    "🇩🇪🇫🇷": 4,
    "no\u00a0break": 8,
}


@pytest.mark.parametrize("name", WIDTHS)
def test_columns_are_as_wide_as_their_text_is_shown(name: str) -> None:
    rows = [_row(BASE), _row(record(name=name))]
    for table in (tables.list_table(rows), tables.instance_table(rows)):
        lines = table.splitlines()
        assert len({wcswidth(line) for line in lines}) == 1
        [line] = [line for line in lines if f"| {name} " in line]
        # the longest cell of the column is its header or this one
        assert f"| {name}{' ' * (max(4, WIDTHS[name]) - WIDTHS[name])} | " in line


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\u200db", "a?b"),
        ("\u200d👨", "?👨"),
        ("👨\u200d", "👨?"),
        ("👨\u200d\u200d👩", "👨??👩"),
        ("a\u200cb", "a?b"),
        ("می\u200c", "می?"),
        ("👍\u202e\u2066", "👍??"),
        ("🏴\U000e0067\U000e007f", "🏴??"),
    ],
)
def test_a_joiner_that_joins_nothing_is_not_kept(name: str, shown: str) -> None:
    lines = tables.list_table([_row(BASE), _row(record(name=name))]).splitlines()
    assert len({wcswidth(line) for line in lines}) == 1
    assert f"| {shown} " in lines[4]


@pytest.mark.parametrize(
    "evil",
    [
        "a\nb",
        "a\r\nb",
        "a\x1b[2Jb",
        "a\x00b",
        "a\u2028b",
        "a\u202eb",
        "a\x9b31mb",
        "a\tb",
        "a\u200bb",
    ],
)
def test_nothing_breaks_out_of_its_cell(evil: str) -> None:
    harmless = len(tables.list_table([_row(BASE)]).splitlines())
    table = tables.list_table([_row(BASE.model_copy(update={"name": evil}))])
    assert evil not in table
    assert "a?" in table
    assert len(table.splitlines()) == harmless
    assert all(char.isprintable() for char in table.replace("\n", ""))
    shown = tables.property_table(tables.view(BASE.model_copy(update={"name": evil}).view()))
    assert all(char.isprintable() for char in shown.replace("\n", ""))


def test_a_record_that_can_not_be_trusted_says_so() -> None:
    unreadable = tables.row(ListedRecord(BASE.id, RecordState.BAD, None))
    assert list(unreadable) == list(_row(BASE))
    table = tables.list_table([unreadable, _row(INC, RecordState.KEY_NOT_HERE)])
    first, second = table.splitlines()[3:5]
    assert f"| {BASE.id} | None" in first
    assert "| UNREADABLE " in first
    assert "| COMPLETED (key-not-here) |" in second


@pytest.mark.parametrize("state", [RecordState.UNSUPPORTED, RecordState.KEY_NOT_HERE])
def test_a_record_of_a_later_agent_says_so(state: RecordState) -> None:
    later = LaterRecord(BASE.instance_id, INC.id)
    shown = tables.row(ListedRecord(BASE.id, state, None, later=later))
    assert list(shown) == list(_row(BASE))
    assert shown["record_state"] == state.value
    cells = [cell.strip() for cell in tables.list_table([shown]).splitlines()[3].split("|")]
    status = "UNSUPPORTED" if state is RecordState.UNSUPPORTED else f"UNSUPPORTED ({state.value})"
    assert cells[1:6] == [BASE.id, BASE.instance_id, "None", status, INC.id]


def test_json_is_for_programs() -> None:
    found = json.loads(tables.as_json([_row(INC)]))
    assert found[0]["updated"] == "2026-12-30T03:07:02Z"
    assert found[0]["size"] == 0.1
    assert found[0]["parent_id"] == BASE.id
    assert found[0]["datastore"]["version"] == "5.5"
    assert found[0]["record_state"] == "ok"
    assert json.loads(tables.as_json("größer")) == "größer"


def test_a_record_that_is_not_ours_makes_no_table_wide() -> None:
    table = tables.list_table([_row(record(name="n" * 1_000_000), RecordState.BAD)])
    assert max(len(line) for line in table.splitlines()) < 3000


@pytest.mark.parametrize("evil", ["\x9b31m", "\u202e", "\x7f", "\u2028", "\U000e0041", "\u200b"])
def test_json_steers_no_terminal(evil: str) -> None:
    text = tables.as_json([{"name": f"größer 👍{evil}\n"}])
    assert all(line.isprintable() for line in text.split("\n"))
    assert "größer 👍" in text
    assert json.loads(text) == [{"name": f"größer 👍{evil}\n"}]


def test_an_instances_own_list_leaves_it_out() -> None:
    rows = [_row(BASE), _row(INC)]
    without = [line[:39] + line[78:] for line in LIST.splitlines()]
    assert tables.instance_table(rows).splitlines() == without
    assert tables.instance_table(map(tables.listed_cells, rows)).splitlines() == without
