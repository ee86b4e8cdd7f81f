"""Tests of the descendants of a backup, of the order of deletion, and of the drawing."""

import re
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, strategies as st

from agent.errors import KeyNotHere
from agent.keys.keyring import RecordState
from agent.model import Record, WrappedKey
from agent.records.catalogue import ListedRecord
from agent.records.descendants import Family
from tests.records.made import completed


def named(number: int, parent: int | None = None, **changes: Any) -> Record:
    """Return a record with a number as its id. `parent` need not exist."""
    parent_id = None if parent is None else str(UUID(int=parent))
    fields: dict[str, Any] = {"id": str(UUID(int=number)), "name": f"b{number}"}
    return completed(parent_id=parent_id, **(fields | changes))


def rows(records: Sequence[Record], state: RecordState = RecordState.OK) -> list[ListedRecord]:
    return [ListedRecord(record.id, state, record) for record in records]


def numbers(family: Family) -> list[int]:
    return [UUID(kin.id).int for kin in family.plan()]


def drawn(family: Family) -> list[tuple[int, int]]:
    """Return the number and the depth of each line of the drawing."""
    lines = [re.match(r"([ │├└─]*)(\S+)", line) for line in family.draw()]
    return [(UUID(line[2]).int, len(line[1]) // 4) for line in lines if line]


def test_the_deepest_go_first_and_the_root_last() -> None:
    records = [named(1), named(2, 1), named(3, 2), named(4, 1), named(5, 4), named(6, 3)]
    family = Family(records[0], rows([*records, named(7), named(8, 7)]))
    assert numbers(family)[0] == 6
    assert numbers(family)[-1] == 1
    assert sorted(numbers(family)) == [1, 2, 3, 4, 5, 6]
    assert drawn(family) == [(1, 0), (2, 1), (3, 2), (6, 3), (4, 1), (5, 2)]


@given(st.lists(st.integers(0, 12), min_size=1, max_size=12), st.integers(1, 12))
def test_any_records_whatever_their_parents(parents: list[int], root: int) -> None:
    """The records may form loops, lack their parents, or be their own parents."""
    there = {number + 1: parent or None for number, parent in enumerate(parents)}
    family = Family(
        named(root, there.get(root)),
        rows([named(number, parent) for number, parent in there.items()]),
    )
    order = numbers(family)
    assert sorted(order) == sorted(_below(root, there))
    assert order[-1] == root
    for place, number in enumerate(order[:-1]):
        assert there[number] in order[place + 1 :]
    assert sorted(number for number, _ in drawn(family)) == sorted(order)
    assert len(list(family.draw())) == len(order)


def _below(root: int, parents: dict[int, int | None]) -> set[int]:
    """Return the root and all numbers that lead to it through their parents."""
    found = {root}
    while more := {n for n, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def test_a_chain_of_thousands() -> None:
    chain = [named(1), *(named(number, number - 1) for number in range(2, 5001))]
    family = Family(chain[0], rows(list(reversed(chain))))
    assert numbers(family) == list(range(5000, 0, -1))
    lines = list(family.draw())
    assert len(lines) == 5000
    assert max(map(len, lines)) < 250
    assert "4999 levels down: 00000000-0000-0000-0000-000000001388" in lines[-1]


def test_a_loop_of_parents() -> None:
    loop = [named(1, 3), named(2, 1), named(3, 2), named(4, 4), named(5, 1)]
    assert numbers(Family(loop[0], rows(loop)))[0] == 3
    assert numbers(Family(loop[0], rows(loop)))[-1] == 1
    assert sorted(numbers(Family(loop[0], rows(loop)))) == [1, 2, 3, 5]
    assert numbers(Family(loop[3], rows(loop))) == [4]


def test_a_record_that_fails_its_mac_is_no_member_and_hides_what_is_below_it() -> None:
    forged = named(2, 1)
    others = [named(1), named(3, 2), named(4, 1)]
    unreadable = ListedRecord(str(UUID(int=9)), RecordState.BAD, None)
    listed = [*rows(others), *rows([forged, named(8, 7)], RecordState.BAD), unreadable]
    family = Family(others[0], listed)
    assert numbers(family) == [4, 1]
    assert [kin.id for kin in family.bad] == [forged.id]
    family.check()


def test_a_descendant_that_no_key_can_check_is_named_with_its_keys() -> None:
    locked = named(3, 2, keys=(WrappedKey(id="winter", wrapped=""),))
    records = [named(1), named(2, 1)]
    elsewhere = named(9, 8)
    family = Family(
        records[0], [*rows(records), *rows([locked, elsewhere], RecordState.KEY_NOT_HERE)]
    )
    assert numbers(family) == [2, 1]
    with pytest.raises(KeyNotHere, match=rf"{locked.id} descends.*'winter'"):
        family.check()


def test_the_tree_as_it_is_drawn() -> None:
    times = [f"2026-02-0{day}T00:00:00Z" for day in range(1, 10)]
    records = [
        named(1, created=times[0], name="base"),
        named(2, 1, created=times[1], name="mon\x1b[2Jday"),
        named(3, 1, created=times[3]),
        named(4, 2, created=times[2], name="größer 備份"),
        named(5, 4, created=times[4]),
    ]
    ids = [record.id for record in records]
    assert list(Family(records[0], rows(records)).draw()) == [
        f"{ids[0]}  base  COMPLETED",
        f"├── {ids[1]}  mon?[2Jday  COMPLETED",
        f"│   └── {ids[3]}  größer 備份  COMPLETED",
        f"│       └── {ids[4]}  b5  COMPLETED",
        f"└── {ids[2]}  b3  COMPLETED",
    ]


def test_records_that_can_not_be_trusted_cost_a_bounded_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agent.records.descendants._CLAIMS", 10)
    root, child = named(1), named(2, 1)
    forged = [named(100 + number, 1) for number in range(20)]
    elsewhere = [named(200 + number, 1000 + number) for number in range(20)]
    family = Family(root, rows([root, child]))
    family.add(rows([*forged, *elsewhere], RecordState.BAD))
    assert numbers(family) == [2, 1]
    assert [claim.id for claim in family.bad] == [record.id for record in forged[:3]]
    assert family.bad_count == 20
    assert len(family._bad._by_parent) == 8
    family.check()
    # A record that no key can check, and that is not remembered, may be a child.
    family.add(rows(elsewhere, RecordState.KEY_NOT_HERE))
    with pytest.raises(KeyNotHere, match="more than 10 records"):
        family.check()
