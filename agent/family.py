"""Who descends from whom: what a backup takes along when it is deleted, and in which order.

Pure: it is built from the rows of a catalogue, of which it keeps a few words each. Nothing
here recurses, so neither a loop of parents nor a chain of thousands can stop it.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self

from agent.catalogue import Listed
from agent.errors import KeyNotHere
from agent.keys import RecordState
from agent.model import BackupStatus, Record, printable

# Deeper than this a line of the drawing grows no wider: it says how deep it is instead.
_DRAWN_DEPTH = 20


class Kin(NamedTuple):
    """What a delete has to know of one backup."""

    id: str
    parent_id: str | None
    name: str
    status: BackupStatus
    created: str
    state: RecordState
    key_ids: tuple[str, ...]

    @classmethod
    def of(cls, state: RecordState, record: Record) -> Self:
        return cls(
            record.id,
            record.parent_id,
            record.name,
            record.status,
            record.created,
            state,
            tuple(key.id for key in record.keys),
        )


class Family:
    """A backup and all that descend from it, by the records of its container.

    Only a record whose MAC is good makes its backup a member. `bad` are backups that claim
    a member as their parent in a record that fails its MAC; `locked` those in a record that
    no key here can check.
    """

    def __init__(self, root: Record, rows: Iterable[Listed]) -> None:
        children: dict[str, list[Kin]] = defaultdict(list)
        for row in rows:
            if row.record is not None and row.record.parent_id is not None:
                children[row.record.parent_id].append(Kin.of(row.state, row.record))
        self._children: dict[str, list[Kin]] = defaultdict(list)
        self._root = Kin.of(RecordState.OK, root)
        self.bad: list[Kin] = []
        self.locked: list[Kin] = []
        self._levels = [[self._root]]
        self._gather(children)

    def _gather(self, children: dict[str, list[Kin]]) -> None:
        """Go down level by level; a loop of parents can only come back to the root."""
        while level := self._levels[-1]:
            below: list[Kin] = []
            for parent in level:
                for child in children[parent.id]:
                    if child.id == self._root.id:
                        continue
                    if child.state is RecordState.OK:
                        self._children[parent.id].append(child)
                        below.append(child)
                    else:
                        (self.bad if child.state is RecordState.BAD else self.locked).append(child)
            self._levels.append(below)

    def plan(self) -> list[Kin]:
        """Everything that goes, the root last: the deepest first, no parent before its child."""
        return [kin for level in reversed(self._levels) for kin in level]

    def check(self) -> None:
        """KeyNotHere where a descendant can't be told from a forged one, for want of a key."""
        if not self.locked:
            return
        first = self.locked[0]
        ids = ", ".join(repr(key_id[:64]) for key_id in first.key_ids[:10]) or "none named"
        raise KeyNotHere(
            f"backup {first.id} descends from backup {self._root.id}, and no key on this "
            f"machine can check its record; its keys: {ids}",
            hint="put that key into the folder named by [keys] folder, or delete where it is",
        )

    def draw(self) -> Iterator[str]:
        """The tree, a line each (id, name, status): a backup before its children, older first."""
        for kin, depth, lines in self._walk():
            yield f"{_indent(depth, lines)}{kin.id}  {printable(kin.name)}  {kin.status}"

    def _walk(self) -> Iterator[tuple[Kin, int, tuple[bool, ...]]]:
        """Each member, its depth, and for each level above whether a sibling follows there."""
        waiting: list[tuple[Kin, int, tuple[bool, ...]]] = [(self._root, 0, ())]
        while waiting:
            kin, depth, lines = waiting.pop()
            yield kin, depth, lines
            children = sorted(self._children[kin.id], key=lambda child: (child.created, child.id))
            for child in reversed(children):
                follows = child is not children[-1]
                # what is deeper than it is drawn needs no lines
                below = (*lines, follows) if depth < _DRAWN_DEPTH else lines
                waiting.append((child, depth + 1, below))


def _indent(depth: int, lines: tuple[bool, ...]) -> str:
    if depth == 0:
        return ""
    above = "".join("│   " if follows else "    " for follows in lines[:-1])
    if depth > _DRAWN_DEPTH:
        return f"{above}    ... {depth} levels down: "
    return above + ("├── " if lines[-1] else "└── ")
