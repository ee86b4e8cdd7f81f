"""Random schemas and their changes, each backed up, restored and compared, from a seed.

`python -m tests.faults.names` runs as many trials as time allows.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Final

from tests.faults.names.generate import script
from tests.faults.names.judge import Outcome, tried
from tests.faults.names.rig import Templates
from tests.faults.names.script import Script
from tests.faults.names.shrink import shrunk
from tests.faults.trial import Bench, Plan, Seen, Trial

LEAST: Final[Mapping[str, int]] = {"names": 60}
_SHORT: Final = 3
_MANY_EVERY: Final = 20
_SWIFT_EVERY: Final = 10
_SHRINK_SECONDS: Final = 90.0


def trials(plan: Plan) -> Iterator[Trial]:
    """Yield the trials. Each twentieth has 200 schemas, and each tenth is stored in Swift."""
    for number in range(LEAST["names"] if plan.full else _SHORT):
        seed = f"{plan.seed} {number}"
        yield Trial(
            "names",
            str(number),
            "a random schema and its changes are backed up, restored and compared",
            functools.partial(_trial, seed=seed, number=number),
        )


def _trial(bench: Bench, seed: str, number: int) -> Seen:
    outcome, told = attempt(bench.shared(Templates), seed, number)
    assert not outcome.fault, f"{outcome.fault}: {outcome.detail}\n{told}"
    return Seen(outcome.verdict)


def attempt(
    templates: Templates, seed: str, number: int, seconds: float = _SHRINK_SECONDS
) -> tuple[Outcome, str]:
    """Run one trial. Return its outcome, and the smallest script that shows a fault, if any."""
    swift = number % _SWIFT_EVERY == 1
    made = script(seed, many=number % _MANY_EVERY == _MANY_EVERY - 1)
    outcome = tried(templates, made, swift=swift)
    if not outcome.fault:
        return outcome, ""

    def shows(other: Script) -> bool:
        return tried(templates, other, swift=swift).fault == outcome.fault

    small = shrunk(made, shows, seconds)
    again = tried(templates, small, swift=swift)
    return again if again.fault else outcome, small.told()
