"""The objects of a tenant, read without the agent's code, and a check that they are consistent.

A COMPLETED backup must have exactly the bytes that its record and lists name. A FAILED or CANCELLED
backup must have a record and nothing else. No other object may exist.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from swiftclient.client import ClientException, Connection

from tests.stack.agent import Agent

ENDED = ("COMPLETED", "FAILED", "CANCELLED")
RecordLine = dict[str, Any]


class Row(NamedTuple):
    """One stored object: size and MD5. `joined` is the ETag that the store gives a manifest."""

    size: int
    md5: str
    joined: str = ""


class Holdings(NamedTuple):
    """All objects of the container and of its segments, by name.

    `read` returns their bytes. `joins` is True if the store has an object that joins the segments.
    """

    objects: Mapping[str, Row]
    segments: Mapping[str, Row]
    read: Callable[[str, str], bytes]
    joins: bool = True

    def records(self) -> dict[str, RecordLine]:
        """Return line 1 of every record, by the backup's id."""
        return {
            name.removesuffix(".json"): json.loads(self.read("", name).splitlines()[0])
            for name in self.objects
            if name.endswith(".json") and not name.endswith(".checks.json")
        }

    def of(self, backup_id: str) -> list[str]:
        """Return the names of all objects of a backup."""
        return [name for rows in self[:2] for name in rows if name.startswith(backup_id)]

    def total(self) -> int:
        return len(self.objects) + len(self.segments)

    def check(self) -> dict[str, RecordLine]:
        """Return the records. Raise AssertionError if an object is missing, differs or is stray."""
        records = self.records()
        objects, segments = set(self.objects), set(self.segments)
        for backup_id, record in records.items():
            objects.discard(f"{backup_id}.json")
            assert record["status"] in ENDED, f"backup {backup_id} is {record['status']}"
            if record["status"] == "COMPLETED":
                # of a store that joins nothing this would be a stray object
                if self.joins:
                    objects.discard(f"{backup_id}.xbstream.gz.enc")
                segments -= set(self._bytes_of(record))
        assert not objects | segments, f"belongs to no backup: {sorted(objects | segments)}"
        return records

    def _bytes_of(self, record: RecordLine) -> Iterator[str]:
        """Yield the names of a COMPLETED backup's segments and lists, and compare each one."""
        stored, prefix = record["stored"], f"{record['id']}/{record['attempt']}/"
        number, etags = 0, ""
        for place, ref in enumerate(stored["lists"]):
            name = f"{prefix}list-{place:04d}"
            lines = self.read("_segments", name)
            assert hashlib.sha256(lines).hexdigest() == ref["sha256"], f"{name} differs"
            yield name
            for line in lines.decode().splitlines():
                size, md5 = line.split()
                segment = f"{prefix}{number:08d}"
                assert self.segments[segment][:2] == (int(size), md5), f"{segment} differs"
                yield segment
                number, etags = number + 1, etags + md5
        assert number == stored["segment_count"], f"{prefix} has {number} segments"
        joined = hashlib.md5(etags.encode(), usedforsecurity=False).hexdigest()
        assert joined == stored["slo_etag"], f"the ETag of {record['id']} differs"
        if self.joins:
            told = self.objects[f"{record['id']}.xbstream.gz.enc"].joined
            assert joined == told, f"the object of {record['id']} differs"


def in_swift(agent: Agent) -> Holdings:
    """Return the objects of the agent's tenant in Swift."""
    swift = Connection(agent.swift.auth_url, agent.swift.user, agent.swift.key, retries=0)
    container = f"database_backups_{agent.tenant_id}"

    def rows(suffix: str) -> dict[str, Row]:
        try:
            _, listing = swift.get_container(container + suffix, full_listing=True)
        except ClientException as error:
            if error.http_status == 404:
                return {}
            raise
        return {
            row["name"]: Row(row["bytes"], row["hash"], row.get("slo_etag", "").strip('"'))
            for row in listing
        }

    def read(suffix: str, name: str) -> bytes:
        body: bytes = swift.get_object(container + suffix, name)[1]
        return body

    return Holdings(rows(""), rows("_segments"), read)


def in_folder(root: Path) -> Holdings:
    """Return the objects below the directory of a `file:///` store with one container."""
    [container] = [path.name for path in root.iterdir() if not path.name.endswith("_segments")]

    def rows(suffix: str) -> dict[str, Row]:
        folder = root / (container + suffix)
        files = [path for path in folder.rglob("*") if path.is_file()]
        # a file may have its MD5 beside it, and remains of an interrupted write count as objects
        kept = [path for path in files if not path.name.startswith("%md5.")]
        return {str(path.relative_to(folder)): _row(path) for path in kept}

    def read(suffix: str, name: str) -> bytes:
        return (root / (container + suffix) / name).read_bytes()

    return Holdings(rows(""), rows("_segments"), read, joins=False)


def _row(path: Path) -> Row:
    body = path.read_bytes()
    return Row(len(body), hashlib.md5(body, usedforsecurity=False).hexdigest())
