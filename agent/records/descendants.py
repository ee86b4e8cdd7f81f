"""Who descends from whom: what a backup takes along when it is deleted, and in which order.

Pure: it is built from the rows of a catalogue, of which it keeps a few words each. Nothing
here recurses, so neither a loop of parents nor a chain of thousands can stop it.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self

from agent.errors import KeyNotHere
from agent.keys.keyring import RecordState
from agent.model import BackupStatus, Record, printable
from agent.records.catalogue import ListedRecord

# Deeper than this a line of the drawing grows no wider: it says how deep it is instead.
_DRAWN_DEPTH = 20
# Of records that can't be trusted: how many are remembered by name, how many of one parent, and
# the characters of the ids of their keys. 50 MiB at most, however many lie in the container.
_CLAIMS = 50_000
_NAMED = 3
_KEY_IDS = 256


class BackupNode(NamedTuple):
    """What a delete has to know of one backup."""

    id: str
    parent_id: str | None
    name: str
    status: BackupStatus
    created: str

    @classmethod
    def of(cls, record: Record) -> Self:
        return cls(
            record.id,
            record.parent_id,
            record.name,
            record.status,
            record.created,
        )


class Claim(NamedTuple):
    """A backup whose record can't be trusted; `key_ids` are as many as a message shows."""

    id: str
    key_ids: str


class _Claims:
    """Who claims to be whose child in a record that can't be trusted: bounded, whoever writes it.

    The first few of each parent are named, and all are counted.
    """

    def __init__(self) -> None:
        self._of: dict[str, tuple[int, tuple[Claim, ...]]] = {}
        self._kept = 0
        self.beyond = 0

    def add(self, parent_id: str, record: Record) -> None:
        """Note a claim, if there is room; else only count it in `beyond`."""
        if self._kept >= _CLAIMS:
            self.beyond += 1
            return
        count, named = self._of.get(parent_id, (0, ()))
        if len(named) < _NAMED:
            ids = ", ".join(repr(key.id[:64]) for key in record.keys[:10]) or "none named"
            named = (*named, Claim(record.id, ids[:_KEY_IDS]))
            self._kept += 1
        self._of[parent_id] = (count + 1, named)

    def about(self, parents: Iterable[str]) -> tuple[int, list[Claim]]:
        """Return how many claim one of `parents`, and the first of them."""
        found = [self._of[parent] for parent in parents if parent in self._of]
        return sum(count for count, _ in found), [one for _, named in found for one in named]


class Family:
    """A backup and all that descend from it, by the records of its container.

    Only a record whose MAC is good makes its backup a member. `bad` are backups that claim
    a member as their parent in a record that fails its MAC; `locked` those in a record that
    no key here can check. Of both the first few of each parent are named.
    """

    def __init__(self, root: Record, rows: Iterable[ListedRecord]) -> None:
        self._known: dict[str, dict[str, BackupNode]] = defaultdict(dict)
        self._bad = _Claims()
        self._locked = _Claims()
        self._root = BackupNode.of(root)
        self.add(rows)

    def add(self, rows: Iterable[ListedRecord]) -> None:
        """Take more rows into account, also rows of backups that are known already."""
        for row in rows:
            if row.record is None or row.record.parent_id is None:
                continue
            if row.state is RecordState.OK:
                kin = BackupNode.of(row.record)
                self._known[row.record.parent_id][kin.id] = kin
            elif row.state is RecordState.BAD:
                self._bad.add(row.record.parent_id, row.record)
            else:
                self._locked.add(row.record.parent_id, row.record)
        self._gather()

    def _gather(self) -> None:
        """Go down level by level; a loop of parents can only come back to the root."""
        self._children: dict[str, list[BackupNode]] = {}
        self._levels = [[self._root]]
        while level := self._levels[-1]:
            below: list[BackupNode] = []
            for parent in level:
                children = self._known.get(parent.id, {}).values()
                self._children[parent.id] = [one for one in children if one.id != self._root.id]
                below += self._children[parent.id]
            self._levels.append(below)
        self.members = frozenset(kin.id for level in self._levels for kin in level)
        self.bad_count, self.bad = self._bad.about(self.members)
        self.locked_count, self.locked = self._locked.about(self.members)

    def plan(self) -> list[BackupNode]:
        """Everything that goes, the root last: the deepest first, no parent before its child."""
        return [kin for level in reversed(self._levels) for kin in level]

    def check(self) -> None:
        """KeyNotHere where a descendant can't be told from a forged one, for want of a key."""
        hint = "put that key into the folder named by [keys] folder, or delete where it is"
        if self.locked:
            first, others = self.locked[0], self.locked_count - 1
            more = f" and {others} more" if others else ""
            raise KeyNotHere(
                f"backup {first.id}{more} descends from backup {self._root.id}, and no key on this "
                f"machine can check its record; its keys: {first.key_ids}",
                hint=hint,
            )
        if self._locked.beyond:
            raise KeyNotHere(
                f"no key on this machine can check more than {_CLAIMS} records of the container, "
                f"so nobody can tell whether one of them descends from backup {self._root.id}",
                hint=hint,
            )

    def draw(self) -> Iterator[str]:
        """The tree, a line each (id, name, status): a backup before its children, older first."""
        for kin, depth, lines in self._walk():
            yield f"{_indent(depth, lines)}{kin.id}  {printable(kin.name)}  {kin.status}"

    def _walk(self) -> Iterator[tuple[BackupNode, int, tuple[bool, ...]]]:
        """Each member, its depth, and for each level above whether a sibling follows there."""
        waiting: list[tuple[BackupNode, int, tuple[bool, ...]]] = [(self._root, 0, ())]
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
