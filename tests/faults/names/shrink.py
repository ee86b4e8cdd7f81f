"""Reduction of a script that shows a fault, as long as it shows the same fault."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.faults.names.script import Script


def shrunk(script: Script, shows: Callable[[Script], bool], seconds: float) -> Script:
    """Return the smallest script found in that time. `shows` returns True if one has the fault."""
    deadline = time.monotonic() + seconds
    for simpler in (_quiet, _without_options, _one_backup_less, _one_backup_less):
        made = simpler(script)
        if made != script and time.monotonic() < deadline and shows(made):
            script = made
    share = 2
    while time.monotonic() < deadline and script.steps:
        smaller = _first(script, share, shows, deadline)
        if smaller is not None:
            script, share = smaller, max(2, share - 1)
        elif share >= len(script.steps):
            break
        else:
            share = min(len(script.steps), share * 2)
    return script


def _first(
    script: Script, share: int, shows: Callable[[Script], bool], deadline: float
) -> Script | None:
    for made in _without_a_share(script, share):
        if time.monotonic() > deadline:
            return None
        if shows(made):
            return made
    return None


def _without_a_share(script: Script, share: int) -> Iterator[Script]:
    """Yield the script without the first, the second, ... of `share` parts of its steps."""
    size = max(1, -(-len(script.steps) // share))
    for at in range(0, len(script.steps), size):
        yield script.of((*script.steps[:at], *script.steps[at + size :]))


def _quiet(script: Script) -> Script:
    """Leave out the steps performed during backups."""
    return replace(script.of([step for step in script.steps if not step.busy]), flushed=True)


def _without_options(script: Script) -> Script:
    return replace(script, options={}, beside=True, bytes_per_second=None)


def _one_backup_less(script: Script) -> Script:
    """Merge the last two backups into one, with the steps of both before it."""
    if script.backups < 2:
        return script
    last = script.backups - 2
    steps = [step._replace(phase=min(step.phase, last)) for step in script.steps]
    return replace(script.of(steps), backups=script.backups - 1)
