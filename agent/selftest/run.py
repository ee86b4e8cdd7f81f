"""Runs the checks of the plan in order, and counts them.

One fault makes one FAIL: what can't be looked at because of it is a SKIP that names it. A
check that raises is a FAIL of that check. One that isn't there is noticed.
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
from agent.selftest.check import Check, Outcome, Result, Verdict, failed, result, skipped
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
_DEFECT = "this is a defect of backup-agent: report it with this line"
_HOLDS = (Verdict.PASS, Verdict.WARN)


class Run:
    """One run over a plan; `results` are what was found so far."""

    def __init__(self, context: Context, say: Callable[[Result], None]) -> None:
        self._context = context
        self._say = say
        self._found: dict[str, Result] = {}
        self.results: list[Result] = []

    def all(self, plan: Mapping[str, Sequence[str]], groups: Mapping[str, Build] = GROUPS) -> None:
        """Look at every check of the plan; leaves nothing behind, also when interrupted."""
        with self._context:
            for group, names in plan.items():
                with self._context.group():
                    self._group(group, names, groups)

    def _group(self, group: str, names: Sequence[str], groups: Mapping[str, Build]) -> None:
        checks: list[Check] = []

        def build() -> Outcome:
            checks.extend(groups[group](self._context))
            return skipped("")

        crash = _attempt(build)
        for check in checks:
            outcome = self._outcome(group, check)
            if check.name not in names or f"{group}: {check.name}" in self._found:
                outcome = failed("this check is not in the plan, or is there twice", _DEFECT)
            self._add(result(group, check.name, outcome))
        why = crash.found or "this check was not looked at"
        for name in names:
            if f"{group}: {name}" not in self._found:
                self._add(result(group, name, failed(why, _DEFECT)))

    def _outcome(self, group: str, check: Check) -> Outcome:
        for need in check.needs:
            label = need if ": " in need else f"{group}: {need}"
            needed = self._found.get(label)
            # one whose group was not asked for says nothing
            if needed is None or needed.verdict in _HOLDS:
                continue
            if needed.verdict is Verdict.SKIP:
                return skipped(needed.found)
            return skipped(f"not looked at, because '{label}' failed")
        return _attempt(check.look)

    def _add(self, found: Result) -> None:
        self._found[found.label] = found
        self.results.append(found)
        self._say(found)


def _attempt(look: Callable[[], Outcome]) -> Outcome:
    """What a check finds; whatever it raises is what it found, but for an interruption."""
    stop = Stop()
    outcome = failed("it found nothing", _DEFECT)
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
    """How many checks there were, and how many of each verdict."""
    counts = Counter(one.verdict for one in results)
    return {
        "checks": counts.total(),
        "passed": counts[Verdict.PASS],
        "warnings": counts[Verdict.WARN],
        "failed": counts[Verdict.FAIL],
        "skipped": counts[Verdict.SKIP],
    }
