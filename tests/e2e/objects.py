"""The stored objects of an agent, accessed and damaged with plain swiftclient."""

import json
from typing import Any

from swiftclient.client import ClientException, Connection

from tests.stack.agent import Agent


class Objects:
    """The objects of an agent's tenant in Swift, to be listed, read, replaced and deleted."""

    def __init__(self, agent: Agent) -> None:
        self._swift = Connection(agent.swift.auth_url, agent.swift.user, agent.swift.key, retries=0)
        self.container = f"database_backups_{agent.tenant_id}"
        self.segments = f"{self.container}_segments"

    def close(self) -> None:
        self._swift.close()

    def names(self, container: str, prefix: str = "") -> list[str]:
        """Return all names in a container, or an empty list if it doesn't exist yet."""
        try:
            _, rows = self._swift.get_container(container, prefix=prefix, full_listing=True)
        except ClientException as error:
            if error.http_status == 404:
                return []
            raise
        return [row["name"] for row in rows]

    def segment_names(self, backup_id: str) -> list[str]:
        """Return the names of a backup's data segments, in order."""
        names = self.names(self.segments, f"{backup_id}/")
        return [name for name in names if name.rsplit("/", 1)[1].isdigit()]

    def get(self, container: str, name: str) -> bytes:
        body: bytes = self._swift.get_object(container, name)[1]
        return body

    def etag(self, container: str, name: str) -> str:
        return str(self._swift.head_object(container, name)["etag"])

    def put(self, container: str, name: str, body: bytes) -> None:
        self._swift.put_object(container, name, body)

    def record(self, backup_id: str) -> dict[str, Any]:
        """Return line 1 of a record, parsed but unchecked."""
        line = self.get(self.container, f"{backup_id}.json").splitlines()[0]
        found: dict[str, Any] = json.loads(line)
        return found

    def delete(self, container: str, name: str) -> None:
        self._swift.delete_object(container, name)

    def quota(self, container: str, size: str) -> None:
        """Limit a container to `size` bytes, or remove the limit if `size` is empty."""
        self._swift.post_container(container, {"X-Container-Meta-Quota-Bytes": size})
