"""Which container and which storage URL a task may name, judged before anything is done.

A URL is compared by its parts and never as text, and what two readers could take differently
(escapes, dots, a query, a user) is no storage URL here at all.
"""

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

from agent.errors import StorageRefused
from agent.model import TaskStore

_URL: Final = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<path>(?:/[A-Za-z0-9._~:=+,-]{1,255})*)/?",
    re.ASCII,
)
_PORTS: Final = {"http": 80, "https": 443}


class StorageUrl(NamedTuple):
    """The parts of a storage URL; `path` holds its segments."""

    scheme: str
    host: str
    port: int
    path: tuple[str, ...]

    def below(self, allowed: "StorageUrl") -> bool:
        """Whether it is the allowed one or begins with the whole of it."""
        return self[:3] == allowed[:3] and self.path[: len(allowed.path)] == allowed.path


def parse_url(text: str) -> StorageUrl:
    """The parts of `https://host[:port]/path` and nothing more; ValueError for anything else."""
    found = _URL.fullmatch(text)
    if found is None:
        raise ValueError("must be http(s)://host[:port]/path of plain letters, without escapes")
    segments = tuple(found["path"].split("/")[1:])
    if not {".", ".."}.isdisjoint(segments):
        raise ValueError("must have no '.' or '..' in its path")
    port = int(found["port"] or _PORTS[found["scheme"]])
    if not 0 < port < 65536:
        raise ValueError("must have a port between 1 and 65535")
    return StorageUrl(found["scheme"], found["host"].lower(), port, segments)


@dataclass(frozen=True, kw_only=True)
class StorageRules:
    """What tasks may name: the `configured` container, the tenant's own, some URLs.

    `own` is the tenant's usual container; others of the tenant begin with that and `_`.
    `urls` are what [store] storage_urls lists; a store that is a folder (`tokens` False)
    takes no task with a token.
    """

    configured: str
    own: str
    urls: tuple[str, ...] = ()
    tokens: bool = True

    def check(self, asked: TaskStore) -> None:
        """StorageRefused unless the container and the URL are for this agent."""
        if asked.container is not None and not self._ours(asked.container):
            raise StorageRefused(
                f"the container {asked.container} is none that this agent's tasks may name",
                hint=f"name {self.own}, or one that begins with {self.own}_ and doesn't end in "
                "_segments",
            )
        if asked.storage_url is None:
            return
        if not self.tokens:
            raise StorageRefused(
                "this agent's store is a folder, which takes no storage URL",
                hint="leave storage_url and token away",
            )
        try:
            url = parse_url(asked.storage_url)
        except ValueError as error:
            raise StorageRefused(f"the task's storage URL {error}") from None
        if not any(url.below(parse_url(allowed)) for allowed in self.urls):
            raise StorageRefused("the task's storage URL is none that [store] storage_urls lists")

    def _ours(self, container: str) -> bool:
        # the sibling that holds the segments of one container is no container for records
        if container.endswith("_segments"):
            return container == self.configured
        return container in (self.configured, self.own) or container.startswith(f"{self.own}_")
