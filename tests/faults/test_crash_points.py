"""Each named crash point is in the agent's code, and has a trial."""

import ast
from collections import Counter
from collections.abc import Iterator

import pytest

from agent.crash_points import Point
from tests.faults import crashes
from tests.faults.ledger import Ledger
from tests.faults.trial import Plan
from tests.house.source import modules, tree_of

POINTS = "crash point"


def reached_points(tree: ast.Module) -> Iterator[str]:
    """Yield the names in calls of `reached(Point.NAME)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("reached"):
            [point] = node.args
            assert isinstance(point, ast.Attribute), ast.unparse(node)
            yield point.attr


def test_every_point_is_reached_somewhere_in_the_agent() -> None:
    called = {
        name
        for module, path in modules().items()
        if module.startswith("agent.")
        for name in reached_points(tree_of(path))
    }
    assert called == {point.name for point in Point}


def test_every_point_has_a_trial_and_the_counts_are_met() -> None:
    every = list(crashes.trials(Plan(1, full=True)))
    tried = {trial.name.split()[0].partition(":")[0] for trial in every if trial.kind == POINTS}
    assert tried == set(Point)
    counts = Counter(trial.kind for trial in every)
    assert all(counts[kind] >= count for kind, count in crashes.LEAST.items())


def test_the_short_form_follows_from_the_seed() -> None:
    def names(seed: int) -> list[str]:
        return [f"{trial.name} {trial.done}" for trial in crashes.trials(Plan(seed, full=False))]

    assert names(1) == names(1)
    assert names(1) != names(2)
    some = {name for seed in range(200) for name in names(seed)}
    whole = {f"{t.name} {t.done}" for t in crashes.trials(Plan(1, full=True)) if t.kind == POINTS}
    assert whole <= some


def ledger_of(*said: tuple[int, str]) -> Ledger:
    """Return a ledger that holds those numbers and statuses of one task, without a broker."""
    ledger = Ledger.__new__(Ledger)
    ledger.reports = [
        {"task_id": "t", "type": "agent.ping", "seq": seq, "status": status} for seq, status in said
    ]
    return ledger


def test_a_ledger_that_is_right() -> None:
    ledger_of((1, "ACCEPTED"), (2, "RUNNING"), (5, "DONE")).check(["t"])


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ([(1, "ACCEPTED"), (2, "DONE"), (3, "DONE")], "not one final report"),
        ([(1, "ACCEPTED"), (2, "RUNNING")], "not one final report"),
        ([(2, "ACCEPTED"), (1, "DONE")], "numbers don't grow"),
        ([(1, "ACCEPTED"), (2, "DONE"), (3, "RUNNING")], "reported after the end"),
        ([(1, "RUNNING"), (2, "DONE")], "not ACCEPTED first"),
    ],
)
def test_a_ledger_that_is_wrong(said: list[tuple[int, str]], complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        ledger_of(*said).check(["t"])
