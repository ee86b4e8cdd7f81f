"""COMPLETED backups that nothing can be restored from, because an ancestor is missing.

Fed with the rows of a listing, of which it keeps a few numbers each. A listing may lag behind, and
a long one takes minutes. So an ancestor that it lacks, or that was not COMPLETED when it was read,
is asked for by its name before the verdict.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from agent.errors import StoreBusy, StoreMismatch, StoreRejected
from agent.keys.keyring import RecordState
from agent.model import BackupStatus
from agent.records.reading import ListedRecord

# Ancestors asked for by name. Of more than this many nothing is said: the listing is far behind.
_LOOKS: Final = 200

Look = Callable[[str], ListedRecord | None]


class Unrestorable(NamedTuple):
    """A COMPLETED backup that can't be restored, and the reason."""

    backup_id: str
    instance_id: str
    why: str


class _Node(NamedTuple):
    instance_id: str
    parent_id: str | None
    status: BackupStatus
    from_lsn: int
    to_lsn: int | None


class Ancestry:
    """`add` every row of a listing, then ask for what is `broken`."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}
        self._verdicts: dict[str, str | None] = {}
        self._asked: dict[str, tuple[str | None, bool]] = {}

    def add(self, row: ListedRecord) -> None:
        """Note a row, if its record can be trusted."""
        record = row.record
        if record is not None and row.state is RecordState.OK:
            self._nodes[row.backup_id] = _Node(
                record.instance_id,
                record.parent_id,
                record.status,
                record.from_lsn,
                record.to_lsn,
            )

    def broken(self, look: Look) -> list[Unrestorable]:
        """Return the COMPLETED backups without a whole chain; `look` reads one record by its id.

        A chain of which something can't be told, for want of a key or of an answer, is none.
        """
        completed = [
            (backup_id, node.instance_id)
            for backup_id, node in self._nodes.items()
            if node.status is BackupStatus.COMPLETED
        ]
        judged = [(*one, self._judge(one[0], look)) for one in completed]
        return [
            Unrestorable(one, instance, why) for one, instance, why in judged if why is not None
        ]

    def _judge(self, backup_id: str, look: Look) -> str | None:
        """Return what is wrong with the ancestors of a COMPLETED backup; None if nothing is."""
        path: list[str] = []
        seen: set[str] = set()
        at, why = backup_id, None
        while at not in self._verdicts:
            if at in seen:
                why = f"backup {at} is its own ancestor"
                break
            path.append(at)
            seen.add(at)
            node = self._nodes[at]
            if node.parent_id is None:
                break
            why, known = self._parent(node, node.parent_id, look)
            if why is not None or not known:
                break
            at = node.parent_id
        else:
            why = self._verdicts[at]
        self._verdicts.update(dict.fromkeys(path, why))
        return why

    def _parent(self, child: _Node, parent_id: str, look: Look) -> tuple[str | None, bool]:
        """Return what is wrong with a parent, and whether it is known at all."""
        listed = self._nodes.get(parent_id)
        if listed is None or listed.status is not BackupStatus.COMPLETED:
            why, known = self._ask(parent_id, look)
            if not known:
                return why, False
        parent = self._nodes[parent_id]
        if parent.status is not BackupStatus.COMPLETED:
            return f"its ancestor {parent_id} is {parent.status}", True
        if parent.to_lsn != child.from_lsn:
            return f"its ancestor {parent_id} ends at another LSN than its child begins", True
        return None, True

    def _ask(self, parent_id: str, look: Look) -> tuple[str | None, bool]:
        """Look at a parent once; return what is wrong with it, and whether it is known by that."""
        if parent_id not in self._asked and len(self._asked) < _LOOKS:
            self._asked[parent_id] = self._look(parent_id, look)
        return self._asked.get(parent_id, (None, False))

    def _look(self, parent_id: str, look: Look) -> tuple[str | None, bool]:
        try:
            row = look(parent_id)
        except (StoreBusy, StoreMismatch, StoreRejected):
            return None, False
        if row is None:
            return f"its ancestor {parent_id} is gone", False
        if row.state is RecordState.BAD:
            return f"the record of its ancestor {parent_id} fails its check", False
        self.add(row)
        return None, row.record is not None and row.state is RecordState.OK
