"""A private OpenStack Swift: proxy, account, container and object server in one process."""

import json
import os
import signal
from pathlib import Path
from typing import Any, Final

from tests.stack.process import ServerProcess, free_port, port_answers

_ROOT = Path(__file__).parents[2]
_SERVERS = ("proxy", "account", "container", "object")


def swift_python() -> Path:
    """The interpreter that has Swift installed; it need not exist."""
    return Path(os.environ.get("SWIFT_PYTHON", _ROOT / ".venv-swift" / "bin" / "python"))


class SwiftServer:
    """Swift with auth v1 (tempauth) and one account, on free loopback ports.

    `manifest_segments`: entries one manifest may list; `token_life`: seconds; `listing_limit`:
    rows on one page of a listing; `max_file_size`: bytes of one object; `certificate`: a PEM
    file of key and certificate, with which the proxy speaks TLS.
    """

    user: Final = "test:tester"
    # has no right but what a container's ACL gives it
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
        """Start the process, on what an earlier one left in the folder; returns at once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "options.json").write_text(json.dumps(self._options))
        script = Path(__file__).with_name("swift_server.py")
        self._process = ServerProcess(
            [str(swift_python()), "-I", str(script), str(self.folder)],
            self.folder / "server.log",
        )

    def wait_ready(self) -> None:
        """Block until the proxy answers (at most 30 s)."""
        assert self._process
        self._process.wait_ready(lambda: port_answers(self.port), 30)

    def start(self) -> None:
        self.launch()
        self.wait_ready()

    def stop(self) -> None:
        """End the process; nothing happens where none runs."""
        if self._process:
            self._process.stop()

    def kill(self) -> None:
        """End the process without warning; `start()` works again on the same folder."""
        if self._process:
            self._process.stop(signal.SIGKILL)

    def inject(self, rules: list[dict[str, Any]]) -> None:
        """Replace the fault rules; each counts from now on.

        A rule has `match` (a regular expression searched in the path and query), and may have
        `method`, `times` (1) and `action`: `status` (the default: answers `status`, `headers`,
        `body`), `cut` (ends the connection `after` bytes of body), `stall` (`seconds`),
        `drip` (answers a byte every `seconds`), `mute` (does it and doesn't answer),
        `wrong_etag`, `date` (answers as if it were `seconds` later), or `lose` (says 201 and
        stores nothing). An `inner` one is for what reaches the middleware behind that of large
        objects, such as the HEADs by which a manifest is validated.
        """
        draft = self.folder / "faults.draft"
        draft.write_text(json.dumps(rules))
        draft.replace(self.folder / "faults.json")

    def clear_faults(self) -> None:
        (self.folder / "faults.json").unlink(missing_ok=True)

    def requests(self) -> list[str]:
        """All requests so far: method, path with query, the fault's action or `-`.

        A line ends in `newest` where the request asked for the newest copy.
        """
        return (self.folder / "requests.log").read_text().splitlines()
