"""Remember the backups of a delete that has begun, so that its report names all of them."""

import json
from collections.abc import Sequence
from typing import NamedTuple, Self

from agent.model import Record, utc_now

# The ids that are remembered, 390 KB in one report. Backups beyond this number are deleted, but not
# named.
_MOST = 10_000


class BegunDelete(NamedTuple):
    """The root as it was marked, and the ids of all backups in the delete.

    Children come before their parents, and the root is last. `root` is None if the delete has not
    begun.
    """

    root: Record | None = None
    ids: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str | None) -> Self:
        """Return the delete that `to_text` wrote as `text`.

        `text` is None if the delete has not begun. Earlier agents wrote only the line with the
        record.
        """
        if text is None:
            return cls()
        line, _, ids = text.partition("\n")
        return cls(Record.model_validate_json(line), tuple(json.loads(ids or "[]")))

    def to_text(self) -> str:
        """Return one line with the record and one with the ids."""
        record = self.root.model_dump_json() if self.root else ""
        return f"{record}\n{json.dumps(self.ids)}"

    def more(self, root: Record, ids: Sequence[str]) -> Self:
        """Return a copy with the given root and with more ids, in which the root stays last.

        The root's `updated` becomes the present time.
        """
        known = [one for one in _merged(self.ids, ids) if one != root.id]
        marked = root.model_copy(update={"updated": utc_now()})
        return type(self)(marked, (*known[: _MOST - 1], root.id))


def _merged(known: Sequence[str], ids: Sequence[str]) -> list[str]:
    """Return `known` with the other `ids` in it, each before the known one that follows in `ids`.

    A child that appears while its parent is being deleted so comes before its parent.
    """
    present, before, others = set(known), dict[str, list[str]](), list[str]()
    for one in dict.fromkeys(ids):
        if one in present:
            before.setdefault(one, []).extend(others)
            others = []
        else:
            others.append(one)
    return [*(each for one in known for each in (*before.get(one, ()), one)), *others]
