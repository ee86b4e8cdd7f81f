"""A private OpenStack Swift, whose proxy, account, container and object servers share a process."""

import json
import signal
from pathlib import Path
from typing import Any, Final

from tests.stack.keystone import PREFIXES, KeystoneServer
from tests.stack.openstack import swift_python as swift_python
from tests.stack.process import ServerProcess, free_port, port_answers

_SERVERS = ("proxy", "account", "container", "object")


class SwiftServer:
    """Swift with auth v1 (tempauth) and one account, on free loopback ports.

    If `keystone` is given, it takes the place of tempauth. Its project has the account, and its
    `agent` is the user. Keystone may be started before Swift or after it. Its catalogue doesn't
    name this Swift until `keystone.add_object_store(swift.address)` is called.
    `token_cache_seconds` is the time for which Swift accepts a token that Keystone confirmed, even
    if it is revoked meanwhile. Without a cache, each request costs one request to Keystone.

    `manifest_segments` is the largest number of entries in a manifest. `token_life` is in
    seconds. `listing_limit` is the number of rows on one page of a listing. `max_file_size` is
    the largest object in bytes. `certificate` is a PEM file with key and certificate. If it is
    given, the proxy speaks TLS.
    """

    user: str = "test:tester"
    # this user has only the rights that a container's ACL grants
    reader: Final = "test:reader"
    key: str = "testing-key-of-swift"

    def __init__(
        self,
        folder: Path,
        *,
        manifest_segments: int = 1000,
        token_life: int = 86400,
        listing_limit: int = 10000,
        max_file_size: int = 5 << 30,
        certificate: Path | None = None,
        keystone: KeystoneServer | None = None,
        token_cache_seconds: int = -1,
    ) -> None:
        self.folder = folder
        ports = {name: free_port() for name in _SERVERS}
        self._options = {
            "manifest_segments": manifest_segments,
            "token_life": token_life,
            "listing_limit": listing_limit,
            "max_file_size": max_file_size,
            "certificate": str(certificate or ""),
            "key": self.key,
            "keystone": _authtoken(keystone, token_cache_seconds) if keystone else None,
            **ports,
        }
        self.port = ports["proxy"]
        self.address = f"{'https' if certificate else 'http'}://127.0.0.1:{self.port}"
        self.auth_url = f"{self.address}/auth/v1.0"
        self.storage_url = f"{self.address}/v1/AUTH_test"
        if keystone:
            self.auth_url = keystone.auth_url
            self.user, self.key = keystone.agent.name, keystone.agent.password
            self.storage_url = f"{self.address}/v1/AUTH_{keystone.project_id}"
        self._process: ServerProcess | None = None

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def launch(self) -> None:
        """Start the process on the data of an earlier run, if there is any. Return at once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "options.json").write_text(json.dumps(self._options))
        script = Path(__file__).with_name("swift_server.py")
        self._process = ServerProcess(
            [str(swift_python()), "-I", str(script), str(self.folder)],
            self.folder / "server.log",
        )

    def wait_ready(self) -> None:
        """Wait until the proxy answers (at most 30 s)."""
        assert self._process
        self._process.wait_ready(lambda: port_answers(self.port), 30)

    def start(self) -> None:
        self.launch()
        self.wait_ready()

    def stop(self) -> None:
        """End the process. Do nothing if it doesn't run."""
        if self._process:
            self._process.stop()

    def kill(self) -> None:
        """End the process with SIGKILL. `start()` works again on the same directory."""
        if self._process:
            self._process.stop(signal.SIGKILL)

    def inject(self, rules: list[dict[str, Any]]) -> None:
        """Replace the fault rules, and start counting each rule's `times` from zero.

        A rule has `match`, a regular expression searched in the path and query. It may have
        `method`, `times` (1) and `action`:

        - `status` (the default) answers with `status`, `headers` and `body`.
        - `cut` ends the connection `after` bytes of body.
        - `stall` waits `seconds`, then performs the request.
        - `drip` answers one byte every `seconds`.
        - `mute` performs the request and doesn't answer.
        - `wrong_etag` answers with a false ETag.
        - `date` answers with a date that is `seconds` later.
        - `lose` answers 201 and stores nothing.

        A rule with `inner` applies to requests that reach the middleware behind the one for large
        objects. These include the HEADs by which a manifest is validated.
        """
        draft = self.folder / "faults.draft"
        draft.write_text(json.dumps(rules))
        draft.replace(self.folder / "faults.json")

    def clear_faults(self) -> None:
        (self.folder / "faults.json").unlink(missing_ok=True)

    def requests(self) -> list[str]:
        """Return all requests so far, as lines of method, path with query, and fault action or `-`.

        A line ends in `newest` if the request asked for the newest copy.
        """
        return (self.folder / "requests.log").read_text().splitlines()


def _authtoken(keystone: KeystoneServer, cache_seconds: int) -> dict[str, Any]:
    """Return the settings of the middlewares that ask Keystone for the meaning of a token."""
    return {
        "auth_url": keystone.auth_url,
        "username": keystone.service.name,
        "password": keystone.service.password,
        "domain": keystone.service.domain,
        "project": keystone.service_project,
        "cafile": str(keystone.ca_file or ""),
        "prefixes": ", ".join(PREFIXES.values()),
        "token_cache_seconds": cache_seconds,
    }
