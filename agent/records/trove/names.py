"""The names of the objects of one backup in Trove's layout, all of them in one container.

    <id>.xbstream.gz                      the object that Trove knows
    <id>/<attempt>/00000000               its segments, counted from 0
    <id>/<attempt>/slo-0000               manifests of a thousand segments each, if it has so many
    <id>/<attempt>/appendix               the last part of the object: the record and the lists
    backup-agent-unfinished/<id>/<attempt>    while the backup is made

The object joins all others but the last. So a delete of the object with its parts
(`?multipart-manifest=delete`) leaves nothing.
"""

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

from agent.errors import UsageWrong
from agent.model import is_uuid, printable
from agent.records.object_names import attempt_prefix
from agent.store.protocol import Container

OBJECT_SUFFIX: Final = ".xbstream.gz"
# Older releases of Trove encrypted with openssl, and named such objects so.
ENCRYPTED_SUFFIX: Final = ".xbstream.gz.enc"
UNFINISHED: Final = "backup-agent-unfinished/"
# The name of the header with the id of the attempt, as in `X-Object-Meta-Attempt`.
ATTEMPT: Final = "attempt"
# Characters of a location that Trove's database can hold.
LONGEST_LOCATION: Final = 1024


@dataclass(frozen=True)
class TroveNames:
    """The names of all parts of one attempt. It implements agent.records.part_names.PartNames."""

    backup_id: str
    attempt: str
    container: Container = Container.OBJECTS

    @property
    def prefix(self) -> str:
        """Return the prefix of the names of all parts but the object itself."""
        return attempt_prefix(self.backup_id, self.attempt)

    @property
    def object_name(self) -> str:
        return f"{self.backup_id}{OBJECT_SUFFIX}"

    @property
    def appendix(self) -> str:
        return f"{self.prefix}appendix"

    @property
    def marker(self) -> str:
        """Return the name of the object that exists while the backup is made."""
        return f"{UNFINISHED}{self.backup_id}/{self.attempt}"

    def segment_name(self, number: int) -> str:
        return f"{self.prefix}{number:08d}"

    def submanifest_name(self, number: int) -> str:
        return f"{self.prefix}slo-{number:04d}"

    def list_name(self, number: int) -> None:
        """Return None, because the appendix has the lists."""


def marked(name: str) -> TroveNames | None:
    """Return the names of the attempt whose marker has this name, or None for other names."""
    backup_id, _, attempt = name.removeprefix(UNFINISHED).partition("/")
    known = name.startswith(UNFINISHED) and is_uuid(backup_id) and is_uuid(attempt)
    return TroveNames(backup_id, attempt) if known else None


class Location(NamedTuple):
    """The URL by which Trove names a backup's object, with the container and the object's name.

    The rest of the URL is not used: a token goes to the store that the caller names, and to no
    other.
    """

    url: str
    container: str
    name: str

    @property
    def backup_id(self) -> str:
        """Return the part of the object's name before its first dot, which is the backup's id."""
        return self.name.partition(".")[0]


def parse_location(url: str) -> Location:
    """Return the location with this URL.

    As in Trove, the last two parts of its path are names without escapes.

    Raises:
        UsageWrong: the URL is not one of an object.
    """
    parts = url.split("/")
    names = set(parts[-2:])
    known = re.match(r"https?://[^/]", url) and len(parts) > 5 and url.isprintable()
    if not known or names & {"", ".", ".."}:
        raise UsageWrong(
            f"{printable(url)[:200]!r} is not the location of a backup",
            hint="give it as Trove shows it: http(s)://host/v1/account/container/object",
        )
    return Location(url, parts[-2], parts[-1])
