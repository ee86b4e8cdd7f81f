"""A private OpenStack Swift, whose proxy, account, container and object servers share a process."""

import json
import os
import signal
from pathlib import Path
from typing import Any, Final

from tests.stack.process import ServerProcess, free_port, port_answers

_ROOT = Path(__file__).parents[2]
_SERVERS = ("proxy", "account", "container", "object")


def swift_python() -> Path:
    """Return the path of the interpreter that has Swift installed. It need not exist."""
    return Path(os.environ.get("SWIFT_PYTHON", _ROOT / ".venv-swift" / "bin" / "python"))


class SwiftServer:
    """Swift with auth v1 (tempauth) and one account, on free loopback ports.

    `manifest_segments` is the largest number of entries in a manifest. `token_life` is in
    seconds. `listing_limit` is the number of rows on one page of a listing. `max_file_size` is
    the largest object in bytes. `certificate` is a PEM file with key and certificate. If it is
    given, the proxy speaks TLS.
    """

    user: Final = "test:tester"
    # this user has only the rights that a container's ACL grants
    reader: Final = "test:reader"
    key: Final = "testing-key-of-swift"

    def __init__(
        self,
        folder: Path,
        *,
        manifest_segments: int = 1000,
        token_life: int = 86400,
        listing_limit: int = 10000,
        max_file_size: int = 5 << 30,
        certificate: Path | None = None,
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
            **ports,
        }
        self.port = ports["proxy"]
        address = f"{'https' if certificate else 'http'}://127.0.0.1:{self.port}"
        self.auth_url = f"{address}/auth/v1.0"
        self.storage_url = f"{address}/v1/AUTH_test"
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
