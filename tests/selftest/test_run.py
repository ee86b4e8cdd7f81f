"""Checks are run and counted: none vanishes, and one fault is one failure."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from agent.errors import StoreFull
from agent.selftest.check import Check, CheckOutcome, Result, Verdict, failed, passed, skipped
from agent.selftest.context import Context
from agent.selftest.plan import PLAN, TRIAL, chosen
from agent.selftest.run import GROUPS, Run, summary
from tests.selftest.site import labels

PLANNED = {"first": ("a", "b", "c"), "second": ("d",)}


def look(*checks: Check, second: Sequence[Check] = ()) -> list[Result]:
    """Run `checks` as the group `first` and `second` as the group `second`, and return results."""
    run = Run(Context(Path("none")), lambda _result: None)
    run.all(PLANNED, {"first": lambda _: checks, "second": lambda _: second or [fine("d")]})
    return run.results


def fine(name: str, *needs: str) -> Check:
    return Check(name, lambda: passed("well"), needs)


def raising(name: str, error: BaseException) -> Check:
    def look() -> CheckOutcome:
        raise error

    return Check(name, look)


def test_all_in_order() -> None:
    results = look(fine("a"), fine("b"), fine("c"))
    assert [one.label for one in results] == ["first: a", "first: b", "first: c", "second: d"]
    assert summary(results) == {
        "checks": 4,
        "passed": 4,
        "warnings": 0,
        "failed": 0,
        "skipped": 0,
    }


def test_a_check_that_vanished_is_noticed() -> None:
    results = look(fine("a"), fine("c"))
    assert labels(results, Verdict.FAIL) == {"first: b"}
    assert summary(results)["checks"] == 4


def test_a_check_that_is_not_planned_is_noticed() -> None:
    results = look(fine("a"), fine("b"), fine("c"), fine("x"))
    assert labels(results, Verdict.FAIL) == {"first: x"}


def test_a_check_that_is_there_twice_is_noticed() -> None:
    results = look(fine("a"), fine("b"), fine("b"), fine("c"))
    assert labels(results, Verdict.FAIL) == {"first: b"}


def test_an_error_of_ours_is_a_failure_in_its_own_words() -> None:
    full = StoreFull("the store is full", hint="buy disks")
    [_, result, *_] = look(fine("a"), raising("b", full), fine("c"))
    assert result == Result("first", "b", Verdict.FAIL, "the store is full", "buy disks")


def test_a_check_that_crashes_is_its_own_failure() -> None:
    results = look(fine("a"), raising("b", ZeroDivisionError("by zero")), fine("c"))
    assert labels(results, Verdict.FAIL) == {"first: b"}
    assert "ZeroDivisionError: by zero" in results[1].found
    assert "defect" in results[1].cure


def test_a_group_that_crashes_fails_each_of_its_checks_and_no_other() -> None:
    def crash(_context: Context) -> Sequence[Check]:
        raise KeyError("x")

    run = Run(Context(Path("none")), lambda _result: None)
    run.all(PLANNED, {"first": crash, "second": lambda _: [fine("d")]})
    assert labels(run.results, Verdict.FAIL) == {"first: a", "first: b", "first: c"}


def test_what_needs_a_failed_one_is_not_looked_at() -> None:
    """This includes indirect needs and needs of another group.

    The reason given is the check that failed.
    """
    results = look(
        Check("a", lambda: failed("broken", "mend it")),
        fine("b", "a"),
        fine("c", "b"),
        second=[fine("d", "first: c")],
    )
    assert labels(results, Verdict.FAIL) == {"first: a"}
    assert labels(results, Verdict.SKIP) == {"first: b", "first: c", "second: d"}
    assert {one.found for one in results[1:]} == {"not checked, because 'first: a' failed"}


def test_what_needs_a_skipped_one_says_the_same_reason() -> None:
    results = look(Check("a", lambda: skipped("no such thing here")), fine("b", "a"), fine("c"))
    assert [one.found for one in results[:3]] == ["no such thing here"] * 2 + ["well"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_an_interruption_ends_the_run_and_undoes_what_was_done(error: BaseException) -> None:
    context = Context(Path("none"))
    undone: list[str] = []
    context.undo.callback(undone.append, "run")

    def first(inner: Context) -> Sequence[Check]:
        inner.after_group.callback(undone.append, "group")
        return [fine("a"), raising("b", error), fine("c")]

    run = Run(context, lambda _result: None)
    with pytest.raises(type(error)):
        run.all(PLANNED, {"first": first, "second": lambda _: [fine("d")]})
    assert undone == ["group", "run"]
    assert [one.name for one in run.results] == ["a"]


def test_foreign_words_can_not_steer_a_terminal() -> None:
    results = look(Check("a", lambda: failed("\x1b[2J\n" + "x" * 9999, "y\r")), fine("b"))
    assert results[0].found.startswith("?[2J?x")
    assert len(results[0].found) < 1000
    assert results[0].cure == "y?"


def test_each_group_of_the_plan_can_be_asked_for() -> None:
    assert chosen().keys() == PLAN.keys()
    assert chosen(full=True).keys() == PLAN.keys() | TRIAL.keys()
    assert chosen(("store",)) == {"store": PLAN["store"]}
    assert PLAN.keys() | TRIAL.keys() == GROUPS.keys()


@pytest.mark.parametrize("group", GROUPS)
def test_every_need_is_a_check_of_the_plan(group: str) -> None:
    """A need with a misspelt name would have no effect."""
    known = {f"{name}: {check}" for name, checks in chosen(full=True).items() for check in checks}
    build: Callable[[Context], Sequence[Check]] = GROUPS[group]
    for check in build(Context(Path("none"))):
        assert f"{group}: {check.name}" in known
        for need in check.needs:
            assert (need if ": " in need else f"{group}: {need}") in known
