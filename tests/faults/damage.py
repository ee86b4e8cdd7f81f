"""Damaged objects and records. All are refused, and no byte after the damage is extracted.

2,000 damages are made in a directory and read back in this process up to the extractor. A few dozen
are made in Swift and restored by the command line.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Final

from agent.errors import AgentError
from agent.store.directory.store import DirectoryStore
from agent.store.protocol import Store
from tests.faults.chain import Chain, Place, chained, put, put_back
from tests.faults.damages import KINDS, REFUSALS, Changes, Damage
from tests.faults.trial import Bench, Plan, Seen, Trial

LEAST: Final[Mapping[str, int]] = {"damage": 2000}
_SWIFT = 25


def trials(plan: Plan) -> Iterator[Trial]:
    """Yield one trial in a directory with most of the cases, and one in Swift."""
    count = 2000 if plan.full else 3 * len(KINDS)
    yield Trial(
        "damage",
        "folder",
        f"{count} random damages to a chain in a directory, read back up to the extractor",
        lambda bench: in_folder(bench, plan, count),
    )
    if plan.full:
        yield Trial(
            "damage",
            "swift",
            f"{_SWIFT} random damages to a chain in Swift, restored by the command line",
            lambda bench: in_swift(bench, plan),
        )


def in_folder(bench: Bench, plan: Plan, count: int) -> Seen:
    """Damage the directory, read it back and repair it, `count` times."""
    chance = plan.random("damage")
    codes: Counter[str] = Counter()
    with chained(bench, "damage") as chain:
        began = time.monotonic()
        for number in range(count):
            damage = KINDS[number % len(KINDS)]
            codes[_refused(chain, damage, chance, number)] += 1
        _still_whole(chain)
        seconds = time.monotonic() - began
    told = ", ".join(f"{count} {code}" for code, count in codes.most_common())
    return Seen(f"all refused ({told}), no damaged byte extracted, {seconds:.0f} s", count)


def _refused(chain: Chain, damage: Damage, chance: Random, number: int) -> str:
    """Make one damage and return the code of the error that refuses it."""
    changes = _real(chain, damage(chance, chain))
    where = f"damage {number} ({damage.__name__} of {sorted(name for _, name in changes)})"
    target = chain.agent.folder / "restore" / "damaged"
    _apply(chain.parts.store, changes, chance)
    try:
        chain.restore(chain.parts.store, target)
    except REFUSALS as error:
        code = error.code
    except (AgentError, AssertionError) as error:
        raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
    else:
        raise AssertionError(f"{where} was not noticed")
    finally:
        put_back(chain.parts.store, chain.objects, changes)
    assert not target.exists(), f"{where}: {target} is left"
    return code


def _real(chain: Chain, changes: Changes) -> Changes:
    """Drop the changes that change nothing. At least one must remain."""
    real = {place: body for place, body in changes.items() if chain.objects.get(place) != body}
    assert real, "this damage changes nothing"
    return real


def _apply(store: Store, changes: Changes, chance: Random) -> None:
    """Write the changes through the store, which adjusts the digests, or directly to its files."""
    behind = isinstance(store, DirectoryStore) and chance.random() < 0.5
    for place, body in changes.items():
        if behind and body is not None and (path := _file(store, place)).exists():
            path.write_bytes(body)
        else:
            put(store, place, body)


def _file(store: Store, place: Place) -> Path:
    """Return the path of an object in a store directory, as docs/format.md describes it."""
    container, name = place
    return Path(f"{store.location.removeprefix('file://')}{container.value}") / name


def _still_whole(chain: Chain) -> None:
    """Check that the repaired chain restores as before, so that the damages caused the refusals."""
    target = chain.agent.folder / "restore" / "mended"
    assert chain.restore(chain.parts.store, target).whole == [chain.full.id, chain.incremental.id]


def in_swift(bench: Bench, plan: Plan) -> Seen:
    """Do the same with objects in Swift and the whole program."""
    chance = plan.random("damage in Swift")
    codes: Counter[str] = Counter()
    overrides: Mapping[str, dict[str, object]] = {"store": {"attempts": 1}}
    with chained(bench, "damage-swift", dict(overrides)) as chain:
        for damage in KINDS[:_SWIFT]:
            codes[_refused_in_swift(chain, damage, chance)] += 1
        target = chain.agent.folder / "restore" / "mended"
        done = chain.agent.cli("restore", "--local", chain.incremental.id, target)
        assert done.returncode == 0, done.stderr
    told = ", ".join(f"{count} {code}" for code, count in codes.most_common())
    return Seen(f"all refused ({told}); restored after the repair", codes.total())


def _refused_in_swift(chain: Chain, damage: Damage, chance: Random) -> str:
    changes = _real(chain, damage(chance, chain))
    target = chain.agent.folder / "restore" / "damaged"
    _apply(chain.parts.store, changes, chance)
    try:
        done = chain.agent.cli("restore", "--local", chain.incremental.id, target)
    finally:
        put_back(chain.parts.store, chain.objects, changes)
    known = sorted(_codes(REFUSALS))
    said = [code for code in known if code in done.stderr]
    assert done.returncode == 1, f"{damage.__name__}: {done.returncode} {done.stderr}"
    assert said, f"{damage.__name__}: {done.stderr}"
    assert not target.exists(), f"{damage.__name__}: {target} is left"
    return said[0]


def _codes(kinds: tuple[type[AgentError], ...]) -> set[str]:
    """Return the codes of the error classes and of their subclasses."""
    below = {code for kind in kinds for code in _codes(tuple(kind.__subclasses__()))}
    return below | {kind.code for kind in kinds if "code" in vars(kind)}
