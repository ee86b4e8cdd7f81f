"""Tests of COMPLETED backups that lack an ancestor.

A backup with an ancestor that only the listing lacks is not one of them.
"""

from typing import Any
from uuid import UUID

import pytest

from agent.errors import StoreBusy
from agent.keys.keyring import RecordState
from agent.model import BackupStatus, Record
from agent.records.ancestry import Ancestry
from agent.records.reading import ListedRecord
from tests.records.made import completed


def chain(length: int) -> list[Record]:
    records = [completed(id=str(UUID(int=1)))]
    for number in range(2, length + 1):
        fields: dict[str, Any] = {"id": str(UUID(int=number)), "to_lsn": number * 100}
        records.append(completed(records[-1], **fields))
    return records


def listed(record: Record, state: RecordState = RecordState.OK) -> ListedRecord:
    return ListedRecord(record.id, state, record)


def broken(rows: list[ListedRecord], unlisted: list[ListedRecord] | None = None) -> dict[int, str]:
    ancestry = Ancestry()
    for row in rows:
        ancestry.add(row)
    there = {row.backup_id: row for row in unlisted or []}
    return {UUID(one.backup_id).int: one.why for one in ancestry.broken(there.get)}


def test_whole_chains_and_what_is_not_listed_yet() -> None:
    one, two, three, four = chain(4)
    assert broken([listed(record) for record in (four, two, one, three)]) == {}
    # The listing lacks two in a row, but both can be read by their names.
    assert broken([listed(four), listed(one)], [listed(two), listed(three)]) == {}


def test_all_below_a_missing_ancestor_are_named() -> None:
    one, two, three, four = chain(4)
    assert broken([listed(record) for record in (one, three, four)]) == {
        3: f"its ancestor {two.id} has no record",
        4: f"its ancestor {two.id} has no record",
    }


@pytest.mark.parametrize("status", [BackupStatus.FAILED, BackupStatus.DELETING])
def test_an_ancestor_that_is_not_completed(status: BackupStatus) -> None:
    one, two, three = chain(3)
    gone = one.model_copy(update={"status": status})
    found = broken([listed(three), listed(gone), listed(two)], [listed(gone)])
    assert found == dict.fromkeys((2, 3), f"its ancestor {one.id} is {status}")


def test_an_ancestor_that_was_completed_after_it_was_read() -> None:
    """A slow listing reads the child after the ancestor, when both are COMPLETED."""
    one, two, three = chain(3)
    early = listed(one.model_copy(update={"status": BackupStatus.BUILDING, "to_lsn": None}))
    assert broken([early, listed(two), listed(three)], [listed(one)]) == {}
    # An ancestor that can't be read again may be COMPLETED in the meantime.
    assert broken([early, listed(two)], [listed(one, RecordState.KEY_NOT_HERE)]) == {}


def test_ancestors_that_do_not_fit_or_come_back_to_themselves() -> None:
    one, two = chain(2)
    other = one.model_copy(update={"to_lsn": 99})
    assert list(broken([listed(two), listed(other)])) == [2]
    loop = [
        completed(id=str(UUID(int=7)), parent_id=str(UUID(int=8)), from_lsn=5, to_lsn=5),
        completed(id=str(UUID(int=8)), parent_id=str(UUID(int=7)), from_lsn=5, to_lsn=5),
    ]
    assert sorted(broken([listed(record) for record in loop])) == [7, 8]


@pytest.mark.parametrize(
    ("state", "flagged"), [(RecordState.BAD, True), (RecordState.KEY_NOT_HERE, False)]
)
def test_an_ancestor_that_can_not_be_trusted(state: RecordState, flagged: bool) -> None:
    one, two = chain(2)
    bad = listed(one, state)
    assert (2 in broken([bad, listed(two)], [bad])) is flagged


def test_a_store_that_does_not_answer_condemns_nothing() -> None:
    one, two = chain(2)
    ancestry = Ancestry()
    ancestry.add(listed(two))

    def look(backup_id: str) -> ListedRecord | None:
        raise StoreBusy(one.id)

    assert ancestry.broken(look) == []


def test_a_listing_that_is_far_behind_is_asked_about_a_bounded_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agent.records.ancestry._LOOKS", 3)
    ancestry, asked = Ancestry(), list[str]()
    for number in range(10):
        ancestry.add(listed(completed(parent_id=str(UUID(int=number)), from_lsn=1, to_lsn=2)))

    def look(backup_id: str) -> None:
        asked.append(backup_id)

    assert len(ancestry.broken(look)) == len(asked) == 3


def test_a_long_chain_takes_one_walk() -> None:
    records = chain(5000)
    assert broken([listed(record) for record in reversed(records)]) == {}
    assert len(broken([listed(record) for record in records[1:]])) == 4999
