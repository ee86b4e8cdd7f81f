"""Run the checks of the plan in order, and count them.

One fault makes one FAIL. A check that can't run because of that fault becomes a SKIP that names it.
A check that raises becomes a FAIL, and so does a check of the plan that does not exist.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from agent.errors import AgentError
from agent.selftest import (
    broker,
    configuration,
    database,
    datapath,
    host,
    keys,
    records,
    store,
    trial,
)
from agent.selftest.check import Check, CheckOutcome, Result, Verdict, failed, result, skipped
from agent.selftest.context import Context
from agent.stop import Stop

Build = Callable[[Context], Sequence[Check]]
GROUPS: Final[dict[str, Build]] = {
    "configuration": configuration.checks,
    "host": host.checks,
    "database": database.checks,
    "keys": keys.checks,
    "broker": broker.checks,
    "store": store.checks,
    "records": records.checks,
    "data path": datapath.checks,
    "trial": trial.checks,
}
_DEFECT = "this is a defect of backup-agent: report it, with this line"
_HOLDS = (Verdict.PASS, Verdict.WARN)


class Run:
    """One run over a plan. `results` has the results so far, in order."""

    def __init__(self, context: Context, say: Callable[[Result], None]) -> None:
        self._context = context
        self._say = say
        self._found: dict[str, Result] = {}
        self.results: list[Result] = []

    def all(self, plan: Mapping[str, Sequence[str]], groups: Mapping[str, Build] = GROUPS) -> None:
        """Run every check of the plan, and clean up, also after an interrupt."""
        with self._context:
            for group, names in plan.items():
                with self._context.group():
                    self._group(group, names, groups)

    def _group(self, group: str, names: Sequence[str], groups: Mapping[str, Build]) -> None:
        checks: list[Check] = []

        def build() -> CheckOutcome:
            checks.extend(groups[group](self._context))
            return skipped("")

        crash = _attempt(build)
        for check in checks:
            outcome = self._outcome(group, check)
            if check.name not in names or f"{group}: {check.name}" in self._found:
                outcome = failed("this check is not in the plan, or is a duplicate", _DEFECT)
            self._add(result(group, check.name, outcome))
        why = crash.found or "this check of the plan does not exist"
        for name in names:
            if f"{group}: {name}" not in self._found:
                self._add(result(group, name, failed(why, _DEFECT)))

    def _outcome(self, group: str, check: Check) -> CheckOutcome:
        for need in check.needs:
            label = need if ": " in need else f"{group}: {need}"
            needed = self._found.get(label)
            # a check of a group that was not requested has no result, and counts as passed
            if needed is None or needed.verdict in _HOLDS:
                continue
            if needed.verdict is Verdict.SKIP:
                return skipped(needed.found)
            return skipped(f"not checked, because '{label}' failed")
        return _attempt(check.look)

    def _add(self, found: Result) -> None:
        self._found[found.label] = found
        self.results.append(found)
        self._say(found)


def _attempt(look: Callable[[], CheckOutcome]) -> CheckOutcome:
    """Run a check, and return its outcome.

    An error that the check raises becomes a FAIL. An interrupt (KeyboardInterrupt, SystemExit) is
    raised again.
    """
    stop = Stop()
    outcome = failed("the check has no outcome", _DEFECT)
    with stop.guard():
        outcome = look()
    if isinstance(stop.cause, AgentError):
        return failed(str(stop.cause), stop.cause.hint)
    if isinstance(stop.cause, Exception):
        text = f"the check itself failed: {type(stop.cause).__name__}: {stop.cause}"
        return failed(text, _DEFECT)
    stop.check()
    return outcome


def summary(results: Iterable[Result]) -> dict[str, int]:
    """Return the number of checks, and the number of each verdict."""
    counts = Counter(one.verdict for one in results)
    return {
        "checks": counts.total(),
        "passed": counts[Verdict.PASS],
        "warnings": counts[Verdict.WARN],
        "failed": counts[Verdict.FAIL],
        "skipped": counts[Verdict.SKIP],
    }
