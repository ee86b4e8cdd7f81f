"""The descendants of a backup, and the order in which they are deleted with it.

This module does no I/O. A Family is built from the rows of a catalogue, of which it keeps a few
words each. No function calls itself, so neither a loop of parents nor a chain of thousands can make
it fail.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self

from agent.errors import KeyNotHere, RecordUnsupported
from agent.keys.keyring import RecordState
from agent.model import BackupStatus, Record, printable
from agent.records.catalogue import ListedRecord

# A line of the drawing below this depth is not indented further. It shows the depth as a number.
_DRAWN_DEPTH = 20
# Limits for records that can't be trusted: how many are kept by name, how many of one parent, and
# how many characters of their keys' ids. Together they take at most 50 MiB, for any number of
# records in the container.
_CLAIMS = 50_000
_NAMED = 3
_KEY_IDS = 256


class BackupNode(NamedTuple):
    """The fields of a backup that a delete needs."""

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
    """A backup with a record that can't be trusted.

    `key_ids` lists as many ids of its keys as a message shows.
    """

    id: str
    key_ids: str


class _Claims:
    """Children that are claimed by records that can't be trusted, in a bounded amount of memory.

    The first few children of each parent are kept by name, and all are counted. The bound holds
    even if an attacker writes the records.
    """

    def __init__(self) -> None:
        self._by_parent: dict[str, tuple[int, tuple[Claim, ...]]] = {}
        self._kept = 0
        self.beyond = 0

    def add(self, parent_id: str, backup_id: str, record: Record | None) -> None:
        """Add a claim if there is room for it, or else only count it in `beyond`."""
        if self._kept >= _CLAIMS:
            self.beyond += 1
            return
        count, named = self._by_parent.get(parent_id, (0, ()))
        if len(named) < _NAMED:
            keys = record.keys if record else ()
            ids = ", ".join(repr(key.id[:64]) for key in keys[:10]) or "none named"
            named = (*named, Claim(backup_id, ids[:_KEY_IDS]))
            self._kept += 1
        self._by_parent[parent_id] = (count + 1, named)

    def about(self, parents: Iterable[str]) -> tuple[int, list[Claim]]:
        """Return the number of claims that name one of `parents`, and the first of these claims."""
        found = [self._by_parent[parent] for parent in parents if parent in self._by_parent]
        return sum(count for count, _ in found), [one for _, named in found for one in named]


class Family:
    """A backup and all its descendants, according to the records of its container.

    A backup is a member only if the MAC of its record is good. `bad` lists backups that claim a
    member as parent in a record with a wrong MAC. `locked` lists those with a record that no key on
    this machine can check. Both list the first few for each parent. Records of later agents are
    kept apart, because their backups are real, and this agent can't delete them.
    """

    def __init__(self, root: Record, rows: Iterable[ListedRecord]) -> None:
        self._known: dict[str, dict[str, BackupNode]] = defaultdict(dict)
        self._bad = _Claims()
        self._locked = _Claims()
        self._later = _Claims()
        self._orphaned: str | None = None
        self._root = BackupNode.of(root)
        self.add(rows)

    def add(self, rows: Iterable[ListedRecord]) -> None:
        """Add rows, which replace earlier rows of the same backups and parents."""
        for row in rows:
            known = row.record or row.later
            if known is None and row.state is RecordState.UNSUPPORTED:
                self._orphaned = row.backup_id
            if known is None or known.parent_id is None:
                continue
            if row.state is RecordState.OK and row.record is not None:
                node = BackupNode.of(row.record)
                self._known[known.parent_id][node.id] = node
            else:
                self._claims(row.state).add(known.parent_id, row.backup_id, row.record)
        self._gather()

    def _claims(self, state: RecordState) -> _Claims:
        apart = {RecordState.BAD: self._bad, RecordState.UNSUPPORTED: self._later}
        return apart.get(state, self._locked)

    def _gather(self) -> None:
        """Collect the members level by level.

        A loop of parents can only come back to the root.
        """
        self._children: dict[str, list[BackupNode]] = {}
        self._levels = [[self._root]]
        while level := self._levels[-1]:
            below: list[BackupNode] = []
            for parent in level:
                children = self._known.get(parent.id, {}).values()
                self._children[parent.id] = [one for one in children if one.id != self._root.id]
                below += self._children[parent.id]
            self._levels.append(below)
        self.members = frozenset(node.id for level in self._levels for node in level)
        self.bad_count, self.bad = self._bad.about(self.members)
        self.locked_count, self.locked = self._locked.about(self.members)

    def plan(self) -> list[BackupNode]:
        """Return all members in the order of their deletion.

        The deepest members are first and the root is last. So every child is before its parent.
        """
        return [node for level in reversed(self._levels) for node in level]

    def check(self) -> None:
        """Check that every possible descendant is known, so that none loses its ancestors.

        Raises:
            RecordUnsupported: a later agent made a descendant.
            KeyNotHere: no key on this machine can check the record of a possible descendant.
                Without the key, a real record and a forged one look the same.
        """
        self._check_later()
        self._check_locked()

    def _check_later(self) -> None:
        count, named = self._later.about(self.members)
        if named:
            more = f" and {count - 1} more" if count > 1 else ""
            said = f"backup {named[0].id}{more} descends from backup {self._root.id}"
        elif self._later.beyond or self._orphaned:
            said = f"backup {self._orphaned or '(one of many)'} may descend from {self._root.id}"
        else:
            return
        raise RecordUnsupported(
            f"{said}, and this agent can't read its record, which a later agent wrote",
            hint="upgrade this agent to the version that made that backup, or a later one; or "
            "delete the backup with an agent of that version",
        )

    def _check_locked(self) -> None:
        hint = (
            "put that key into the directory that [keys] folder names, or delete the backup on a "
            "machine that has the key"
        )
        if self.locked:
            first, others = self.locked[0], self.locked_count - 1
            more = f" and {others} more" if others else ""
            raise KeyNotHere(
                f"backup {first.id}{more} descends from backup {self._root.id}, and no key on this "
                f"machine can check its record; the record names these keys: {first.key_ids}",
                hint=hint,
            )
        if self._locked.beyond:
            raise KeyNotHere(
                f"there are more than {_CLAIMS} records in the container that no key on this "
                f"machine can check, and one of them may descend from backup {self._root.id}",
                hint=hint,
            )

    def draw(self) -> Iterator[str]:
        """Yield the lines of the tree, one backup (id, name, status) a line.

        A backup is before its children, and an older child before a younger one.
        """
        for node, depth, lines in self._walk():
            yield f"{_indent(depth, lines)}{node.id}  {printable(node.name)}  {node.status}"

    def _walk(self) -> Iterator[tuple[BackupNode, int, tuple[bool, ...]]]:
        """Yield each member, its depth, and one bool for each level above it.

        The bool is True if a sibling follows on that level.
        """
        waiting: list[tuple[BackupNode, int, tuple[bool, ...]]] = [(self._root, 0, ())]
        while waiting:
            node, depth, lines = waiting.pop()
            yield node, depth, lines
            children = sorted(self._children[node.id], key=lambda child: (child.created, child.id))
            for child in reversed(children):
                follows = child is not children[-1]
                # Levels below _DRAWN_DEPTH are not drawn, so they need no entry.
                below = (*lines, follows) if depth < _DRAWN_DEPTH else lines
                waiting.append((child, depth + 1, below))


def _indent(depth: int, lines: tuple[bool, ...]) -> str:
    if depth == 0:
        return ""
    above = "".join("│   " if follows else "    " for follows in lines[:-1])
    if depth > _DRAWN_DEPTH:
        return f"{above}    ... {depth} levels down: "
    return above + ("├── " if lines[-1] else "└── ")
