"""A check of the self-test, its outcome and its result."""

from collections.abc import Callable
from enum import StrEnum
from typing import Any, NamedTuple

from agent.model import printable

# Characters. No text of this program is that long, but some texts quote foreign programs.
_LONGEST = 600


class Verdict(StrEnum):
    """The verdict on one check.

    SKIP means that the check was not run, because something else failed or does not exist.
    """

    PASS = "PASS"  # noqa: S105 - not a password
    WARN = "WARN"
    FAIL = "FAIL"
    SKIP = "SKIP"


class CheckOutcome(NamedTuple):
    """The finding of one check.

    `cure` tells the operator how to fix it. It is empty for PASS and SKIP.
    """

    verdict: Verdict
    found: str
    cure: str = ""


class Check(NamedTuple):
    """One check of a group.

    `look` does the check and may raise. An AgentError becomes a FAIL with the error's own text
    and hint. Any other Exception becomes a FAIL that reports a defect of the check.

    `needs` names other checks. If one of them fails or is skipped, `look` would find out nothing
    and is not called. A name is that of a check in the same group, or has the form `group: name`.
    """

    name: str
    look: Callable[[], CheckOutcome]
    needs: tuple[str, ...] = ()


class Result(NamedTuple):
    """The outcome of one check with its group and name, as the self-test prints it."""

    group: str
    name: str
    verdict: Verdict
    found: str
    cure: str

    @property
    def label(self) -> str:
        return f"{self.group}: {self.name}"

    def plain(self) -> dict[str, Any]:
        """Return the result as a dict, for `--json`."""
        return self._asdict()


def passed(found: str) -> CheckOutcome:
    return CheckOutcome(Verdict.PASS, found)


def warned(found: str, cure: str) -> CheckOutcome:
    return CheckOutcome(Verdict.WARN, found, cure)


def failed(found: str, cure: str) -> CheckOutcome:
    return CheckOutcome(Verdict.FAIL, found, cure)


def skipped(reason: str) -> CheckOutcome:
    return CheckOutcome(Verdict.SKIP, reason)


def result(group: str, name: str, outcome: CheckOutcome) -> Result:
    """Return the Result of an outcome, with texts that are safe to print.

    The texts may quote foreign programs. So characters that could control a terminal become `?`,
    and each text is truncated to `_LONGEST` characters.
    """
    found, cure = (printable(text)[:_LONGEST] for text in (outcome.found, outcome.cure))
    return Result(group, name, outcome.verdict, found, cure)


def amount(size: float) -> str:
    """Format a number of bytes for people, in binary units such as `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def span(seconds: float) -> str:
    """Format a number of seconds for people, such as `2.0 h`."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
