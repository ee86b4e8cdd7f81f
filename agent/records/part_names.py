"""The names of the stored parts of one backup.

Where these parts are depends on the layout of the store. agent/records/object_names.py describes
the agent's own layout, agent/records/trove/names.py that of OpenStack Trove.
"""

from dataclasses import dataclass
from typing import Protocol

from agent.records.object_names import list_name, object_name, segment_name, submanifest_name
from agent.store.protocol import Container


class PartNames(Protocol):
    """The names of all parts of one attempt, and the container of its segments."""

    @property
    def backup_id(self) -> str: ...

    @property
    def container(self) -> Container:
        """Return the container of the segments, the lists and the sub-manifests."""

    @property
    def object_name(self) -> str:
        """Return the name, in the container OBJECTS, of the object that joins the segments."""

    def segment_name(self, number: int) -> str: ...

    def submanifest_name(self, number: int) -> str: ...

    def list_name(self, number: int) -> str | None:
        """Return the name of a segment list, or None if the lists are no objects of their own."""


@dataclass(frozen=True)
class AttemptNames:
    """The names in the agent's own layout. `sealed` is True if the backup is encrypted."""

    backup_id: str
    attempt: str
    sealed: bool = True
    container: Container = Container.SEGMENTS

    @property
    def object_name(self) -> str:
        return object_name(self.backup_id, sealed=self.sealed)

    def segment_name(self, number: int) -> str:
        return segment_name(self.backup_id, self.attempt, number)

    def submanifest_name(self, number: int) -> str:
        return submanifest_name(self.backup_id, self.attempt, number)

    def list_name(self, number: int) -> str:
        return list_name(self.backup_id, self.attempt, number)
