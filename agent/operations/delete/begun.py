"""What an agent remembers of a delete that has begun, so that its report names all that went."""

import json
from collections.abc import Sequence
from typing import NamedTuple, Self

from agent.model import Record, utc_now

# More are deleted, and not remembered by name.
_MOST = 10_000


class BegunDelete(NamedTuple):
    """The root as it was marked, and the ids of what goes with it, children before parents.

    `root` is None if the delete has not begun.
    """

    root: Record | None = None
    ids: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str | None) -> Self:
        """Return what `to_text` wrote; agents before this one wrote the record alone."""
        if text is None:
            return cls()
        line, _, ids = text.partition("\n")
        return cls(Record.model_validate_json(line), tuple(json.loads(ids or "[]")))

    def to_text(self) -> str:
        """Return one line with the record and one with the ids."""
        record = self.root.model_dump_json() if self.root else ""
        return f"{record}\n{json.dumps(self.ids)}"

    def more(self, root: Record, ids: Sequence[str]) -> Self:
        """Return this with what is to go, or went, besides; the root stays the last."""
        known = dict.fromkeys((*self.ids, *ids))
        known.pop(root.id, None)
        marked = root.model_copy(update={"updated": utc_now()})
        return type(self)(marked, (*list(known)[: _MOST - 1], root.id))
