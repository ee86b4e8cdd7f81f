"""The segment lists and the sub-manifests of the SLO (Static Large Object) of a backup.

They are written while the stream still runs, so the end of a backup takes the same time at any
size. Only the segments of the unfinished groups are in memory. If the store joins nothing, no
sub-manifests and no SLO are written. Their ETags are computed all the same, for the record.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from agent.errors import Internal, StoreMismatch, StoreNotFound, StoreRejected
from agent.model import ListRef
from agent.records.object_names import (
    LIST_ENTRIES,
    Segment,
    encode_list,
    list_ref,
)
from agent.records.part_names import PartNames
from agent.store.protocol import (
    Container,
    ManifestEntry,
    Store,
    StoreLimits,
    check_entry,
    joined_etag,
    manifest_etag,
)

Flush = Callable[[int, list[Segment]], None]


class _Groups:
    """A collector of numbered segments, which flushes each complete group of `size` segments.

    The segments may come in any order.
    """

    def __init__(self, size: int, flush: Flush) -> None:
        self._size = size
        self._flush = flush
        self._lock = threading.Lock()
        self._open: dict[int, dict[int, Segment]] = {}

    def add(self, number: int, segment: Segment) -> None:
        group = number // self._size
        with self._lock:
            rows = self._open.setdefault(group, {})
            rows[number] = segment
            if len(rows) < self._size:
                return
            del self._open[group]
        self._flush(group, _ordered(rows))

    def rest(self) -> tuple[int, list[Segment]] | None:
        """Return the number and the segments of the last group, or None if all are complete."""
        with self._lock:
            for group, rows in self._open.items():
                return group, _ordered(rows)
            return None


def _ordered(rows: Mapping[int, Segment]) -> list[Segment]:
    return [rows[number] for number in sorted(rows)]


def most_segments(limits: StoreLimits) -> int:
    """Return the most segments that a backup may have, so that one object can join them.

    The manifests of that object have two levels if the store allows nesting, or else one level. A
    store that joins nothing has the same limit.
    """
    entries = limits.manifest_entries
    return entries * min(entries, LIST_ENTRIES) if limits.nesting else entries


def submanifest_entries(limits: StoreLimits) -> int:
    """Return the number of segments that one sub-manifest joins.

    Without nesting it is so large that there are no sub-manifests.
    """
    if limits.nesting:
        return min(limits.manifest_entries, LIST_ENTRIES)
    return limits.manifest_entries + 1


def top_etags(segments: Iterable[Segment], group: int) -> list[str]:
    """Return the ETags of the entries of the object that joins these segments.

    As Manifest writes it, sub-manifests join `group` segments each, unless there are fewer.
    """
    groups: list[str] = []
    rest: list[str] = []
    for segment in segments:
        rest.append(segment.md5)
        if len(rest) == group:
            groups.append(joined_etag(rest))
            rest.clear()
    if not groups:
        return rest
    return [*groups, joined_etag(rest)] if rest else groups


class SegmentSummary(NamedTuple):
    """The facts about the stored segments that the record holds."""

    segments: int
    stored_bytes: int
    lists: tuple[ListRef, ...]
    etag: str


class Manifest:
    """The stored segments of one attempt.

    Call `add` for each segment, then `finish`, then `publish`. Several threads may call `add`. The
    thread that completes a group writes its list.
    """

    def __init__(self, store: Store, limits: StoreLimits, names: PartNames) -> None:
        self._store = store
        self._limits = limits
        self._names = names
        self._lock = threading.Lock()
        self._lists: dict[int, ListRef] = {}
        self._kept: dict[int, bytes] = {}
        self._submanifests: dict[int, ManifestEntry] = {}
        self._count = 0
        self._end = 0
        self._bytes = 0
        self._top: list[ManifestEntry] = []
        # Without nesting, all segments stay in one open group. That group becomes the object
        # itself.
        self._per_submanifest = submanifest_entries(limits)
        self._for_lists = _Groups(LIST_ENTRIES, self._write_list)
        self._for_submanifests = _Groups(self._per_submanifest, self._write_submanifest)

    def add(self, number: int, segment: Segment) -> None:
        """Add a segment that the store has confirmed.

        Raises:
            StoreError: the segment completes a list or a sub-manifest, and that can't be stored.
        """
        with self._lock:
            self._count += 1
            self._end = max(self._end, number + 1)
            self._bytes += segment.size
        self._for_lists.add(number, segment)
        self._for_submanifests.add(number, segment)

    def finish(self) -> SegmentSummary:
        """Write the last segment list and the last sub-manifest, but not the object.

        Call it after every segment was added.

        Raises:
            Internal: the numbers of the segments have gaps.
            StoreError: a list or a sub-manifest can't be stored.
        """
        if self._count != self._end:
            raise Internal(
                f"{self._count} segments were stored, but the highest number is {self._end - 1}"
            )
        rest = self._for_lists.rest()
        if rest:
            self._write_list(*rest)
        self._top = self._top_entries()
        lists = tuple(self._lists[number] for number in sorted(self._lists))
        return SegmentSummary(self._count, self._bytes, lists, manifest_etag(self._top))

    def kept_lists(self) -> list[bytes]:
        """Return the segment lists, if the names say that these are no objects of their own."""
        return [self._kept[number] for number in sorted(self._kept)]

    def publish(self, headers: Mapping[str, str], trailer: Sequence[ManifestEntry] = ()) -> str:
        """Write the object that joins all segments, if the store joins any, and return its ETag.

        Call it after `finish`. `trailer` is joined behind the segments. If the store joins nothing,
        the segments of the last group are compared with it here. Those of the other groups were
        compared when the groups were complete.

        Raises:
            StoreMismatch: a segment is missing, or has other bytes.
        """
        top = [*self._top, *trailer]
        return self._join(Container.OBJECTS, self._names.object_name, top, headers)

    def _join(
        self,
        container: Container,
        name: str,
        entries: Sequence[ManifestEntry],
        headers: Mapping[str, str],
    ) -> str:
        """Write a manifest, if the store joins any, and return its ETag.

        A store that joins segments compares them with `entries`. For any other store, this method
        does.

        Raises:
            StoreMismatch: a segment is missing, or has other bytes.
            StoreRejected: there are no segments.
        """
        if self._store.joiner is None:
            self._check_stored(entries)
            return manifest_etag(entries)
        return self._store.joiner.put_manifest(
            container, name, entries, headers, segments=self._names.container
        )

    def _check_stored(self, entries: Sequence[ManifestEntry]) -> None:
        if not entries:
            raise StoreRejected(f"backup {self._names.backup_id} has no segments")
        for entry in entries:
            if entry.nested:
                continue  # its segments were checked when their group was complete
            try:
                found = self._store.stat(self._names.container, entry.name)
                check_entry(f"complete backup {self._names.backup_id}", entry, found)
            except (StoreNotFound, StoreRejected) as error:
                raise StoreMismatch(str(error)) from error

    def _top_entries(self) -> list[ManifestEntry]:
        rest = self._for_submanifests.rest()
        if not self._submanifests and rest:
            return self._entries(*rest)
        if rest:
            self._write_submanifest(*rest)
        return [self._submanifests[number] for number in sorted(self._submanifests)]

    def _entries(self, group: int, segments: list[Segment]) -> list[ManifestEntry]:
        first = group * self._per_submanifest
        return [
            ManifestEntry(self._names.segment_name(first + at), size, md5)
            for at, (size, md5) in enumerate(segments)
        ]

    def _write_list(self, number: int, segments: list[Segment]) -> None:
        encoded = encode_list(segments)
        name = self._names.list_name(number)
        if name is not None:
            self._store.put(self._names.container, name, [memoryview(encoded)])
        with self._lock:
            self._lists[number] = list_ref(encoded)
            if name is None:
                self._kept[number] = encoded

    def _write_submanifest(self, group: int, segments: list[Segment]) -> None:
        allowed = self._limits.manifest_entries if self._limits.nesting else 0
        if group >= allowed:
            raise StoreRejected(
                f"the backup has more than the {most_segments(self._limits)} segments that a "
                "backup in this store may have",
                hint="raise [pipeline] segment_bytes",
            )
        name = self._names.submanifest_name(group)
        etag = self._join(self._names.container, name, self._entries(group, segments), {})
        size = sum(segment.size for segment in segments)
        with self._lock:
            self._submanifests[group] = ManifestEntry(name, size, etag, nested=True)
