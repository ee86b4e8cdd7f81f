"""All trials, module by module, in the order in which they run."""

from collections import Counter
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Final

from tests.faults import broker, cancel, crashes, damage, disk, engine, messages, secrets, swift
from tests.faults.names import trials as names
from tests.faults.trial import Plan, Trial

MODULES: Final[tuple[ModuleType, ...]] = (
    crashes,
    cancel,
    engine,
    swift,
    broker,
    damage,
    disk,
    secrets,
    messages,
    names,
)


def all_trials(plan: Plan) -> Iterator[Trial]:
    for module in MODULES:
        yield from module.trials(plan)


def least() -> Mapping[str, int]:
    """Return the number of cases of each kind that a full run must reach."""
    counts: Counter[str] = Counter()
    for module in MODULES:
        counts.update(module.LEAST)
    return counts
