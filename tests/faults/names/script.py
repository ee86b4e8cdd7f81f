"""A trial's script: the steps performed on a server before, between and during its backups.

Every step may be left out, and may fail. An object that the server refuses to make need not be
backed up. So a script can be made smaller without any knowledge of the meaning of its steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

Deed = tuple[str, ...]


class Step(NamedTuple):
    """One statement, or one deed on files (rig.py), performed before the backup number `phase`.

    A `busy` step is performed during that backup. `suspects` are the names of schemas, tables
    and files that may make a backup FAILED. Its error must contain one of them.
    """

    phase: int
    sql: str = ""
    deed: Deed = ()
    busy: bool = False
    suspects: tuple[str, ...] = ()

    def told(self) -> str:
        what = self.sql or "! " + " ".join(self.deed)
        when = f"{self.phase}{'*' if self.busy else ''}"
        return f"{when}: {what!r}" + (f"  # suspect: {self.suspects}" if self.suspects else "")


@dataclass(frozen=True)
class Script:
    """A script that makes `backups` in a chain and restores the last of them.

    `options` are the server's. If `flushed`, its tables are closed before each backup, so that
    every file is compared. If `beside`, the original still runs beside the copy. If `at_once`,
    busy steps begin with the command, else when the engine has taken its first lock.
    """

    seed: str
    steps: tuple[Step, ...]
    backups: int = 2
    options: Mapping[str, str] = field(default_factory=dict)
    flushed: bool = True
    beside: bool = True
    bytes_per_second: int | None = None
    at_once: bool = False

    def of(self, steps: Sequence[Step]) -> "Script":
        """Return the same script with other steps."""
        return replace(self, steps=tuple(steps))

    def phase(self, number: int, *, busy: bool = False) -> list[Step]:
        return [step for step in self.steps if step.phase == number and step.busy is busy]

    def told(self) -> str:
        """Return the whole script as text, with which a person can do the same by hand."""
        head = [f"seed {self.seed!r}, {self.backups} backups"]
        head += [f"server option {key} = {value}" for key, value in self.options.items()]
        head += [f"bytes a second: {self.bytes_per_second}"]
        head += [f"flushed {self.flushed}, beside {self.beside}, at once {self.at_once}"]
        return "\n".join(head + [step.told() for step in self.steps])
