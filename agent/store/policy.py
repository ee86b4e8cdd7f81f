"""The rules for the container, the storage URL and the project that a task may name.

They are checked before the task begins. URLs are compared by their parts and never as text. A URL
that two readers could read in different ways (with escapes, dots, a query or a user) is not
accepted as a storage URL.
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
    """The parts of a storage URL, with the segments of its path in `path`."""

    scheme: str
    host: str
    port: int
    path: tuple[str, ...]

    def below(self, allowed: "StorageUrl") -> bool:
        """Return True if this URL is `allowed` itself or begins with all of its parts."""
        return self[:3] == allowed[:3] and self.path[: len(allowed.path)] == allowed.path


def parse_url(text: str) -> StorageUrl:
    """Return the parts of a URL of the form `https://host[:port]/path`.

    Raises:
        ValueError: the URL has another form. The message begins with "must", because the caller
            puts the subject of the sentence before it.
    """
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
    """The containers and storage URLs that tasks may name.

    `configured` is the container of the configuration. `own` is the tenant's usual container. The
    tenant's other containers have names that begin with `own` and `_`. `urls` are the URLs that
    [store] storage_urls lists. `tokens` is False if the store accepts no task with a token. Only
    Swift accepts one. `projects` are the ids of Keystone's projects that tasks may name, or None if
    the store is not behind Keystone.
    """

    configured: str
    own: str
    urls: tuple[str, ...] = ()
    tokens: bool = True
    projects: frozenset[str] | None = None

    def check(self, named: TaskStore) -> None:
        """Raise StorageRefused unless this agent's tasks may name the container and the account."""
        if named.container is not None and not self._ours(named.container):
            raise StorageRefused(
                f"this agent's tasks may not name the container {named.container}",
                hint=f"name {self.own}, or a container that begins with {self.own}_ and does not "
                "end in _segments",
            )
        if named.account is None:
            return
        if not self.tokens:
            raise StorageRefused(
                "this agent's store is not Swift, and accepts no token",
                hint="remove storage_url, project_id and token from the task",
            )
        if named.storage_url is not None:
            self._check_url(named.storage_url)
        elif self.projects is None:
            raise StorageRefused(
                "the task names a project, but this agent's store is not behind Keystone",
                hint="name a storage_url instead, or set [store] auth to a login at Keystone",
            )
        elif named.project_id not in self.projects:
            raise StorageRefused(
                f"this agent's tasks may not name the project {named.project_id}",
                hint="name the agent's tenant, or a project that [store] projects lists",
            )

    def _check_url(self, named: str) -> None:
        try:
            url = parse_url(named)
        except ValueError as error:
            raise StorageRefused(f"the task's storage URL {error}") from None
        if not any(url.below(parse_url(allowed)) for allowed in self.urls):
            raise StorageRefused(
                "the task's storage URL is not below any URL that [store] storage_urls lists"
            )

    def _ours(self, container: str) -> bool:
        # A container for segments can't hold records. If one is configured, it may be named.
        if container.endswith("_segments"):
            return container == self.configured
        return container in (self.configured, self.own) or container.startswith(f"{self.own}_")
