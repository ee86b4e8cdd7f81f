"""What a check is, and what it may find."""

from collections.abc import Callable
from enum import StrEnum
from typing import Any, NamedTuple

from agent.model import printable

# Longer than any sentence of ours; foreign text is in some of them.
_LONGEST = 600


class Verdict(StrEnum):
    """SKIP: it could not be looked at, because something else failed or isn't there."""

    PASS = "PASS"  # noqa: S105 - not a password
    WARN = "WARN"
    FAIL = "FAIL"
    SKIP = "SKIP"


class Outcome(NamedTuple):
    """What was found and, on anything but PASS and SKIP, what to do about it."""

    verdict: Verdict
    found: str
    cure: str = ""


class Check(NamedTuple):
    """One check of a group.

    `look` may raise: an AgentError is a FAIL in its own words, anything else a FAIL that is a
    defect of the check. `needs` are checks without which looking says nothing: names of the
    same group, or `group: name`.
    """

    name: str
    look: Callable[[], Outcome]
    needs: tuple[str, ...] = ()


class Result(NamedTuple):
    """The outcome of one check, as it is shown."""

    group: str
    name: str
    verdict: Verdict
    found: str
    cure: str

    @property
    def label(self) -> str:
        return f"{self.group}: {self.name}"

    def plain(self) -> dict[str, Any]:
        """For programs."""
        return self._asdict()


def passed(found: str) -> Outcome:
    return Outcome(Verdict.PASS, found)


def warned(found: str, cure: str) -> Outcome:
    return Outcome(Verdict.WARN, found, cure)


def failed(found: str, cure: str) -> Outcome:
    return Outcome(Verdict.FAIL, found, cure)


def skipped(reason: str) -> Outcome:
    return Outcome(Verdict.SKIP, reason)


def result(group: str, name: str, outcome: Outcome) -> Result:
    """An outcome with its name; what foreign programs said in it is made harmless."""
    found, cure = (printable(text)[:_LONGEST] for text in (outcome.found, outcome.cure))
    return Result(group, name, outcome.verdict, found, cure)


def amount(size: float) -> str:
    """Bytes for people, in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def span(seconds: float) -> str:
    """A length of time for people."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
