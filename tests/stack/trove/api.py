"""Requests to Trove's REST API, as the user of the project."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from tests.stack.process import StackError

_TIMEOUT = 60.0


class ApiError(StackError):
    """Trove refused a request."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class TroveApi:
    """Trove's API at `address`. `token` returns a token for each request."""

    def __init__(self, address: str, project_id: str, token: Callable[[], str]) -> None:
        self._base = f"{address}/v1.0/{project_id}"
        self._token = token

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request, and return the answer's JSON, or None.

        Raises:
            ApiError: the status isn't one of success.
        """
        request = urllib.request.Request(  # noqa: S310 - the URL is Trove's own
            self._base + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "X-Auth-Token": self._token()},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=_TIMEOUT) as answer:
                text = answer.read()
                return json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            with error:
                text = error.read()[:500]
                raise ApiError(error.code, f"{method} {path}: {error.code} {text!r}") from error

    def instance(self, instance_id: str) -> dict[str, Any]:
        return dict(self.call("GET", f"/instances/{instance_id}")["instance"])

    def backup(self, backup_id: str) -> dict[str, Any]:
        return dict(self.call("GET", f"/backups/{backup_id}")["backup"])

    def backups(self) -> list[dict[str, Any]]:
        return list(self.call("GET", "/backups")["backups"])
