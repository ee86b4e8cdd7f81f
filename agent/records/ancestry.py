"""A check for COMPLETED backups that can't be restored because of an ancestor.

Such an ancestor is missing, is not COMPLETED, or does not fit. The check reads the rows of a
listing and keeps a few numbers of each. A listing may lag behind, and a long one takes minutes. So
an ancestor that the listing lacks, or showed as not COMPLETED, is read by its name before the check
decides.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from agent.errors import StoreBusy, StoreMismatch, StoreRejected
from agent.keys.keyring import RecordState
from agent.model import BackupStatus
from agent.records.reading import ListedRecord

# The most ancestors that are read by name. If more are needed, the listing is far behind, and
# nothing is reported about them.
_LOOKS: Final = 200

FindRow = Callable[[str], ListedRecord | None]


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
    """The parents of the backups of a listing.

    Call `add` with every row of the listing, and `broken` after that.
    """

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}
        self._verdicts: dict[str, str | None] = {}
        self._asked: dict[str, tuple[str | None, bool]] = {}

    def add(self, row: ListedRecord) -> None:
        """Add a row, unless its record can't be trusted."""
        record = row.record
        if record is not None and row.state is RecordState.OK:
            self._nodes[row.backup_id] = _Node(
                record.instance_id,
                record.parent_id,
                record.status,
                record.from_lsn,
                record.to_lsn,
            )

    def broken(self, find_row: FindRow) -> list[Unrestorable]:
        """Return the COMPLETED backups that have no complete chain.

        `find_row` reads one record by its id. A backup is not reported if its chain can't be
        checked: a key is missing, the store fails on that one record, or too many ancestors would
        have to be read.

        Raises:
            StoreError: the store does not answer.
        """
        completed = [
            (backup_id, node.instance_id)
            for backup_id, node in self._nodes.items()
            if node.status is BackupStatus.COMPLETED
        ]
        judged = [(*one, self._judge(one[0], find_row)) for one in completed]
        return [
            Unrestorable(one, instance, why) for one, instance, why in judged if why is not None
        ]

    def _judge(self, backup_id: str, find_row: FindRow) -> str | None:
        """Return the problem with the ancestors of a COMPLETED backup, or None if there is none."""
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
            why, known = self._parent(node, node.parent_id, find_row)
            if why is not None or not known:
                break
            at = node.parent_id
        else:
            why = self._verdicts[at]
        self._verdicts.update(dict.fromkeys(path, why))
        return why

    def _parent(self, child: _Node, parent_id: str, find_row: FindRow) -> tuple[str | None, bool]:
        """Return the problem with a parent, and True if the parent's record is known."""
        listed = self._nodes.get(parent_id)
        if listed is None or listed.status is not BackupStatus.COMPLETED:
            why, known = self._ask(parent_id, find_row)
            if not known:
                return why, False
        parent = self._nodes[parent_id]
        if parent.status is not BackupStatus.COMPLETED:
            return f"its ancestor {parent_id} is {parent.status}", True
        if parent.to_lsn != child.from_lsn:
            return (
                f"its ancestor {parent_id} does not end at the LSN at which its child begins",
                True,
            )
        return None, True

    def _ask(self, parent_id: str, find_row: FindRow) -> tuple[str | None, bool]:
        """Return the problem with a parent, and True if its record is known.

        The record is read at most once.
        """
        if parent_id not in self._asked and len(self._asked) < _LOOKS:
            self._asked[parent_id] = self._find(parent_id, find_row)
        return self._asked.get(parent_id, (None, False))

    def _find(self, parent_id: str, find_row: FindRow) -> tuple[str | None, bool]:
        try:
            row = find_row(parent_id)
        except (StoreBusy, StoreMismatch, StoreRejected):
            return None, False
        if row is None:
            return f"its ancestor {parent_id} has no record", False
        if row.state is RecordState.BAD:
            return f"the record of its ancestor {parent_id} fails its check", False
        self.add(row)
        return None, row.record is not None and row.state is RecordState.OK
